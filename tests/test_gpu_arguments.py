"""What SGLang makes of SPECVLM's arguments on a GPU, as far as it shows without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.algorithm import NAME
from specvlm_sglang.tools.sizing.checkpoint import dimensions_of
from specvlm_sglang.tools.sizing.memory import static_fraction
from tests.support.pretended_gpu import COMPILER, resolve

TREE = ("--speculative-num-steps", "4", "--speculative-eagle-topk", "4")
CHAIN = ("--speculative-num-steps", "3", "--speculative-eagle-topk", "1")
PAGES = ("--page-size", "64")
GRAPHS = "cuda_graph_config"

CHAINS: dict[str, tuple[str, ...]] = {"no flag": (), "chain": CHAIN}
TREES: dict[str, tuple[str, ...]] = {"tree": TREE, "tree in pages": (*TREE, *PAGES)}
CHAIN_DEFAULT = {"9.0": "fa3", "8.0": "flashinfer", "10.0": "flashinfer"}
GIVEN = ("fa3", "triton", "flashinfer")
REFUSED = {
    "torch_native": (("--attention-backend", "torch_native"), "--attention-backend=torch_native"),
    "draft": (
        ("--speculative-draft-attention-backend", "flex_attention"),
        "--speculative-draft-attention-backend=flex_attention",
    ),
    "tree": (
        ("--speculative-draft-attention-backend", "trtllm_mha", *TREE),
        "verifies chains only, and --speculative-eagle-topk=4",
    ),
    "fa4 in pages": (
        ("--attention-backend", "fa4", *TREE, "--page-size", "128"),
        "--page-size=128 with --speculative-eagle-topk=4",
    ),
}


GRAPHS_REFUSED = {
    "full graphs": ("--cuda-graph-backend-prefill", "full"),
    "broken graphs": ("--cuda-graph-config", '{"prefill": {"backend": "breakable"}}'),
}
REFUSED |= {name: (more, "--cuda-graph-backend-prefill=") for name, more in GRAPHS_REFUSED.items()}


@pytest.fixture(
    scope="module",
    params=[
        "9.0",
        pytest.param("8.0", marks=pytest.mark.slow),
        pytest.param("10.0", marks=pytest.mark.slow),
    ],
)
def resolved(
    request: pytest.FixtureRequest,
    vl_target: Path,
    vl_draft: Path,
    text_target: Path,
    text_draft: Path,
) -> dict[str, dict[str, Any]]:
    """Resolved fields or error by case, all from one process."""
    model = ("--model-path", str(vl_target))
    specvlm = ("--speculative-algorithm", NAME, "--speculative-draft-model-path", str(vl_draft))
    lines = {"plain": model}
    lines |= {name: (*model, *specvlm, *more) for name, more in (CHAINS | TREES).items()}
    lines |= {name: (*model, *specvlm, "--attention-backend", name) for name in GIVEN}
    text = [str(model) for model in (text_target, text_draft)]
    lines["float32"] = (*model, *specvlm, "--dtype", "float32")
    lines["plain text"] = ("--model-path", text[0])
    lines["text"] = ("--model-path", text[0], *specvlm[:-1], text[1])
    lines |= {f"refused {key}": (*model, *specvlm, *more) for key, (more, _) in REFUSED.items()}
    found = resolve(request.param, list(lines.values()))
    return {"capability": {"major": request.param}, **dict(zip(lines, found, strict=True))}


@pytest.mark.parametrize("case", [*CHAINS, *TREES])
def test_trees_and_most_gpus_get_flashinfer_and_chains_on_sm_90_keep_fa3(
    resolved: dict[str, dict[str, Any]], case: str
) -> None:
    found = resolved[case]
    capability = resolved["capability"]["major"]
    expected = "flashinfer" if case in TREES else CHAIN_DEFAULT[capability]
    assert found["device"] == "cuda"
    assert found["attention_backend"] == expected
    # None: the draft takes the target's.
    assert found["speculative_draft_attention_backend"] is None
    assert found["prefill_attention_backend"] is found["decode_attention_backend"] is None


def test_float32_is_computed_by_kernels_that_can(resolved: dict[str, dict[str, Any]]) -> None:
    assert resolved["float32"]["attention_backend"] == "triton"
    assert resolved["float32"]["mm_attention_backend"] == "triton_attn"
    assert resolved["no flag"]["mm_attention_backend"] is None


@pytest.mark.slow
def test_without_kernels_or_a_compiler_sglangs_default_stays(
    vl_target: Path, vl_draft: Path
) -> None:
    pair = ("--model-path", str(vl_target), "--speculative-draft-model-path", str(vl_draft))
    line = (*pair, "--speculative-algorithm", NAME, "--speculative-eagle-topk", "1")
    (without,) = resolve("10.0", [line], **{COMPILER: "1"})
    (with_kernels,) = resolve("10.0", [line])
    assert without["attention_backend"] == "trtllm_mha"
    assert with_kernels["attention_backend"] == "flashinfer"


def test_plain_serving_keeps_sglangs_own_default(resolved: dict[str, dict[str, Any]]) -> None:
    expected = {"9.0": "fa3", "8.0": "flashinfer", "10.0": "trtllm_mha"}
    assert resolved["plain"]["attention_backend"] == expected[resolved["capability"]["major"]]


@pytest.mark.parametrize("backend", GIVEN)
def test_a_backend_that_was_named_stays(resolved: dict[str, dict[str, Any]], backend: str) -> None:
    assert resolved[backend]["attention_backend"] == backend


def test_decoding_is_overlapped_and_captured_in_graphs_and_prefill_is_not(
    resolved: dict[str, dict[str, Any]],
) -> None:
    found = resolved["no flag"]
    assert not found["disable_overlap_schedule"]
    assert not found["enable_mixed_chunk"]
    assert found["max_running_requests"] == 48
    assert found[GRAPHS]["decode"]["backend"] == "full"
    # The queries of a prompt are captured in Python, layer by layer.
    assert found[GRAPHS]["prefill"]["backend"] == "disabled"


def test_prefill_is_not_captured_where_sglang_would(resolved: dict[str, dict[str, Any]]) -> None:
    assert resolved["plain text"][GRAPHS]["prefill"]["backend"] == "breakable"
    assert resolved["text"][GRAPHS]["prefill"]["backend"] == "disabled"
    assert resolved["text"][GRAPHS]["decode"]["backend"] == "full"


@pytest.mark.parametrize("case", REFUSED)
def test_a_backend_that_cannot_do_it_is_refused_by_its_flag(
    resolved: dict[str, dict[str, Any]], case: str
) -> None:
    assert REFUSED[case][1] in resolved[f"refused {case}"]["error"]


def test_the_memory_that_doctor_sizes_for_is_what_sglang_would_take(
    resolved: dict[str, dict[str, Any]], vl_target: Path
) -> None:
    tower = dimensions_of(str(vl_target)).vision
    expected = static_fraction(80.0, 1, tower)
    assert resolved["no flag"]["mem_fraction_static"] == pytest.approx(expected, rel=1e-6)
