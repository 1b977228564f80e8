"""A second view of a model runner: the same weights and KV pool, another request table."""

from __future__ import annotations

import copy
from typing import Any


def drafting_copy(runner: Any, req_to_token_pool: Any) -> Any:
    """Return a copy of SGLang's ``ModelRunner`` that drafts with the runner's model.

    Its backends read pages of one slot, whatever the pages of the pool.

    Parameters
    ----------
    runner
        The target's, with its pools allocated. It is not changed.
    req_to_token_pool
        The request table that the copy's attention backends read.
    """
    drafting = copy.copy(runner)
    drafting.req_to_token_pool = req_to_token_pool
    # Its columns are slots of their own: neighbours among them lie in no common page.
    drafting.page_size = 1
    # What the target's passes note of experts and canaries is not noted twice.
    drafting.is_draft_worker = True
    drafting.canary_manager = None
    # The target's graphs verify; what drafts has graphs of its own.
    drafting.decode_cuda_graph_runner = None
    drafting.prefill_cuda_graph_runner = None
    return drafting


def share_runners(drafting: Any, runner: Any) -> None:
    """Let the copy run eagerly, once the target's ``runner`` can."""
    drafting.eager_runner = runner.eager_runner
