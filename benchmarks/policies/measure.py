"""Verify rounds of one prompt under every policy and retention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.policies.prompts import Prepared
from benchmarks.tinyvid.acceptance import count_rounds
from benchmarks.tinyvid.reader import Reader
from reference.cover import chunk_sizes, cover_orders, max_min_order, shares
from reference.features import temporal_change
from reference.merging import merge
from reference.positions import kept_prompt_indices
from reference.selection import select_video_tokens, video_token_budget

TOP_P = 0.2
MERGE = "+merge"
POLICIES = (
    "specvlm",
    "specvlm-grid",
    "attention",
    "uniform",
    "uniform-grid",
    "random",
    "attention-spread",
    "attention-change-spread",
    "scope",
    "floc",
    "change",
    "evs",
    "specvlm-spread",
    "divprune",
    "v-cast",
    "vidcom2",
    "fastv",
    "attention/cover",
    "attention+change-spread",
    "pixel-change",
)
MERGED = (
    "specvlm",
    "uniform",
    "attention-spread",
    "attention-change-spread",
    "scope",
    "floc",
    "specvlm-spread",
)
RETENTIONS = (0.25, 0.1, 0.05, 0.025)
_COVERED = {"scope": 0.5, "floc": 0.0, "attention/cover": 1.0}
"""By name, the power of the attention that a token's gain counts with."""
_GREEDY = (*_COVERED, "divprune")
"""Their tokens at a lower retention are the first ones at a higher."""
_SCORED_BY: dict[str, tuple[str, Callable[[Prepared], npt.NDArray[np.float32]]]] = {
    "fastv": ("attention", lambda prompt: prompt.fastv),
    "attention+change-spread": ("attention-spread", lambda prompt: _sum_of_both(prompt)),
    "pixel-change": ("specvlm", lambda prompt: prompt.pixel_change),
}
"""Policies for the comparison alone: another one with these scores in place of the attention."""
FULL, BLIND = "none@1", "none@0"
"""The whole video, and no token of it."""


class Setting(NamedTuple):
    """A policy, perhaps with `MERGE` at its end, and the share that it keeps."""

    policy: str
    retention: float

    def __str__(self) -> str:
        return f"{self.policy}@{self.retention:g}"


def settings(policies: Sequence[str], retentions: Sequence[float] = RETENTIONS) -> list[Setting]:
    """The whole video, none of it, and every policy at every retention."""
    pruned = [Setting(policy, share) for policy in policies for share in retentions]
    return [Setting("none", 1.0), Setting("none", 0.0), *pruned]


class Kept:
    """Which tokens of one prompt are kept; what lower retentions share is computed once.

    Parameters
    ----------
    prompt : Prepared
    seed : int
        Of ``random``.
    """

    def __init__(self, prompt: Prepared, seed: int) -> None:
        self._prompt = prompt
        self._seed = seed
        self._found: dict[tuple[str, float], npt.NDArray[np.int64]] = {}
        self._orders: dict[str, list[npt.NDArray[np.int64]]] = {}

    def of(self, setting: Setting) -> npt.NDArray[np.int64]:
        """Indices of the video tokens that the draft reads, ascending."""
        key = setting.policy.removesuffix(MERGE), setting.retention
        if key not in self._found:
            self._found[key] = self._select(*key)
        return self._found[key]

    def _select(self, policy: str, retention: float) -> npt.NDArray[np.int64]:
        prompt, n = self._prompt, len(self._prompt.video)
        if policy == "none":
            return np.arange(n if retention else 0)
        if policy in _GREEDY:
            sizes = chunk_sizes(prompt.grid) if policy in _COVERED else [n]
            counts = shares(video_token_budget(n, retention), sizes)
            most = shares(video_token_budget(n, max(RETENTIONS)), sizes)
            if policy not in self._orders or any(map(int.__gt__, counts, most)):
                self._orders[policy] = self._greedy(policy, list(map(max, counts, most)))
            parts = zip(self._orders[policy], counts, strict=True)
            return np.sort(np.concatenate([order[:count] for order, count in parts]))
        policy, scores = scored(policy, prompt)
        return select_video_tokens(
            scores,
            retention,
            TOP_P,
            policy,
            prompt.grid,
            self._seed,
            prompt.features,
        )

    def _greedy(self, policy: str, counts: list[int]) -> list[npt.NDArray[np.int64]]:
        prompt = self._prompt
        if policy == "divprune":
            return [max_min_order(prompt.features, counts[0])]
        worth = prompt.scores ** _COVERED[policy]
        return cover_orders(worth, prompt.features, counts, prompt.grid)


def scored(policy: str, prompt: Prepared) -> tuple[str, npt.NDArray[np.float32]]:
    """The policy that the reference knows, and the scores that it is given."""
    if policy not in _SCORED_BY:
        return policy, prompt.scores
    known, scores = _SCORED_BY[policy]
    return known, scores(prompt)


def _sum_of_both(prompt: Prepared) -> npt.NDArray[np.float32]:
    """Attention and temporal change, each scaled to 1 at most, in equal parts."""
    change = temporal_change(prompt.features, prompt.grid)
    parts = (part / max(part.max(), np.finfo(np.float32).tiny) for part in (prompt.scores, change))
    return sum(parts, np.zeros_like(prompt.scores))


def rounds(prompt: Prepared, setting: Setting, draft: Reader, kept: npt.NDArray[np.int64]) -> int:
    """Verify rounds in which the draft, shown these tokens, helps to emit the answer.

    A greedy chain of five along the target's own greedy answer: one forward tells all rounds.
    """
    length, embeddings = len(prompt.embeddings), prompt.embeddings
    if setting.policy.endswith(MERGE):
        embeddings = embeddings.copy()
        embeddings[prompt.video[kept]] = merge(prompt.features, kept)
    columns = kept_prompt_indices(length, [(prompt.video[0], prompt.video[-1] + 1)], kept)
    predicted = draft.predictions(
        torch.from_numpy(embeddings[columns]),
        prompt.positions[:, columns],
        prompt.answer.tolist(),
        length + prompt.delta,
    )
    return count_rounds(predicted.tolist(), prompt.answer.tolist()).rounds


def measure(
    prompt: Prepared, chosen: Sequence[Setting], draft: Reader, *, seed: int
) -> dict[str, int]:
    """Rounds of one prompt under each setting, by its name; ``seed`` is that of ``random``."""
    kept = Kept(prompt, seed)
    return {str(setting): rounds(prompt, setting, draft, kept.of(setting)) for setting in chosen}
