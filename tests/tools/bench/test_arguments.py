"""What can be chosen, and what is refused before anything starts."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest
from rich.console import Console

from specvlm_sglang.pruning.registry import shipped_policies
from specvlm_sglang.tools.bench.arguments import add_arguments
from specvlm_sglang.tools.bench.configurations import PLAIN, REGISTRY, Configuration, configuration
from specvlm_sglang.tools.bench.measure import rotated
from specvlm_sglang.tools.bench.profiles import PROFILES
from specvlm_sglang.tools.bench.run import run
from specvlm_sglang.tools.bench.servers import batches, launch_arguments
from specvlm_sglang.tools.bench.workloads import WORKLOADS, dataset_mm_config, mm_config
from specvlm_sglang.tools.errors import ToolError

POLICIES = tuple(shipped_policies())


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def refusal(*arguments: str) -> str:
    """What a run with these arguments ends with before anything starts."""
    with pytest.raises(ToolError) as raised:
        run(options(*arguments), Console(file=io.StringIO()))
    return str(raised.value)


def test_the_first_configuration_is_plain_decoding_and_every_policy_is_there() -> None:
    assert next(iter(REGISTRY)) == PLAIN
    assert {c.policy for c in REGISTRY.values()} == {None, *POLICIES} - {"none"}
    assert all(configuration(name).name == name for name in REGISTRY)


def test_every_workload_compares_known_configurations_with_plain_decoding() -> None:
    for workload in WORKLOADS.values():
        assert workload.configurations[0] == PLAIN
        assert all(configuration(name) for name in workload.configurations)


def test_a_name_spells_a_configuration_out() -> None:
    assert configuration("uniform-grid-0.3-p0.2-tree") == Configuration(
        "uniform-grid-0.3-p0.2-tree", "tree", 0.3, "uniform-grid", 0.2
    )
    assert configuration("specvlm-0.1-p0.2").custom_params == {
        "specvlm": {"retention": 0.1, "policy": "specvlm", "top_p": 0.2}
    }
    assert configuration("unpruned").custom_params == {
        "specvlm": {"retention": 1.0, "policy": "specvlm"}
    }
    assert configuration(PLAIN).custom_params is None


@pytest.mark.parametrize("name", ["best-0.1", "specvlm-0", "specvlm", "specvlm-0.1-p3", "1.2.3"])
def test_a_configuration_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ToolError, match=f"--configurations '{name}' must be one of plain"):
        configuration(name)


def test_an_unknown_workload_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        options("--workloads", "9k")
    assert "'9k' must be one of 2k, 512, 8k" in capsys.readouterr().err


def test_a_size_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--parameters", "many")
    assert "--parameters must be a number like 500M" in capsys.readouterr().err
    assert options("--parameters", "300M").parameters == 300_000_000


def test_the_list_names_workloads_and_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options("--list")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "2k-x8" in shown
    assert "specvlm-0.05-tree" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--steps", "0"), "--steps 0 must be at least 1"),
        (("--rounds", "0"), "--rounds 0 must be at least 1"),
        (("--servers-at-once", "0"), "--servers-at-once 0 must be at least 1"),
        (("--top-p", "2"), "--top-p 2.0 must lie in [0, 1]"),
        (("--dataset", "mlvu"), "--dataset and --data go together"),
        (("--dataset", "mlvu", "--data", "d"), "--dataset needs --target and --draft"),
        (("--target", "t"), "--target and --draft go together"),
        (("--resume",), "--resume needs --out"),
        (("--against", "nowhere"), "--against nowhere: nowhere/results.json cannot be read"),
        (("--bars", "best"), "'best' must be one of plain"),
        (("--configurations", "unpruned"), "must contain plain"),
        (("--configurations", "plain", "ngram"), "--configurations ngram needs a GPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_measured_is_one_line(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specvlm_sglang.tools.bench.run.on_gpu", lambda: False)
    message = refusal(*arguments)
    assert said in message
    assert len(message.splitlines()) == 1


def test_a_missing_model_directory_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert f"--target {missing}: no such directory" in refusal("--target", missing, "--draft", "d")


def test_plain_decoding_lives_beside_as_many_servers_as_fit() -> None:
    assert batches(["plain", "chain", "tree"], 3) == [["plain", "chain", "tree"]]
    assert batches(["plain", "chain", "tree"], 2) == [["plain", "chain"], ["plain", "tree"]]
    assert batches(["plain", "chain", "tree"], 1) == [["plain"], ["chain"], ["tree"]]
    assert batches(["plain"], 4) == [["plain"]]


def test_servers_differ_only_in_how_they_decode() -> None:
    plain, chain, tree, ngram, itself = (
        launch_arguments(
            server,
            draft="D",
            dtype="bfloat16",
            steps=5,
            tree=(4, 2, 8),
            top_p=0.4,
            mm_config={},
            exact_vision=True,
            more=["--tp-size", "2"],
        )
        for server in ("plain", "chain", "tree", "ngram", "self")
    )
    assert {one[: len(plain)] for one in (chain, tree, ngram, itself)} == {plain}
    assert "--speculative-algorithm" not in plain
    assert [chain[chain.index(f"--speculative-{n}") + 1] for n in ("num-steps", "eagle-topk")] == [
        "5",
        "1",
    ]
    assert tree[tree.index("--speculative-num-draft-tokens") + 1] == "8"
    assert ngram[len(plain) :] == ("--speculative-algorithm", "NGRAM")
    assert "--speculative-draft-model-path" not in itself
    assert itself[itself.index("--specvlm-draft") + 1] == "self"


@pytest.mark.parametrize(
    ("name", "server", "policy", "retention"),
    [
        ("ngram", "ngram", None, None),
        ("specvlm-0.1-self", "self", "specvlm", 0.1),
        ("uniform-0.3-self", "self", "uniform", 0.3),
        ("attention/spread+merge-0.2-p0.4-tree", "tree", "attention/spread+merge", 0.2),
    ],
)
def test_a_configuration_names_who_drafts_and_what_it_reads(
    name: str, server: str, policy: str | None, retention: float | None
) -> None:
    found = configuration(name)
    assert (found.name, found.server) == (name, server)
    assert (found.policy, found.retention) == (policy, retention)


def test_every_configuration_is_first_in_some_round() -> None:
    chosen = [configuration(name) for name in ("plain", "unpruned", "specvlm-0.1")]
    assert {rotated(chosen, index)[0].name for index in range(3)} == {c.name for c in chosen}
    assert {c.name for c in rotated(chosen, 1)} == {c.name for c in chosen}


def test_servers_are_told_of_frames_what_their_processor_understands() -> None:
    assert set(mm_config("qwen2_5_vl")["video"]) > {"fps", "size", "total_pixels"}
    assert mm_config("qwen3_vl") == {"video": {"fps": 4}}
    assert mm_config("internvl_chat") == {}
    assert dataset_mm_config(64, "llava_onevision")["video"]["max_frames"] == 64
    with pytest.raises(ToolError, match=r"--dataset wants 64 frames .* of glm4v chooses"):
        dataset_mm_config(64, "glm4v")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_a_run_and_flags_after_it_go_before_its_own(name: str) -> None:
    found = options("--profile", name)
    assert [workload.name for workload in found.workloads] == list(PROFILES[name]["workloads"])
    assert all(configuration(c).name == c for c in found.configurations)
    assert found.configurations[0] == PLAIN
    assert found.rounds >= 3
    assert found.draft_parameters * 10 == found.parameters
    changed = options("--profile", name, "--rounds", "1", "--workloads", "512")
    assert (changed.rounds, [w.name for w in changed.workloads]) == (1, ["512"])
    assert changed.parameters == found.parameters
