"""Accept lengths of a set of prompts with intervals that know which prompts share a clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLES = 4000


class SetRounds:
    """Rounds of one set under every setting, and draws of its clips.

    Parameters
    ----------
    data : dict
        ``prompts`` and ``rounds`` of one set (`benchmarks.policies.record.Record.complete`).
    seed : int
        Of the draws.
    """

    def __init__(self, data: dict[str, Any], *, seed: int = 0) -> None:
        self.prompts = len(data["prompts"])
        clips = np.array([prompt["clip"] for prompt in data["prompts"]])
        names, of_clip = np.unique(clips, return_inverse=True)
        self.clips = len(names)
        self._of_clip = of_clip
        self._tokens = self._by_clip([prompt["tokens"] for prompt in data["prompts"]])
        self._rounds = {name: self._by_clip(rounds) for name, rounds in data["rounds"].items()}
        # Prompts about one clip are drawn together: they are no independent observations.
        self._drawn = np.random.default_rng(seed).integers(self.clips, size=(SAMPLES, self.clips))

    def _by_clip(self, values: list[int]) -> npt.NDArray[np.float64]:
        return np.bincount(self._of_clip, weights=values, minlength=self.clips)

    def accept_length(self, setting: str) -> float:
        """Tokens emitted per verify round, bonus included."""
        return float(self._tokens.sum() / self._rounds[setting].sum())

    def interval(self, setting: str) -> tuple[float, float]:
        """Its 95 % bootstrap interval."""
        return _quantiles(self._samples(setting))

    def difference(self, setting: str, other: str) -> tuple[float, float, float]:
        """Accept length minus another's on the same prompts, with its 95 % interval."""
        mean = self.accept_length(setting) - self.accept_length(other)
        return mean, *_quantiles(self._samples(setting) - self._samples(other))

    def _samples(self, setting: str) -> npt.NDArray[np.float64]:
        tokens = self._tokens[self._drawn].sum(axis=1)
        found: npt.NDArray[np.float64] = tokens / self._rounds[setting][self._drawn].sum(axis=1)
        return found


def _quantiles(samples: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(samples, (0.025, 0.975))
    return float(low), float(high)
