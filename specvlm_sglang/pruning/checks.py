"""What a user's policy or selector returns: refused where that shows, made up for elsewhere."""

from __future__ import annotations

import torch

from specvlm_sglang.pruning.spacing import ascending, space_over


def checked_kept(
    who: str, chosen: object, n: int, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exactly ``budget`` ascending indices, and which of them were named, bool.

    Tokens named twice or out of range are made up for evenly; on a CPU, where a look at the values
    waits for nothing, they are an error.

    Raises
    ------
    ValueError
        Not an int64 tensor ``[budget]``, or (on a CPU) not distinct tokens below ``n``.
    """
    if not isinstance(chosen, torch.Tensor) or chosen.dtype != torch.int64:
        kind = chosen.dtype if isinstance(chosen, torch.Tensor) else type(chosen).__name__
        raise ValueError(f"{who} returned {kind}, not an int64 tensor")
    if chosen.shape != (budget,):
        raise ValueError(f"{who} returned shape {list(chosen.shape)}, not [{budget}], the budget")
    within = (chosen >= 0) & (chosen < n)
    # What lies out of range points at a spare place behind the last token.
    named = torch.zeros(n + 1, dtype=torch.bool, device=chosen.device)
    named = named.scatter(0, torch.where(within, chosen, n), True)[:n]
    if chosen.device.type == "cpu" and int(named.sum()) < budget:
        raise ValueError(
            f"{who} returned {int(named.sum())} distinct tokens below {n}, not {budget}, the budget"
        )
    indices = ascending(named | space_over(~named, budget - named.sum(), None), budget)
    return indices, named[indices]
