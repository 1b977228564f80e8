"""Whole rounds on ``cuda`` tensors without contents: waits, launches, devices, addresses.

What nothing of this shows: numbers, graph capture, races, memory, and kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.roofline import ROUND_LAUNCHES
from specvlm_sglang.pruning.registry import find_policy, shipped_policies
from tests.support import checkpoints, families
from tests.support.fake_cuda_models import SAMPLING, Case
from tests.support.fake_cuda_round import run
from tests.support.llava_checkpoints import DRAFT_TOWER, llava_onevision

DEMO = Path(__file__).parents[1] / "specvlm_sglang" / "demo" / "models"
QWEN = Case(str(DEMO / "target"), str(DEMO / "draft"), "fa3")
ALONE = replace(QWEN, draft=None)
BACKENDS = ("fa3", "triton", "flashinfer")
EVERY_POLICY = tuple(shipped_policies())
UNMIXED = tuple(name for name in EVERY_POLICY if not find_policy(name).merges)
"""Those that a target that drafts for itself can follow."""

QUICK = {
    "fa3 chain": replace(QWEN, policies=EVERY_POLICY),
    "fa3 tree": replace(QWEN, topk=4),
    "triton chain": replace(QWEN, backend="triton"),
    "triton tree": replace(QWEN, backend="triton", topk=4),
    "flashinfer chain": replace(QWEN, backend="flashinfer"),
    "flashinfer tree": replace(QWEN, backend="flashinfer", topk=4),
    "fa3 for itself": replace(ALONE, policies=UNMIXED),
    "triton for itself": replace(ALONE, backend="triton"),
    "flashinfer for itself": replace(ALONE, backend="flashinfer"),
    "triton tree for itself": replace(ALONE, backend="triton", topk=4),
}
PAGED = {
    f"{backend} {shape} in pages": replace(model, backend=backend, topk=topk, page=16)
    for backend in BACKENDS
    for shape, model, topk in (("chain", QWEN, 1), ("tree", QWEN, 4), ("for itself", ALONE, 1))
}
KNOWN = "known lines"
FAMILIES = (
    "LLaVA-OneVision",
    "LLaVA-OneVision, original positions",
    "text",
    "Qwen3-VL",
    "Qwen2-VL",
    "GLM-V",
    "InternVL-qwen3",
)

Allowed = Mapping[str, int]
PREFILL: Allowed = {"_compute_mrope_positions_extend": 1}
"""SGLang's functions that make the host wait in a prefill, and how often.

M-RoPE ids come out of pageable memory.
"""
BEGINNING: Allowed = {"_move_items_to_device": 1}
"""So do a new video's pixels; by then the first token has been sent (`host.first_token`)."""
FLASHINFER_PREFILL: Allowed = {"call_begin_forward": 4}
"""A pass is planned from the device's lengths."""
FLASHINFER_ROUND: Allowed = {"call_begin_forward": 16}
"""Without graphs each of four passes is planned so."""
TREE_IN_PAGES: Allowed = {"duplicate_prefix_tail_to_draft_branches": 2}
"""Two boolean masks."""
WITH_DETAIL_STEP = "prefill with detail"
WITH_DETAIL = "report/detail.py:add_selection"
"""The one place of ours that waits, for a request that asks to see its scores."""

STEADY = {"greedy": 8, "sampled": 18, "penalties": 90}
"""Launches of ours in a round of two requests that do not grow."""
FOR_ITSELF = 13
"""And where the target drafts for itself: its columns are looked up, and the loop is ours."""
PER_ROW = 2
"""And for each row that grows."""
BETWEEN = 10
"""And where rows were freed since the last one."""
PER_PREFILL = {"": 40, "penalties": 50, "after a retraction": 70}
"""Of two prompts, one with a video, on a target of four layers; more where its end is named."""
PER_BEGINNING = {"": 125, "change": 160, "evs": 140, "spread": 2400, "scope": 1200, "floc": 1200}
"""Of the drafts of these prompts, beside the round that they begin with; by policy.

`spread` and `cover` make as many small launches as their definitions allow sweeps and steps.
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("fake-cuda")
    llava = Case(
        str(llava_onevision(folder / "target")),
        str(llava_onevision(folder / "draft", checkpoints.DRAFT, DRAFT_TOWER, seed=1)),
        "fa3",
        sampling=("greedy",),
    )
    text = replace(
        llava,
        target=str(checkpoints.qwen2_text(folder / "text-target")),
        draft=str(checkpoints.qwen2_text(folder / "text-draft", checkpoints.DRAFT, seed=1)),
        policies=(),
    )
    others = [
        replace(
            llava,
            target=str(family.target(folder / f"{family.name}-target")),
            draft=str(family.draft(folder / f"{family.name}-draft")),
        )
        for family in families.FAMILIES
        if family.name in FAMILIES
    ]
    by_name = (llava, replace(llava, positions="original"), text, *others)
    return {**QUICK, **PAGED, **dict(zip(FAMILIES, by_name, strict=True))}


@pytest.fixture(scope="module")
def found(cases: dict[str, Case]) -> Any:
    """From a case's name to what it did; all quick ones come from one process, and so on."""

    @cache
    def group(slow: bool) -> dict[str, dict[str, Any]]:
        names = list(PAGED) if slow else [*QUICK, *FAMILIES]
        done, known_lines = run([cases[name] for name in names])
        return {**dict(zip(names, done, strict=True)), KNOWN: {"error": None, "steps": known_lines}}

    def one(name: str) -> tuple[Case | None, dict[str, Any]]:
        done = group(name in PAGED)[name]
        assert done["error"] is None, done["error"]
        return cases.get(name), done["steps"]

    return one


every_case = pytest.mark.parametrize(
    "name",
    [*QUICK, *FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in PAGED)],
)


def allowed(case: Case, step: str) -> Counter[str]:
    """What SGLang may wait for in this step."""
    found: Counter[str] = Counter()
    flashinfer = case.backend == "flashinfer"
    if step.startswith("prefill"):
        found.update(PREFILL)
    if step.startswith("beginning") or step == WITH_DETAIL_STEP:
        found.update(BEGINNING)
    if step.startswith(("prefill", "beginning")):
        found.update(FLASHINFER_PREFILL if flashinfer else {})
    if step == WITH_DETAIL_STEP:
        found.update(FLASHINFER_PREFILL if flashinfer else {})
    if "round" in step or step.startswith("beginning"):
        found.update(FLASHINFER_ROUND if flashinfer else {})
        found.update(TREE_IN_PAGES if case.topk > 1 and case.page > 1 else {})
    return found


@every_case
def test_nothing_of_ours_waits_and_of_sglangs_only_what_is_known(found: Any, name: str) -> None:
    case, steps = found(name)
    for step, seen in steps.items():
        ours = [wait for wait in seen["waits"] if wait["ours"]]
        if step == WITH_DETAIL_STEP:
            assert {wait["where"] for wait in ours} <= {WITH_DETAIL}, (step, ours)
        else:
            assert not ours, (step, ours)
        functions: Counter[str] = Counter()
        for wait in seen["waits"]:
            if not wait["ours"]:
                functions[wait["where"].rpartition(":")[2]] += wait["times"]
        new = functions - allowed(case, step)
        assert not new, (step, new, seen["waits"])


@every_case
def test_every_kernel_is_handed_memory_of_the_device(found: Any, name: str) -> None:
    _, steps = found(name)
    assert not [mix for seen in steps.values() for mix in seen["mixes"]]


@every_case
def test_a_round_launches_little_of_ours(found: Any, name: str) -> None:
    case, steps = found(name)
    for sampling in case.sampling:
        ceiling = STEADY[sampling] + (0 if case.draft else FOR_ITSELF)
        for step, more in (("round", 0), ("growing round", 2 * PER_ROW)):
            ours = steps[f"{step} {sampling}"]["ours"]
            assert len(ours) <= ceiling + more, (step, sampling, len(ours), ours)
    ceiling = STEADY[case.sampling[-1]] + BETWEEN + (0 if case.draft else FOR_ITSELF)
    for step in ("abort", "retraction", "flush"):
        ours = steps[f"round after {'a' if step != 'abort' else 'an'} {step}"]["ours"]
        assert len(ours) <= ceiling, (step, len(ours), ours)


def test_the_roofline_counts_the_launches_of_a_steady_round(found: Any) -> None:
    _, steps = found(next(iter(QUICK)))
    assert steps["round greedy"]["launches"] == ROUND_LAUNCHES


@every_case
def test_a_prefill_launches_a_bounded_number_of_ours(found: Any, name: str) -> None:
    _, steps = found(name)
    for step, seen in steps.items():
        if step.startswith("prefill"):
            ceiling = max(most for end, most in PER_PREFILL.items() if step.endswith(end))
            ceiling += PER_BEGINNING[""] if step == WITH_DETAIL_STEP else 0
            assert len(seen["ours"]) <= ceiling, (step, len(seen["ours"]))


@every_case
def test_a_beginning_launches_a_bounded_number_of_ours(found: Any, name: str) -> None:
    case, steps = found(name)
    for step, seen in steps.items():
        if not step.startswith("beginning"):
            continue
        last = case.sampling[-1] if step.endswith("retraction") else "greedy"
        sampling = next((one for one in case.sampling if step.endswith(one)), last)
        ceiling = STEADY[sampling]
        ceiling += max(most for end, most in PER_BEGINNING.items() if step.endswith(end))
        assert len(seen["ours"]) <= ceiling, (step, len(seen["ours"]))


@every_case
def test_what_every_round_reads_stays_where_it_is(found: Any, name: str) -> None:
    """A CUDA graph reads the addresses that it was captured with."""
    case, steps = found(name)
    addresses = [seen["addresses"] for seen in steps.values()]
    assert all(one == addresses[0] for one in addresses)
    rounds = [seen["captured"] for seen in steps.values() if seen["passes"]["draft"]]
    read = {tuple(captured) for captured in rounds} - {()}
    if case.positions == "original":
        assert read == {(addresses[0]["offsets"],)}
    else:
        assert not read


@every_case
def test_drafts_are_made_where_a_request_has_one_and_only_there(found: Any, name: str) -> None:
    case, steps = found(name)
    for step, seen in steps.items():
        modes = [mode for mode, _ in seen["passes"]["draft"]]
        if case.draft is None:
            drafts = "round" in step or step.startswith("beginning")
            drafts &= step != "round without a draft"
            assert modes == ["DECODE"] * (3 if drafts else 0), step
        elif step.startswith("beginning"):
            assert modes == ["EXTEND", "DECODE", "DECODE", "DRAFT_EXTEND_V2"], step
        elif "round" in step and step != "round without a draft":
            assert modes == ["DECODE", "DECODE", "DRAFT_EXTEND_V2"], step
        elif step == WITH_DETAIL_STEP:
            assert modes == ["EXTEND"], step
        else:
            assert modes == [], step


@every_case
def test_a_flush_launches_nothing(found: Any, name: str) -> None:
    """It comes on another stream than the one that reads the slots."""
    _, steps = found(name)
    assert steps["flush"]["launches"] == 0


def test_every_way_of_sampling_was_there(found: Any) -> None:
    _, steps = found("fa3 chain")
    assert {f"round {sampling}" for sampling in SAMPLING} <= set(steps)
    assert {f"prefill by {policy}" for policy in EVERY_POLICY} <= set(steps)


def test_what_waits_on_a_gpu_is_seen_and_nothing_else(found: Any) -> None:
    _, noted = found(KNOWN)
    assert noted == {
        "one element is assigned": "waits",
        "a range is assigned": "goes on",
        "a list of places is assigned": "waits",
        "a value is read": "waits",
        "values are listed": "waits",
        "a mask selects": "waits",
        "a pageable copy": "waits",
        "a pinned copy that blocks": "waits",
        "a pinned copy": "goes on",
        "a tensor made of a list": "waits",
        "two devices": "fails",
    }
