"""A target that drafts for itself in SGLang's own scheduler, without a server around it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.support import hf, one_process

NEW_TOKENS = 24
SHAPES = {
    "chain": ("--speculative-num-steps", "3"),
    "one step": ("--speculative-num-steps", "1"),
    "tree": (
        *("--speculative-num-steps", "4"),
        *("--speculative-eagle-topk", "4"),
        *("--speculative-num-draft-tokens", "16"),
    ),
    "pages": ("--speculative-num-steps", "3", "--page-size", "16"),
    "half the layers": ("--speculative-num-steps", "3", "--specvlm-self-layers", "2"),
    "steps that pay, chunked": (
        *("--speculative-num-steps", "3", "--speculative-adaptive"),
        *("--chunked-prefill-size", "16"),
    ),
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(5, 300) for _ in range(length)] for length in (7, 23, 40, 61, 12, 33)]


@pytest.fixture(scope="module")
def expected(vl_target: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers answers, past any end token."""
    model = hf.load_model(vl_target)
    found = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            for _ in range(NEW_TOKENS):
                newest = model(input_ids=ids).logits[0, -1].argmax().view(1, 1)
                ids = torch.cat([ids, newest], dim=1)
            found.append(ids[0, len(prompt) :].tolist())
    return found


def check(
    target: Path,
    prompts: list[list[int]],
    expected: list[list[int]],
    shape: str,
    hidden: float,
    ranks: int = 1,
) -> list[list[int]]:
    """Serve alone and together, compare, and return the histograms of right drafts."""
    line = ("--dtype", "float32", "--speculative-algorithm", "SPECVLM", *SHAPES[shape])
    groups = [prompts[:1], prompts[3:4], prompts]
    histograms = []
    for found in one_process.run(
        target,
        (*line, "--max-total-tokens", "4096"),
        groups,
        new_tokens=NEW_TOKENS,
        hidden=hidden,
        ranks=ranks,
    ):
        wanted = [expected[:1], expected[3:4], expected]
        assert [[one["ids"] for one in group] for group in found["answers"]] == wanted
        cold = {one["cold"] for group in found["answers"] for one in group if one["cold"]}
        if shape == "steps that pay, chunked":
            cold = {reason for reason in cold if not reason.startswith("would not pay")}
        assert not cold
        assert len(set(found["free"])) == 1, found["free"]
        histograms += [one["histogram"] for group in found["answers"] for one in group]
    return histograms


def test_a_chain_that_reads_everything_is_always_accepted(
    vl_target: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    for histogram in check(vl_target, prompts, expected, "chain", 0.0):
        # The last round may end at the token limit; no other rejects anything.
        assert sum(histogram[:-1]) <= 1, histogram


@pytest.mark.slow
def test_where_nothing_is_left_out_the_adaptive_server_decodes_plainly(
    vl_target: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    line = (
        "--dtype",
        "float32",
        "--speculative-algorithm",
        "SPECVLM",
        "--max-total-tokens",
        "4096",
    )
    shape = SHAPES["steps that pay, chunked"]
    (found,) = one_process.run(vl_target, (*line, *shape), [prompts], new_tokens=NEW_TOKENS)
    assert found["pace"]["hopeless"] == "every draft accepted would give 1.000x at the most"
    (answers,) = found["answers"]
    assert [one["ids"] for one in answers] == expected
    for one in answers:
        # A round in which a draft begins drafts; no other does, though all would be accepted.
        assert sum(one["histogram"][1:]) <= len(prompts), one
        assert one["histogram"][0] > NEW_TOKENS // 2, one


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_draft_does_not_read_changes_no_token(
    vl_target: Path, prompts: list[list[int]], expected: list[list[int]], shape: str
) -> None:
    histograms = check(vl_target, prompts, expected, shape, 0.3)
    rejected = sum(sum(histogram[:-1]) for histogram in histograms)
    right = sum(sum(histogram[1:]) for histogram in histograms)
    assert rejected > 0
    assert right > 0


@pytest.mark.slow
def test_two_ranks_draft_and_answer_the_same(
    vl_target: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    histograms = check(vl_target, prompts, expected, "chain", 0.3, ranks=2)
    half = len(histograms) // 2
    assert histograms[:half] == histograms[half:]
