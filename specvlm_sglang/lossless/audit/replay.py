"""One replay: an answer beside what plain decoding says, up to the first difference."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from specvlm_sglang.host.plain_decoding import PlainDecoding
from specvlm_sglang.lossless.audit.recorded import Recorded


@dataclass(frozen=True)
class Mismatch:
    """The first place where an answer is not what plain decoding says.

    Attributes
    ----------
    id
        The request.
    position
        Index of the first differing output token, from 0.
    token, replayed_token
        What was answered there, and what the replay says; None where one of them had ended.
    logit, replayed_logit
        The replay's logits of the two, penalties, grammar and bias applied; None without a token,
        and for one that the grammar forbids.
    gap
        ``replayed_logit - logit``. Next to nothing is a tie that rounding decides; more is an
        error.
    length, replayed_length
        Tokens answered, and tokens that the replay decoded until it stopped here.
    prompt_tokens
        Length of the prompt.
    """

    id: str
    position: int
    token: int | None
    replayed_token: int | None
    logit: float | None
    replayed_logit: float | None
    gap: float | None
    length: int
    replayed_length: int
    prompt_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The end of a replay; ``mismatch`` is None where the answer is the target's own."""

    mismatch: Mismatch | None = None


class Replay:
    """Decodes a recorded request again and compares token by token.

    Parameters
    ----------
    recorded
        The request and its answer.
    decoding
        Its plain decoding, not begun.
    """

    def __init__(self, recorded: Recorded, decoding: PlainDecoding) -> None:
        self._recorded = recorded
        self._decoding = decoding
        self._position = 0

    @classmethod
    def start(cls, scheduler: Any, recorded: Recorded) -> Replay:
        """Begin a replay on SGLang's ``Scheduler``; no pass runs yet."""
        return cls(recorded, PlainDecoding(scheduler, recorded.new_request()))

    def step(self) -> Verdict | None:
        """Run one forward pass; None while there is nothing to say yet."""
        step = self._decoding.step()
        if step is None:
            return None
        position, answer = self._position, self._recorded.output_ids
        self._position += 1
        token = answer[position] if position < len(answer) else None
        if step.token != token:
            return Verdict(self._mismatch(position, token, step.token, step.logits))
        if not self._decoding.finished:
            return None
        if self._position < len(answer):
            return Verdict(self._mismatch(self._position, answer[self._position], None, None))
        return Verdict()

    def release(self) -> None:
        """Give back what the replay holds in the target's KV cache."""
        self._decoding.release()

    def _mismatch(
        self,
        position: int,
        token: int | None,
        replayed_token: int | None,
        logits: torch.Tensor | None,
    ) -> Mismatch:
        logit = _logit(logits, token)
        replayed_logit = _logit(logits, replayed_token)
        both = logit is not None and replayed_logit is not None
        return Mismatch(
            id=self._recorded.id,
            position=position,
            token=token,
            replayed_token=replayed_token,
            logit=logit,
            replayed_logit=replayed_logit,
            gap=replayed_logit - logit if both else None,  # type: ignore[operator]
            length=len(self._recorded.output_ids),
            replayed_length=self._position,
            prompt_tokens=len(self._recorded.prompt_ids),
        )


def _logit(logits: torch.Tensor | None, token: int | None) -> float | None:
    if logits is None or token is None:
        return None
    value = float(logits[token])
    return value if math.isfinite(value) else None
