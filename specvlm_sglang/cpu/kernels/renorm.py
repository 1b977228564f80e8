"""Top-k and top-p filters on probabilities, renormalised.

As in FlashInfer, a filter keeps everything at least as probable as its pivot, ties included. The
pivot is found from the largest probabilities only: sorting a vocabulary of 150,000 takes longer
than a small draft's forward pass.
"""

from __future__ import annotations

import torch

_FIRST_CANDIDATES = 64
_CANDIDATES_GROW = 8
# Block length by candidates wanted: both the peaks and the chosen blocks' values should be few.
_BLOCKS = ((256, 64), (4096, 8))


def top_k_renorm_prob(probs: torch.Tensor, top_k: torch.Tensor | int) -> torch.Tensor:
    """Keep each row's ``top_k`` largest probabilities, and ties of the last of them.

    Parameters
    ----------
    probs
        Float ``[rows, vocab]``; any non-negative weights.
    top_k
        Int ``[rows]`` or one number; below 1 counts as 1, above ``vocab`` as ``vocab``.

    Returns
    -------
    torch.Tensor
        Float32 ``[rows, vocab]``; rows sum to 1.

    Notes
    -----
    Source: ``flashinfer.sampling.top_k_renorm_probs``, in SGLang
    ``kernels.ops.sampling.renorm.top_k_renorm_prob``.
    """
    weights = probs.float().contiguous()
    vocab = weights.shape[1]
    wanted = _per_row(top_k, weights, torch.int64).clamp(1, vocab)
    limited = wanted < vocab
    pivots = torch.zeros(len(weights))
    if bool(limited.any()):
        rank = torch.where(limited, wanted, 1)
        largest = _largest(weights, int(rank.max()))
        pivots = torch.where(limited, largest.gather(1, rank.view(-1, 1) - 1).view(-1), pivots)
    return _keep_from(weights, pivots)


def top_p_renorm_prob(probs: torch.Tensor, top_p: torch.Tensor | float) -> torch.Tensor:
    """Keep the tokens before which less than or just ``top_p`` of each row's mass lies, and ties.

    Parameters
    ----------
    probs
        Float ``[rows, vocab]``; rows sum to 1.
    top_p
        Float ``[rows]`` or one number, in (0, 1].

    Returns
    -------
    torch.Tensor
        Float32 ``[rows, vocab]``; rows sum to 1.

    Notes
    -----
    Source: ``flashinfer.sampling.top_p_renorm_probs``, in SGLang
    ``kernels.ops.sampling.renorm.top_p_renorm_prob``. Where a cumulative mass equals ``top_p``
    exactly, the next token is kept too, as by SGLang's Triton version and its PyTorch sampler.
    """
    weights = probs.float().contiguous()
    vocab = weights.shape[1]
    wanted = _per_row(top_p, weights, torch.float64).view(-1, 1)
    unlimited = wanted >= 1
    count = min(_FIRST_CANDIDATES, vocab)
    while True:
        largest = _largest(weights, count)
        mass = largest.cumsum(1, dtype=torch.float64)
        if count == vocab or bool(((mass[:, -1:] > wanted) | unlimited).all()):
            break
        count = min(count * _CANDIDATES_GROW, vocab)
    kept = ((mass - largest) <= wanted).sum(1, keepdim=True)
    pivots = largest.gather(1, (kept - 1).clamp_(min=0))
    return _keep_from(weights, pivots.masked_fill_(unlimited, 0).view(-1))


def _largest(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Each row's ``count`` largest values, descending: `torch.topk`, several times as fast.

    ``count`` blocks of the highest peaks hold them: each block left out has a peak, and so no
    value, above ``count`` others.
    """
    vocab = weights.shape[1]
    block = next((length for most, length in _BLOCKS if count <= most), vocab)
    if count * block > vocab // 2:
        return weights.topk(count, dim=1).values
    whole = vocab - vocab % block
    blocks = weights[:, :whole].view(len(weights), -1, block)
    chosen = blocks.amax(2).topk(count, dim=1, sorted=False).indices
    candidates = blocks[torch.arange(len(weights)).view(-1, 1), chosen].flatten(1)
    candidates = torch.cat((candidates, weights[:, whole:]), dim=1)
    return candidates.topk(count, dim=1).values


def _per_row(
    value: torch.Tensor | float, weights: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    rows = torch.as_tensor(value, device=weights.device).to(dtype).view(-1)
    return rows.expand(len(weights))


def _keep_from(weights: torch.Tensor, pivots: torch.Tensor) -> torch.Tensor:
    kept = torch.where(weights >= pivots.view(-1, 1), weights, 0.0)
    return kept.div_(kept.sum(1, keepdim=True))
