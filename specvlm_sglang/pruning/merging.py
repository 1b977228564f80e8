"""Dropped tokens mixed into kept ones: the torch twin of ``reference.merging``."""

from __future__ import annotations

import torch

from specvlm_sglang.pruning.features import quantised_directions, similarity

OWN = 0.6
_BLOCK = 4096


def merge(features: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the features of the kept tokens, each with the dropped ones that are most like it.

    Parameters
    ----------
    features
        ``[N, d]``, finite, of all video tokens of a prompt.
    kept
        int64 ``[K]``, ascending and distinct, K at least 1.

    Returns
    -------
    torch.Tensor
        ``[K, d]`` of the features' dtype: `OWN` times its own plus the rest times the mean of the
        dropped tokens to which it is the most similar kept one, ties to the lower index; its own
        alone where there are none.
    """
    n, width = features.shape
    directions = quantised_directions(features)
    # Sums in float64 round to the same float32, whatever order the device adds in.
    sums = torch.zeros((kept.shape[0], width), dtype=torch.float64, device=features.device)
    counts = torch.zeros((kept.shape[0], 1), dtype=torch.float64, device=features.device)
    dropped = torch.ones((n, 1), dtype=torch.float64, device=features.device)
    dropped.index_fill_(0, kept, 0)
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        place = similarity(directions[part], directions[kept]).argmax(1)
        sums.index_add_(0, place, features[part].double() * dropped[part])
        counts.index_add_(0, place, dropped[part])
    own = features[kept].double()
    merged = OWN * own + (1 - OWN) * (sums / counts.clamp(min=1))
    return torch.where(counts > 0, merged, own).to(features.dtype)
