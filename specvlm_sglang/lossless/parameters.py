"""Which sampling parameters of a request look back at its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LooksBack:
    """The sampling parameters of one request that look back at its output.

    Attributes
    ----------
    frequency, presence, repetition
        SGLang's penalties; 0, 0 and 1 do nothing.
    min_new_tokens
        As long as fewer tokens were emitted, none of ``stop_tokens`` may come.
    stop_tokens
        Token ids.
    """

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    min_new_tokens: int = 0
    stop_tokens: tuple[int, ...] = ()

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters which tokens were emitted."""
        return (self.frequency, self.presence, self.repetition) != (0.0, 0.0, 1.0)

    @property
    def withholds_stops(self) -> bool:
        """Whether it matters how many tokens were emitted."""
        return self.min_new_tokens > 0 and bool(self.stop_tokens)


def looks_back(req: Any) -> LooksBack | None:
    """Return what of the sampling parameters of SGLang's ``Req`` looks back; None for nothing."""
    given = req.sampling_params
    found = LooksBack(
        given.frequency_penalty,
        given.presence_penalty,
        given.repetition_penalty,
        given.min_new_tokens,
        _stop_tokens(req) if given.min_new_tokens > 0 else (),
    )
    return found if found.counts_tokens or found.withholds_stops else None


def _stop_tokens(req: Any) -> tuple[int, ...]:
    """What ends an answer: the same set as in SGLang's ``BatchedMinNewTokensPenalizer``."""
    tokenizer = req.tokenizer
    tokens = {
        *(req.sampling_params.stop_token_ids or ()),
        *(req.eos_token_ids or ()),
        *(tokenizer.additional_stop_token_ids or ()),
        tokenizer.eos_token_id,
    }
    return tuple(sorted(tokens - {None}))
