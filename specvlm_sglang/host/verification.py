"""Exact sampling state in SGLang's verification of drafts.

SGLang 0.5.23 judges drafts by ``eagle_sample``. It adds one penalty vector to all nodes of a round,
counts one emitted token a round, and knows no custom logit processors. Here every node gets the
logits that plain decoding would have there: a `Judge` keeps what was emitted, and requests with a
custom logit processor, which may be any Python code with any state of its own, are decoded token by
token: the processor sees one row a round, and no draft is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.batch_view import rows_of
from specvlm_sglang.host.patching import replace_function


class Judge(Protocol):
    """What was emitted before the nodes of drafts, and what that means for their logits.

    ``rows`` are the ``req_pool_idx`` of a batch's requests, ``device_rows`` the same on the device,
    ``[batch]``.
    """

    def looks_back(self, rows: Sequence[int]) -> bool:
        """Whether a request of these rows has a sampling parameter that asks for it."""

    def judge(
        self,
        logits: torch.Tensor,
        verify_input: Any,
        rows: Sequence[int],
        device_rows: torch.Tensor,
    ) -> None:
        """Change ``logits``, ``[batch * nodes, vocabulary]``, to what plain decoding has there."""

    def advance(
        self, device_rows: torch.Tensor, tokens: torch.Tensor, accepted: torch.Tensor
    ) -> None:
        """Count the first ``accepted`` ``[batch]`` of ``tokens`` ``[batch, steps + 1]``."""

    def terms_of(self, req: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What a preempted request's next logits get: added, then scaled; ``[vocabulary]`` each."""


_judge: ContextVar[Judge | None] = ContextVar("specvlm_judge", default=None)


def install() -> None:
    """Replace what SGLang does in this process with penalties; idempotent."""
    contract.require("verification")
    replace_function("sglang.srt.speculative.eagle_utils", "eagle_sample", _exact)
    replace_function(
        "sglang.srt.managers.schedule_batch",
        "ScheduleBatch.cumulate_penalty_output_tokens",
        _only_without_speculation,
    )


@contextmanager
def judged_by(judge: Judge) -> Iterator[None]:
    """Within this context verification judges every node by what was emitted before it."""
    token = _judge.set(judge)
    try:
        yield
    finally:
        _judge.reset(token)


def resume(sampling_info: Any, reqs: Sequence[Any], judge: Judge) -> None:
    """Let the prefill of preempted requests know what they emitted before.

    SGLang starts their penalties anew. ``sampling_info`` is the copy of this forward pass, whose
    penalties are summed up already; nothing is done for requests that were never preempted.
    """
    for index, req in enumerate(reqs):
        terms = judge.terms_of(req) if len(req.output_ids) else None
        if terms is None:
            continue
        added, scale = terms
        sampling_info.acc_additive_penalties[index] = added
        if sampling_info.acc_scaling_penalties is not None:
            sampling_info.acc_scaling_penalties[index] = scale


def _only_without_speculation(original: Callable[..., None]) -> Callable[..., None]:
    def cumulate_penalty_output_tokens(self: Any) -> None:
        if self.spec_algorithm.is_none():
            original(self)

    return cumulate_penalty_output_tokens


def _exact(original: Callable[..., Any]) -> Callable[..., Any]:
    def eagle_sample(
        verify_input: Any,
        batch: Any,
        logits_output: Any,
        grammar_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        judge = _judge.get()
        if judge is None or batch.forward_mode.is_idle():
            return original(verify_input, batch, logits_output, grammar_mask, *args, **kwargs)
        logits = logits_output.next_token_logits
        rows = rows_of(batch)
        counts = judge.looks_back(rows)
        # The pass's own copy: nothing else reads these two.
        batch.sampling_info.acc_additive_penalties = None
        batch.sampling_info.acc_scaling_penalties = None
        if counts:
            judge.judge(logits, verify_input, rows, batch.req_pool_indices)
        if batch.sampling_info.has_custom_logit_processor:
            _process(logits, verify_input, batch.sampling_info, grammar_mask)
            grammar_mask = None
        sampled = original(verify_input, batch, logits_output, grammar_mask, *args, **kwargs)
        if counts:
            predicted, accepted, nodes = sampled
            judge.advance(batch.req_pool_indices, predicted[nodes.clamp(min=0).long()], accepted)
        return sampled

    return eagle_sample


def _process(
    logits: torch.Tensor, verify_input: Any, sampling_info: Any, grammar_mask: Any
) -> None:
    """Apply custom logit processors to the roots of their requests, and cut the trees there.

    They come last in plain decoding, so what ``eagle_sample`` would add later is added here.
    """
    from sglang.srt.layers.sampler import apply_custom_logit_processor

    nodes = verify_input.draft_token_num
    if sampling_info.logit_bias is not None:
        logits.add_(sampling_info.logit_bias.repeat_interleave(nodes, dim=0))
        sampling_info.logit_bias = None
    if grammar_mask is not None:
        grammar_mask.apply(logits)
    per_request = logits.view(-1, nodes, logits.shape[-1])
    roots = per_request[:, 0].contiguous()
    apply_custom_logit_processor(roots, sampling_info)
    per_request[:, 0] = roots
    # A tree's links may be shared with what was built before: not changed in place.
    first_child = verify_input.retrieve_next_token.clone()
    for entry in sampling_info.custom_logit_processor.values():
        first_child[entry.indices, 0] = -1
    verify_input.retrieve_next_token = first_child
