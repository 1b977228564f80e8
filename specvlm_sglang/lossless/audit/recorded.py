"""Which finished requests are audited, and what is kept of them until then."""

from __future__ import annotations

import copy
import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req

ABORTED = "aborted"
SAMPLED = "sampled"
EMPTY = "empty answer"
SESSION = "session"
LOGIT_PROCESSOR = "custom logit processor"
OWN_INPUTS = "inputs other than tokens, images and videos"
BEAM_SEARCH = "beam search"
WEIGHTS_CHANGED = "weights changed"


def is_selected(request_id: str, share: float) -> bool:
    """Whether the request belongs to the audited share; the same on every rank, in every run.

    Parameters
    ----------
    request_id
        SGLang's ``rid``.
    share
        In [0, 1].
    """
    digest = hashlib.blake2b(request_id.encode(errors="surrogatepass"), digest_size=8).digest()
    # Integers: a number close to 2**64 would round up to a share of 1.
    return int.from_bytes(digest, "big") < int(share * 2**64)


def mark_weights_changed(req: Any) -> None:
    """Note that this running request was not answered by one set of weights."""
    req.specvlm_weights_changed = True


def why_not(req: Any) -> str | None:
    """Why this finished request cannot be replayed, or None."""
    other_inputs = (req.input_embeds, req.positional_embed_overrides, req.token_type_ids)
    reasons = {
        ABORTED: isinstance(req.finished_reason, FINISH_ABORT),
        SAMPLED: req.sampling_params.top_k > 1,
        SESSION: req.session is not None,
        LOGIT_PROCESSOR: req.custom_logit_processor is not None,
        BEAM_SEARCH: req.beam_group is not None,
        OWN_INPUTS: any(given is not None for given in other_inputs)
        # Pixels in memory that another process takes back.
        or any(item.has_cuda_ipc_proxy() for item in _items(req)),
        WEIGHTS_CHANGED: getattr(req, "specvlm_weights_changed", False),
        EMPTY: len(req.output_ids_through_stop) == 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass
class Recorded:
    """A finished request: its answer, and what it takes to ask again.

    Attributes
    ----------
    id
        SGLang's ``rid``.
    output_ids
        The answer through its stop.
    prompt_ids
        As SGLang matches them in its cache: placeholders of images and videos carry hashes.
    multimodal_inputs
        Our own copy; SGLang drops the pixels of the request's.
    settings
        Further arguments of SGLang's ``Req``.
    tokenizer
        For stop strings.
    interruptions
        How many replays gave way to a request.
    """

    id: str
    output_ids: tuple[int, ...]
    prompt_ids: array[int]
    multimodal_inputs: Any
    settings: dict[str, Any]
    tokenizer: Any
    interruptions: int = field(default=0)

    @classmethod
    def of(cls, req: Any) -> Recorded:
        """Record ``req``, which has just finished, before SGLang releases what it holds."""
        return cls(
            id=req.rid,
            output_ids=tuple(req.output_ids_through_stop),
            prompt_ids=req.origin_input_ids,
            multimodal_inputs=_shallow_copy(req.multimodal_inputs),
            settings={
                "sampling_params": copy.copy(req.sampling_params),
                "extra_key": req.extra_key,
                "cache_salt": req.cache_salt,
                "require_reasoning": req.require_reasoning,
                "eos_token_ids": req.eos_token_ids,
                "vocab_size": req.vocab_size,
            },
            tokenizer=req.tokenizer,
        )

    def new_request(self) -> Any:
        """Build a request that asks the same, unknown to SGLang's queues."""
        req = Req(f"specvlm-replay-{self.id}", "", self.prompt_ids, **self.settings)
        req.tokenizer = self.tokenizer
        req.multimodal_inputs = _shallow_copy(self.multimodal_inputs)
        return req

    @property
    def pixel_bytes(self) -> int:
        """Bytes that the pixels of its images and videos take."""
        return sum(tensor.nbytes for item in _items(self) for tensor in _tensors(item.feature))


def _items(holder: Any) -> list[Any]:
    inputs = holder.multimodal_inputs
    return [] if inputs is None else list(inputs.mm_items)


def _tensors(feature: Any) -> Iterator[torch.Tensor]:
    if isinstance(feature, torch.Tensor):
        yield feature
    elif isinstance(feature, list | tuple):
        for part in feature:
            yield from _tensors(part)


def _shallow_copy(inputs: Any) -> Any:
    """Copy the containers, not the tensors: a pass replaces pixels, and SGLang drops them."""
    if inputs is None:
        return None
    copied = copy.copy(inputs)
    copied.mm_items = [copy.copy(item) for item in inputs.mm_items]
    return copied
