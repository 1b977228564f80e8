"""Accept length of a draft along the target's greedy answers, from one forward a setting.

Greedy drafting proposes, as long as it is right, what the draft predicts after the target's own
tokens; the first wrong one ends the round. So one forward over the answer tells all its rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.tinyvid.clips import Prompt
from benchmarks.tinyvid.reader import Reader
from reference.policies import POLICIES as POLICY_NAMES
from reference.policies import SCORERS, SELECTORS
from reference.positions import kept_prompt_indices
from reference.selection import select_video_tokens
from specvlm_sglang.pruning import selection as torch_selection

CHAIN = 5
"""Drafted tokens per round."""
RETENTIONS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.0)
POLICIES = (
    "specvlm",
    "specvlm-grid",
    "attention",
    "uniform",
    "uniform-grid",
    "random",
    "frames",
    "window-front",
    "window-middle",
    "window-back",
)
SCHEMES = ("mrope", "contiguous")
"""Positions of kept tokens: the full prompt's, or those of the pruned prompt counted anew."""


@dataclass(frozen=True)
class Setting:
    """What the draft is shown: a policy at a retention, with a scheme of positions and top_p."""

    policy: str
    retention: float
    scheme: str = "mrope"
    top_p: float = 0.2


@dataclass(frozen=True)
class Rounds:
    """Tokens emitted in verify rounds, and the number of rounds, of one answer."""

    tokens: int
    rounds: int


def count_rounds(predicted: Sequence[int], answer: Sequence[int], chain: int = CHAIN) -> Rounds:
    """Rounds in which a draft with these predictions helps to emit an answer.

    Parameters
    ----------
    predicted : sequence of int
        The draft's greedy token before each token of the answer.
    answer : sequence of int
        The target's greedy tokens; the first comes from prefill and belongs to no round.
    chain : int
        Drafted tokens a round, at least 1.
    """
    if chain < 1:
        raise ValueError(f"chain must be at least 1, got {chain}")
    start, rounds = 1, 0
    while start < len(answer):
        accepted = 0
        while (
            accepted < chain
            and start + accepted < len(answer)
            and predicted[start + accepted] == answer[start + accepted]
        ):
            accepted += 1
        start, rounds = start + accepted + 1, rounds + 1
    return Rounds(len(answer) - 1, rounds)


def settings(policies: Sequence[str] | None = None) -> list[Setting]:
    """What is compared at every retention.

    Parameters
    ----------
    policies : sequence of str, optional
        Only these, beside the full prompt and no video. By default all of `POLICIES`, and the
        paper's also with contiguous positions and other shares of Stage I.
    """
    if policies is not None:
        chosen = [Setting(policy, r) for r in RETENTIONS[1:-1] for policy in policies]
        return [Setting("none", 1.0), Setting("none", 0.0), *chosen]
    found = [Setting("none", 1.0), Setting("none", 0.0), Setting("none", 0.0, "contiguous")]
    for retention in RETENTIONS[1:-1]:
        found += [Setting(policy, retention) for policy in POLICIES]
        found.append(Setting("specvlm", retention, "contiguous"))
        found += [Setting("specvlm", retention, top_p=p) for p in (0.1, 0.4)]
    return found


def measure(
    target: Reader,
    draft: Reader,
    prompt: Prompt,
    chosen: Sequence[Setting],
    *,
    exact: bool = True,
    seed: int = 0,
) -> tuple[dict[Setting, Rounds], dict[str, float]]:
    """Rounds of one prompt under each setting, and the target's attention to the video.

    Returns
    -------
    rounds : dict
        By setting.
    attention : dict
        `mass`: share of the language's attention that falls on the video. `top_tenth`: share of
        that held by the tenth of the video tokens with the highest scores.
    """
    with torch.no_grad():
        question = target.question(prompt, exact=exact)
        answer = target.greedy(question)
        scores = target.attention(question, target.embeddings(question)).scores()
        embeddings = draft.embeddings(question)
    rounds = {}
    length, video = len(question.ids), question.video
    for setting in chosen:
        kept_tokens = np.arange(len(video))
        if setting.retention == 0:
            kept_tokens = kept_tokens[:0]
        elif setting.policy != "none":
            features = embeddings[torch.from_numpy(video)].numpy()
            kept_tokens = _select(setting, scores, question.token_grid, seed, features)
        kept = kept_prompt_indices(length, [(video[0], video[-1] + 1)], kept_tokens)
        positions = question.positions[:, kept]
        first = length + question.delta
        if setting.scheme == "contiguous":
            positions, first = np.tile(np.arange(len(kept)), (3, 1)), len(kept)
        predicted = draft.predictions(embeddings[kept], positions, answer, first)
        rounds[setting] = count_rounds(predicted.tolist(), answer)
    ordered = np.sort(scores)[::-1]
    tenth = max(1, len(video) // 10)
    mass = float(scores.sum())
    return rounds, {"mass": mass, "top_tenth": float(ordered[:tenth].sum() / max(mass, 1e-9))}


def _select(
    setting: Setting,
    scores: npt.NDArray[np.float32],
    grid: tuple[int, int, int],
    seed: int,
    features: npt.NDArray[np.float32],
) -> npt.NDArray[np.int64]:
    """The kept tokens: by the reference, or by a user's policy, which exists in torch only."""
    if not _in_reference(setting.policy):
        kept = torch_selection.select_video_tokens(
            torch.from_numpy(scores.astype(np.float32)),
            retention=setting.retention,
            top_p=setting.top_p,
            policy=setting.policy,
            grid=grid,
            features=torch.from_numpy(features),
        )
        return kept.indices.numpy()
    return select_video_tokens(
        scores, setting.retention, setting.top_p, setting.policy, grid, seed, features
    )


def _in_reference(name: str) -> bool:
    scorer, _, selector = name.partition("/")
    return name in POLICY_NAMES or (scorer in SCORERS and selector in SELECTORS)


def interval(
    rounds: Sequence[Rounds], *, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Accept length over prompts (bonus included) with its 95 % bootstrap interval.

    Parameters
    ----------
    rounds : sequence of Rounds
        One a prompt; prompts are drawn with replacement.

    Returns
    -------
    mean, low, high : float
    """
    table: npt.NDArray[np.int64] = np.array([(r.tokens, r.rounds) for r in rounds])
    drawn = np.random.default_rng(seed).integers(len(table), size=(samples, len(table)))
    sums = table[drawn].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    tokens, count = table.sum(axis=0)
    return float(tokens / count), float(low), float(high)
