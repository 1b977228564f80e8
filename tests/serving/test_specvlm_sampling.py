"""Sampled tokens of a SPECVLM server follow the target's distribution."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import GenerationConfig

from tests.serving.specvlm import CHAIN, launch
from tests.support import hf
from tests.support.server import Server

pytestmark = pytest.mark.serving

# A correct server fails one run in a hundred thousand.
P_VALUE = 1e-5
PROMPT = [50, 61, 72, 83, 94, 105]
SMALLEST_BIN = 5.0
ENDS = [448, 449]
"""The end token and the padding token of the tests' tokenizer: `generation_config.json`'s."""
END = str(ENDS[0])
REPEATING = ([78, 297, 62, 88, 149, 353], [76, 330, 348, 311, 216, 283])
"""Prompts after which tokens come again within three, and are drafted again."""
PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens")


SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({"temperature": 1.0}, 5000),
    "top-p": ({"temperature": 0.7, "top_p": 0.8}, 2500),
    "min-p": ({"temperature": 1.0, "min_p": 0.2}, 2500),
    "top-k": ({"temperature": 1.3, "top_k": 4}, 1000),
    "frequency": ({"temperature": 1.0, "frequency_penalty": 1.2}, 1000),
    "presence": ({"temperature": 1.0, "presence_penalty": 1.2}, 1000),
    "repetition": ({"temperature": 1.0, "repetition_penalty": 1.3}, 1000),
    "boosts": (
        {"temperature": 1.0, "frequency_penalty": -0.8, "presence_penalty": -0.8},
        1000,
    ),
    "minimum": ({"temperature": 1.0, "logit_bias": {END: 10.0}, "min_new_tokens": 2}, 1000),
    "all penalties, top-p": (
        {
            "temperature": 0.8,
            "frequency_penalty": 0.4,
            "presence_penalty": 0.4,
            "repetition_penalty": 1.1,
            "top_p": 0.95,
        },
        1000,
    ),
    "a penalty, a bias, min-p": (
        {
            "temperature": 1.2,
            "repetition_penalty": 1.2,
            "logit_bias": {"357": -1.0, "379": -0.5},
            "min_p": 0.02,
        },
        1000,
    ),
}
"""Sampling parameters, and how many answers are drawn with them for each prompt."""
QUICK = ("plain", "top-p", "all penalties, top-p", "a penalty, a bias, min-p")
"""Between them every parameter but top-k and a minimum; each alone is slow."""


def penalised(
    logits: torch.Tensor, output: Sequence[int], sampling: dict[str, Any]
) -> torch.Tensor:
    """Logits as SGLang hands them to its sampler, after these output tokens; float64.

    Only output tokens count. Frequency takes off its penalty for each occurrence, presence once;
    both, and the ban of end tokens, come before the scaling by repetition, biases come last
    (`SamplingBatchInfo.apply_logits_bias`).
    """
    logits = logits.double().clone()
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=len(logits))
    logits -= sampling.get("frequency_penalty", 0.0) * counts
    logits -= sampling.get("presence_penalty", 0.0) * (counts > 0)
    if len(output) < sampling.get("min_new_tokens", 0):
        logits[ENDS] = -torch.inf
    factor = sampling.get("repetition_penalty", 1.0)
    scaled = torch.where(logits > 0, logits / factor, logits * factor)
    logits = torch.where(counts > 0, scaled, logits)
    for token, bias in sampling.get("logit_bias", {}).items():
        logits[int(token)] += bias
    return logits


def filtered(logits: torch.Tensor, sampling: dict[str, Any]) -> torch.Tensor:
    """What plain sampling draws from, float64."""
    probabilities = (logits / sampling["temperature"]).softmax(-1)
    ranked, order = probabilities.sort(descending=True)
    keep = ranked.cumsum(0) - ranked < sampling.get("top_p", 1.0)
    keep &= ranked >= sampling.get("min_p", 0.0) * ranked[0]
    keep[sampling.get("top_k", len(keep)) :] = False
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
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in SETTINGS],
)
def test_drafted_tokens_follow_the_targets_distribution(
    serve: Any, vl_target: Path, vl_draft: Path, name: str
) -> None:
    sampling, samples = SETTINGS[name]
    assert GenerationConfig.from_pretrained(vl_target).eos_token_id == ENDS
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    plain = {name: value for name, value in sampling.items() if name not in PENALTIES}
    tested = told_apart = 0
    for prompt in [PROMPT] if plain == sampling else REPEATING:
        for prefix, counts in drawn(server, prompt, sampling, samples).items():
            logits = next_logits(vl_target, [*prompt, *prefix])
            expected = filtered(penalised(logits, prefix, sampling), sampling)
            assert p_value(counts, expected) > P_VALUE, (prompt, prefix, sampling)
            tested += len(prefix) > 0
            if plain != sampling:
                unaware = filtered(penalised(logits, prefix, plain), plain)
                told_apart += len(prefix) > 0 and not is_likely(counts, unaware)
    assert tested >= 3, "too few samples share a prefix"
    assert told_apart or plain == sampling, "the counts would pass without the penalties too"


def drawn(
    server: Server, prompt: list[int], sampling: dict[str, Any], samples: int
) -> dict[tuple[int, ...], Counter[int]]:
    """Tokens drawn after each prefix of at most two that is common enough to be tested."""
    answers = []
    while len(answers) < samples:
        answers += server.generate(
            [prompt] * 10,
            max_new_tokens=4,
            ignore_eos="min_new_tokens" not in sampling,
            n=50,
            **sampling,
        )
    accepted = sum(answer["meta_info"]["spec_num_correct_drafts"] for answer in answers)
    assert accepted > len(answers) // 50, "hardly a draft was accepted: nothing is shown"
    after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for answer in answers:
        ids = answer["output_ids"]
        for position in range(min(3, len(ids))):
            after[tuple(ids[:position])][ids[position]] += 1
    return {prefix: counts for prefix, counts in after.items() if counts.total() >= 150}


def is_likely(counts: Counter[int], expected: torch.Tensor) -> bool:
    """Whether the counts pass as samples of this distribution."""
    try:
        return p_value(counts, expected) > P_VALUE
    except AssertionError:
        return False
