"""Launch arguments of the tools' servers."""

from __future__ import annotations

import argparse

import pytest
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from specvlm_sglang.algorithm import NAME
from specvlm_sglang.tools import launch


@pytest.mark.parametrize(
    ("dtype", "gpu", "triton"),
    [
        ("float32", True, True),
        ("float32", False, False),
        ("bfloat16", True, False),
    ],
)
def test_float32_on_a_gpu_names_backends_that_compute_it(
    dtype: str, gpu: bool, triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "on_gpu", lambda: gpu)
    arguments = launch.common_arguments(dtype)
    assert arguments[:2] == ("--dtype", dtype)
    assert ("triton" in arguments) == ("triton_attn" in arguments) == triton


def test_sglangs_parser_reads_back_what_was_given() -> None:
    load_plugins()
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    common = launch.common_arguments(
        "bfloat16", exact_vision=True, kv_tokens=4096, mm_config={"video": {"fps": 4}}
    )
    specvlm = launch.specvlm_arguments(
        "D", steps=4, branches=2, verified=8, retention=0.25, top_p=0.4, policy_file="p.py"
    )
    found = vars(parser.parse_args(["--model-path", "T", *common, *specvlm]))
    expected = {
        "dtype": "bfloat16",
        "max_total_tokens": 4096,
        "mm_process_config": {"video": {"fps": 4}},
        "specvlm_exact_vision": True,
        "speculative_algorithm": NAME,
        "speculative_draft_model_path": "D",
        "speculative_num_steps": 4,
        "speculative_eagle_topk": 2,
        "speculative_num_draft_tokens": 8,
        "specvlm_retention": 0.25,
        "specvlm_top_p": 0.4,
        "specvlm_policy_file": "p.py",
    }
    assert {name: found[name] for name in expected} == expected


def test_without_a_draft_model_the_target_drafts_for_itself() -> None:
    assert launch.specvlm_arguments(None, steps=4) == (
        *("--speculative-algorithm", NAME),
        *("--specvlm-draft", "self"),
        *("--speculative-num-steps", "4"),
    )


def test_what_is_not_given_keeps_the_servers_default() -> None:
    assert launch.specvlm_arguments("D") == (
        *("--speculative-algorithm", NAME),
        *("--speculative-draft-model-path", "D"),
    )
