"""Sampled tokens of a SPECVLM server follow the target's distribution."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from tests.serving.specvlm import CHAIN, launch
from tests.support import hf

pytestmark = pytest.mark.serving

# A correct server fails one run in a hundred thousand.
P_VALUE = 1e-5
PROMPT = [50, 61, 72, 83, 94, 105]
SMALLEST_BIN = 5.0


def filtered(logits: torch.Tensor, temperature: float, top_p: float, min_p: float) -> torch.Tensor:
    """What plain sampling draws from, float64."""
    probabilities = (logits.double() / temperature).softmax(-1)
    ranked, order = probabilities.sort(descending=True)
    keep = ranked.cumsum(0) - ranked < top_p
    keep &= ranked >= min_p * ranked[0]
    kept = torch.zeros_like(probabilities).scatter(0, order[keep], ranked[keep])
    return kept / kept.sum()


@torch.no_grad()
def next_logits(target: Path, ids: list[int]) -> torch.Tensor:
    return hf.load_model(target)(input_ids=torch.tensor([ids])).logits[0, -1]


def p_value(counts: Counter[int], expected: torch.Tensor) -> float:
    """Chi-square of the counts, rare tokens together in one bin."""
    total = sum(counts.values())
    frequent = [token for token in range(len(expected)) if expected[token] * total >= SMALLEST_BIN]
    found = [counts[token] for token in frequent]
    wanted = [float(expected[token]) * total for token in frequent]
    rest = total - sum(wanted)
    if rest >= SMALLEST_BIN:
        found.append(total - sum(found))
        wanted.append(rest)
    else:
        # Nothing may fall where (almost) nothing is expected.
        assert total - sum(found) <= 10 * max(rest, 1.0)
        scale = sum(found) / sum(wanted)
        wanted = [value * scale for value in wanted]
    if len(found) == 1:
        return 1.0
    return float(chisquare(found, wanted).pvalue)


@pytest.mark.parametrize(
    ("sampling", "samples"),
    [
        ({"temperature": 1.0}, 5000),
        ({"temperature": 0.7, "top_p": 0.8}, 2500),
        ({"temperature": 1.0, "min_p": 0.2}, 2500),
    ],
    ids=["plain", "top-p", "min-p"],
)
def test_drafted_tokens_follow_the_targets_distribution(
    serve: Any, vl_target: Path, vl_draft: Path, sampling: dict[str, float], samples: int
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    answers = []
    while len(answers) < samples:
        answers += server.generate(
            [PROMPT] * 10, max_new_tokens=4, ignore_eos=True, n=50, **sampling
        )
    accepted = sum(answer["meta_info"]["spec_num_correct_drafts"] for answer in answers)
    assert accepted > len(answers) // 50, "hardly a draft was accepted: nothing is shown"
    settings = (
        sampling["temperature"],
        sampling.get("top_p", 1.0),
        sampling.get("min_p", 0.0),
    )
    after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for answer in answers:
        ids = answer["output_ids"]
        for position in range(3):
            after[tuple(ids[:position])][ids[position]] += 1
    tested = 0
    for prefix, counts in after.items():
        if sum(counts.values()) < 150:
            continue
        expected = filtered(next_logits(vl_target, [*PROMPT, *prefix]), *settings)
        assert p_value(counts, expected) > P_VALUE, (prefix, sampling)
        tested += len(prefix) > 0
    assert tested >= 3, "too few samples share a prefix"
