"""min-p in speculative sampling: SGLang's verification leaves it out.

SGLang 0.5.23 applies temperature, top-k and top-p to the target's distribution before it verifies
drafts, but not min-p, so a request with ``min_p`` would be sampled from another distribution than
plain decoding gives it. We apply it at the same place, just before the drafts are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_min_ps: ContextVar[torch.Tensor | None] = ContextVar("specvlm_min_ps", default=None)


def keep_min_p(probabilities: torch.Tensor, min_ps: torch.Tensor) -> torch.Tensor:
    """Drop tokens below ``min_p`` times their row's largest probability, and rescale.

    Parameters
    ----------
    probabilities
        ``[batch, nodes, vocabulary]``.
    min_ps
        ``[batch]``, each in [0, 1].
    """
    floor = probabilities.amax(dim=-1, keepdim=True) * min_ps.view(-1, 1, 1)
    kept = probabilities.masked_fill(probabilities < floor, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


def install() -> None:
    """Wrap SGLang's tree sampling in this process; idempotent."""
    contract.require("min-p")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def sample(*args: Any, target_probs: torch.Tensor, **kwargs: Any) -> Any:
            min_ps = _min_ps.get()
            if min_ps is not None:
                target_probs = keep_min_p(target_probs, min_ps)
            return original(*args, target_probs=target_probs, **kwargs)

        return sample

    replace_function(
        "sglang.srt.speculative.eagle_utils", "tree_speculative_sampling_target_only", make
    )


@contextmanager
def applied(sampling_info: Any) -> Iterator[None]:
    """Within this context verification honours the batch's ``min_p``."""
    wanted = sampling_info is not None and sampling_info.need_min_p_sampling
    token = _min_ps.set(sampling_info.min_ps if wanted else None)
    try:
        yield
    finally:
        _min_ps.reset(token)
