"""SPECVLM's server arguments, resolved by SGLang itself from a command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs, prepare_server_args
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from specvlm_sglang.algorithm import (
    NAME,
    SpecVLMAlgorithm,
    refuse_drafting_for_itself,
    refuse_unsupported,
    resolve_pace,
    resolve_tree,
    why_not_adaptive,
)
from specvlm_sglang.config import SpecVLMConfig
from tests.support import checkpoints


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    load_plugins()


@pytest.fixture
def pair(vl_target: Path, vl_draft: Path) -> list[str]:
    return [
        "--model-path",
        str(vl_target),
        "--speculative-algorithm",
        NAME,
        "--speculative-draft-model-path",
        str(vl_draft),
    ]


def resolve(*argv: str) -> Any:
    arguments = prepare_server_args(list(argv))
    arguments.resolve_once()
    return resolving_view(arguments)


TREE_FIELDS = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
TREES = [
    ((None, None, None), (3, 1, 4)),
    ((5, None, None), (5, 1, 6)),
    ((None, None, 6), (5, 1, 6)),
    ((None, 1, 2), (1, 1, 2)),
    ((2, 1, 3), (2, 1, 3)),
    ((1, 4, None), (1, 4, 5)),
    ((3, 4, None), (3, 4, 13)),
    ((3, 4, 16), (3, 4, 16)),
    ((None, 2, 4), (3, 2, 4)),
    # 1 root, 4 first tokens and 16 at each of two further depths.
    ((3, 4, 37), (3, 4, 37)),
]


@pytest.mark.parametrize(("given", "expected"), TREES)
def test_open_tree_settings_are_filled_in_to_agree(
    given: tuple[int | None, ...], expected: tuple[int, ...]
) -> None:
    arguments = SimpleNamespace(
        **dict(zip(TREE_FIELDS, given, strict=True)), page_size=1, attention_backend=None
    )
    resolve_tree(arguments)
    assert tuple(getattr(arguments, name) for name in TREE_FIELDS) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--speculative-num-steps=0"], r"--speculative-num-steps=0 must be at least 1"),
        (["--speculative-num-steps=-2"], r"--speculative-num-steps=-2 must be at least 1"),
        (["--speculative-eagle-topk=0"], r"--speculative-eagle-topk=0 must be at least 1"),
        (
            ["--speculative-num-draft-tokens=1"],
            r"--speculative-num-draft-tokens=1 must be at least 2",
        ),
        (
            ["--speculative-num-steps=3", "--speculative-num-draft-tokens=5"],
            r"--speculative-num-draft-tokens=5 must be --speculative-num-steps \+ 1 = 4",
        ),
        (
            ["--speculative-eagle-topk=4", "--speculative-num-draft-tokens=3"],
            r"--speculative-num-draft-tokens=3 must be 4 to 37",
        ),
        (
            ["--speculative-eagle-topk=4", "--speculative-num-draft-tokens=38"],
            r"--speculative-num-draft-tokens=38 must be 4 to 37",
        ),
        (
            ["--speculative-eagle-topk=4", "--page-size=16"],
            r"--page-size=16 with --speculative-eagle-topk=4 .* not 'specvlm_torch'",
        ),
    ],
)
def test_tree_settings_that_disagree_are_refused_by_their_flag(
    pair: list[str], argv: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(*pair, *argv)


UNSUPPORTED = [
    ["--pipeline-parallel-size=2"],
    ["--enable-dp-attention", "--dp-size=2", "--tp-size=2"],
    ["--attn-dp-size=2", "--tp-size=2"],
    ["--disaggregation-mode=prefill"],
    ["--disaggregation-mode=decode"],
    ["--enable-hierarchical-cache"],
    ["--enable-unified-memory"],
    ["--enable-hisparse"],
    ["--enable-pdmux"],
    ["--speculative-accept-threshold-single=0.5"],
    ["--speculative-accept-threshold-single=0"],
    ["--speculative-accept-threshold-acc=0.9"],
    ["--speculative-use-rejection-sampling"],
    ["--speculative-token-map=hot.pt"],
    ["--speculative-draft-window-size=128"],
    ["--enable-multi-layer-eagle"],
    ["--enable-two-batch-overlap"],
    ["--enable-lora", "--max-lora-rank=8", "--lora-target-modules=all"],
    ["--lora-paths=adapter=somewhere"],
    ["--tokenizer-worker-num=2"],
    ["--enable-return-hidden-states"],
    ["--return-hidden-states-mode=last"],
    ["--return-hidden-states-mode=full"],
]


@pytest.mark.parametrize("argv", UNSUPPORTED, ids=lambda argv: argv[0])
def test_what_specvlm_does_not_work_with_is_refused_by_its_flag(
    pair: list[str], argv: list[str]
) -> None:
    with pytest.raises(ValueError, match=f"does not work with {NAME}: ") as refusal:
        resolve(*pair, *argv)
    assert argv[0].split("=")[0] in str(refusal.value)


def test_hidden_states_of_inner_layers_are_refused_by_sglang_itself(pair: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--enable-return-aux-hidden-states .*'SPECVLM'"):
        resolve(*pair, "--enable-return-aux-hidden-states")


@pytest.mark.parametrize(
    "variable",
    [
        "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
        "SGLANG_ENABLE_OVERLAP_PLAN_STREAM",
        "SGLANG_RUST_SERVER",
    ],
)
def test_variables_that_specvlm_does_not_work_with_are_refused_by_name(
    pair: list[str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "0")
    resolve(*pair)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValueError, match=f"{variable}=1 does not work"):
        resolve(*pair)


def test_a_platform_that_cannot_run_it_is_named(
    pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from specvlm_sglang.cpu.platform import TorchCpuPlatform

    monkeypatch.setattr(
        TorchCpuPlatform, "supports_speculative_algorithm", lambda self, algorithm: False
    )
    with pytest.raises(ValueError, match=f"{NAME} is not supported by TorchCpuPlatform"):
        resolve(*pair)


def test_features_that_were_switched_off_explicitly_are_no_reason_to_refuse(
    pair: list[str],
) -> None:
    arguments = ServerArgs(
        model_path=pair[1],
        speculative_algorithm=NAME,
        speculative_draft_model_path=pair[5],
        enable_lora=False,
    )
    arguments.resolve_once()
    assert resolving_view(arguments).speculative_num_draft_tokens == 6


@pytest.mark.parametrize("draft", [None, "self"])
def test_a_target_without_a_draft_model_drafts_for_itself(
    pair: list[str], draft: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECVLM_DRAFT", draft or "")
    resolved = resolve(*pair[:4])
    assert resolved.speculative_draft_model_path is None
    assert tuple(getattr(resolved, name) for name in TREE_FIELDS) == (5, 1, 6)


def test_a_draft_model_and_what_drafts_must_agree(
    pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECVLM_DRAFT", "self")
    with pytest.raises(ValueError, match="does not work with --specvlm-draft self"):
        resolve(*pair)
    monkeypatch.setenv("SPECVLM_DRAFT", "model")
    resolve(*pair)
    with pytest.raises(ValueError, match="needs a draft model: --speculative-draft-model-path"):
        resolve(*pair[:4])


@pytest.mark.parametrize(
    ("flags", "variables", "named"),
    [
        ((), {"DRAFT_KV_TOKENS": "99"}, "--specvlm-draft-kv-tokens=99 does not work"),
        ((), {"POLICY": "scope+merge"}, r"--specvlm-policy=scope\+merge does not work"),
        ((), {"SELF_LAYERS": "4"}, r"--specvlm-self-layers=4 must be 1 to 3: .* has 4 layers"),
        (
            ("--tp-size=2",),
            {"SELF_LAYERS": "2"},
            "--specvlm-self-layers=2 does not work with --tp-size=2",
        ),
        ((), {"POSITIONS": "contiguous"}, "--specvlm-positions=contiguous does not work"),
    ],
)
def test_what_a_target_that_drafts_for_itself_cannot_do_is_refused_by_flag(
    pair: list[str],
    flags: tuple[str, ...],
    variables: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"SPECVLM_{name}", value)
    with pytest.raises(ValueError, match=named):
        resolve(*pair[:4], *flags)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"page_size": 16, "speculative_eagle_topk": 4}, "--page-size=16 with --speculative-eagle"),
        ({"attention_backend": "trtllm_mha"}, "--attention-backend=trtllm_mha does not work"),
        ({"decode_attention_backend": "fa4"}, "--decode-attention-backend=fa4 does not work"),
        ({"page_size": 16, "attention_backend": "fa3"}, None),
        ({"speculative_eagle_topk": 4, "attention_backend": "triton"}, None),
    ],
)
def test_kept_tokens_lie_in_no_whole_pages(given: dict[str, object], named: str | None) -> None:
    """On a GPU; a CPU's backend is refused trees in pages for any draft."""
    open_fields = dict.fromkeys(
        f"{which}attention_backend" for which in ("", "prefill_", "decode_", "speculative_draft_")
    )
    arguments = SimpleNamespace(
        **{"page_size": 1, "speculative_eagle_topk": 1, "tp_size": 1, "device": "cuda"}
        | open_fields
        | given
    )
    if named is None:
        refuse_drafting_for_itself(arguments, SpecVLMConfig())
        return
    with pytest.raises(ValueError, match=named):
        refuse_drafting_for_itself(arguments, SpecVLMConfig())


def test_layers_that_draft_are_those_of_a_target_that_drafts_for_itself(
    pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECVLM_SELF_LAYERS", "2")
    resolve(*pair[:4])
    with pytest.raises(
        ValueError, match="--specvlm-self-layers=2 does not work with --speculative"
    ):
        resolve(*pair)


def test_a_good_pair_resolves_to_a_chain_without_overlap_on_a_cpu(pair: list[str]) -> None:
    resolved = resolve(*pair, "--enable-mixed-chunk")
    refuse_unsupported(resolved)
    assert tuple(getattr(resolved, name) for name in TREE_FIELDS) == (5, 1, 6)
    assert resolved.disable_overlap_schedule is True
    assert resolved.enable_mixed_chunk is False
    assert resolve(*pair, "--max-running-requests=3").max_running_requests == 3


@pytest.mark.parametrize("kind", ["mxfp8", "nvfp4"])
def test_keys_that_cannot_be_scored_are_refused(pair: list[str], kind: str) -> None:
    """SGLang itself takes them on some GPUs only."""
    resolved = resolve(*pair)

    class OnSuchAGpu:
        kv_cache_dtype = kind

        def __getattr__(self, name: str) -> Any:
            return getattr(resolved, name)

    with pytest.raises(ValueError, match=f"--kv-cache-dtype={kind} does not work with SPECVLM"):
        refuse_unsupported(OnSuchAGpu())


def test_a_pair_that_does_not_match_is_refused_while_the_arguments_are_read(
    pair: list[str], tmp_path: Path
) -> None:
    other = checkpoints.qwen2_text(tmp_path / "text", checkpoints.DRAFT)
    with pytest.raises(ValueError, match="--speculative-draft-model-path must name one of"):
        resolve(*pair[:5], str(other))


def test_a_bad_setting_of_ours_is_refused_while_the_arguments_are_read(
    pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECVLM_TOP_P", "2")
    with pytest.raises(ValueError, match="--specvlm-top-p"):
        ServerArgs(
            model_path=pair[1],
            speculative_algorithm=NAME,
            speculative_draft_model_path=pair[5],
        ).resolve_once()


def test_sglang_sees_a_standalone_draft_without_hidden_states() -> None:
    algorithm = SpeculativeAlgorithm.from_string("specvlm")
    assert isinstance(algorithm, SpecVLMAlgorithm)
    assert algorithm.is_standalone()
    assert algorithm.has_draft_kv()
    assert algorithm.need_topk()
    assert algorithm.supports_grammar_overlap()
    # An EAGLE would change the radix cache's keys and capture hidden states.
    assert not algorithm.is_eagle()
    assert not algorithm.is_none()
    assert not algorithm.carries_draft_hidden_states()
    assert algorithm.get_platform_worker_cls() is None


def test_the_scheduler_can_relay_its_batches() -> None:
    from sglang.srt.managers.overlap_utils import FutureMap
    from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

    table = ReqToTokenPool(4, 16, "cpu", enable_memory_saver=False)
    algorithm = SpeculativeAlgorithm.from_string(NAME)
    assert isinstance(algorithm.create_future_map("cpu", table), FutureMap)


def test_a_chain_on_a_cpu_follows_its_costs_unless_its_length_is_given(pair: list[str]) -> None:
    for flags in ((), ("--speculative-adaptive",), ("--speculative-eagle-topk", "1")):
        found = resolve(*pair, *flags)
        assert found.speculative_adaptive
        assert (found.speculative_num_steps, found.speculative_num_draft_tokens) == (5, 6)
    for flags in (
        ("--speculative-num-steps", "3"),
        ("--speculative-num-draft-tokens", "4"),
        ("--speculative-eagle-topk", "4"),
    ):
        found = resolve(*pair, *flags)
        assert not found.speculative_adaptive
        assert found.speculative_num_steps == 3


@pytest.mark.parametrize(("asked", "steps"), [(False, None), (True, 5)])
def test_a_chain_on_a_gpu_follows_its_costs_where_that_is_asked_for(
    asked: bool, steps: int | None
) -> None:
    arguments = SimpleNamespace(
        device="cuda",
        speculative_adaptive=asked,
        speculative_num_steps=None,
        speculative_num_draft_tokens=None,
        speculative_eagle_topk=None,
    )
    resolve_pace(arguments)
    assert (arguments.speculative_adaptive, arguments.speculative_num_steps) == (asked, steps)


def test_adaptive_chains_keep_our_number_of_steps_as_their_most(pair: list[str]) -> None:
    found = resolve(*pair, "--speculative-adaptive", "--speculative-num-steps", "4")
    assert found.speculative_adaptive
    assert found.speculative_num_draft_tokens == 5


def test_adaptive_steps_are_switched_off_for_a_tree(pair: list[str]) -> None:
    found = resolve(*pair, "--speculative-adaptive", "--speculative-eagle-topk", "4")
    assert not found.speculative_adaptive


def test_why_steps_cannot_change_is_said_by_flag() -> None:
    def why(topk: int | None) -> str | None:
        return why_not_adaptive(SimpleNamespace(speculative_eagle_topk=topk))

    assert why(None) is why(1) is None
    assert "--speculative-eagle-topk=4 asks for a tree" in str(why(4))


def test_other_algorithms_keep_sglangs_rules_for_adaptive_steps() -> None:
    from sglang.srt.speculative.adaptive_spec_params import adaptive_unsupported_reason

    arguments = prepare_server_args(["--model-path", "x", "--speculative-algorithm", "NGRAM"])
    assert "only EAGLE/EAGLE3 are supported" in str(adaptive_unsupported_reason(arguments))
