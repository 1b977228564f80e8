"""Keeps what a reader of ``--benchmark-json`` needs: medians, spread, versions, hardware."""

from specvlm_sglang.tools.bench.environment import environment

_SHOWN = ("median", "iqr", "min", "max", "rounds", "iterations")


def pytest_benchmark_update_json(config, benchmarks, output_json):
    found = output_json["benchmarks"]
    output_json.clear()
    output_json.update({k: v for k, v in environment().items() if k != "command"})
    output_json["command"] = "pytest benchmarks/kernels --benchmark-only"
    output_json["unit"] = "seconds"
    output_json["benchmarks"] = [
        {
            "group": bench["group"],
            "name": bench["name"],
            **{k: bench["stats"][k] for k in _SHOWN},
        }
        for bench in found
    ]
