"""Exact sampling state in SGLang's verification of drafts.

SGLang 0.5.23 judges drafts by ``eagle_sample``. It adds one penalty vector to all nodes of a round,
counts one emitted token a round, and knows no custom logit processors. Here every node gets the
logits that plain decoding would have there: `specvlm_sglang.lossless` keeps what was emitted, and
requests with a custom logit processor, which may be any Python code with any state of its own, are
decoded token by token: the processor sees one row a round, and no draft is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.lossless.emitted import EmittedTokens, LooksBack
from specvlm_sglang.lossless.penalties import parents_of, paths_of, penalise_nodes

_emitted: ContextVar[EmittedTokens | None] = ContextVar("specvlm_emitted", default=None)


def looks_back(req: Any) -> LooksBack | None:
    """Return what of ``req``'s sampling parameters looks back at its output; None for nothing."""
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
def judged_by(emitted: EmittedTokens) -> Iterator[None]:
    """Within this context verification judges every node by what was emitted before it."""
    token = _emitted.set(emitted)
    try:
        yield
    finally:
        _emitted.reset(token)


def resume(sampling_info: Any, reqs: Sequence[Any], emitted: EmittedTokens) -> None:
    """Let the prefill of preempted requests know what they emitted before.

    SGLang starts their penalties anew. ``sampling_info`` is the copy of this forward pass, whose
    penalties are summed up already; nothing is done for requests that were never preempted.
    """
    for index, req in enumerate(reqs):
        asked = looks_back(req) if len(req.output_ids) else None
        if asked is None:
            continue
        subtracted, scale = emitted.terms_after(asked, req.output_ids)
        added = -subtracted
        if asked.withholds_stops and len(req.output_ids) < asked.min_new_tokens:
            added[list(asked.stop_tokens)] = -torch.inf
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
        emitted = _emitted.get()
        if emitted is None or batch.forward_mode.is_idle():
            return original(verify_input, batch, logits_output, grammar_mask, *args, **kwargs)
        logits = logits_output.next_token_logits
        rows = [req.kv.req_pool_idx for req in batch.reqs]
        counts = emitted.looks_back(rows)
        # The pass's own copy: nothing else reads these two.
        batch.sampling_info.acc_additive_penalties = None
        batch.sampling_info.acc_scaling_penalties = None
        if counts:
            _penalise(logits, verify_input, emitted, rows, batch.req_pool_indices)
        if batch.sampling_info.has_custom_logit_processor:
            _process(logits, verify_input, batch.sampling_info, grammar_mask)
            grammar_mask = None
        sampled = original(verify_input, batch, logits_output, grammar_mask, *args, **kwargs)
        if counts:
            predicted, accepted, nodes = sampled
            emitted.advance(batch.req_pool_indices, predicted[nodes.clamp(min=0).long()], accepted)
        return sampled

    return eagle_sample


def _penalise(
    logits: torch.Tensor,
    verify_input: Any,
    emitted: EmittedTokens,
    rows: Sequence[int],
    device_rows: torch.Tensor,
) -> None:
    links = verify_input.retrieve_next_token, verify_input.retrieve_next_sibling
    tokens = verify_input.draft_token.view(len(rows), -1).long()
    parents = parents_of(*links, topk=verify_input.topk)
    paths = paths_of(tokens, parents, steps=verify_input.spec_steps)
    penalise_nodes(logits, paths, emitted.of_batch(rows, device_rows))


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
