"""Lossless verification of draft trees by sampling from the target."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from specvlm_sglang.cpu.kernels.verify import store_paths

# The kernel keeps the divisor of the accumulated mass above this.
_SMALLEST_THRESHOLD = 1e-9


def tree_speculative_sampling_target_only(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    uniform_samples: torch.Tensor,
    uniform_samples_for_final_sampling: torch.Tensor,
    target_probs: torch.Tensor,
    draft_probs: torch.Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """Sample a path through each tree by the target's probabilities alone.

    The children of an accepted node are walked in order while their probabilities add up; the first
    whose running sum exceeds the node's coin is accepted. Where none is, the last token is drawn
    from the mass that no child claimed. With both thresholds at 1 the emitted tokens are
    distributed as the target's, whatever the tree.

    Parameters
    ----------
    predicts
        Int32 ``[batch * n]``; written at the accepted nodes: the token that follows each.
    accept_index
        Int32 ``[batch, depth]``; the accepted path is written from the left, root first.
    accept_token_num
        Int32 ``[batch]``; written: accepted drafts, without root and final token.
    candidates
        Int64 ``[batch, n]``: the nodes' tokens.
    retrive_index, retrive_next_token, retrive_next_sibling
        Int64 ``[batch, n]``: row in the verified batch, first child, next sibling, -1 for none.
    uniform_samples
        Float32 ``[batch, n]`` in [0, 1): a node's coin decides among its children.
    uniform_samples_for_final_sampling
        Float32 ``[batch]`` in [0, 1).
    target_probs
        Float32 ``[batch, n, vocab]``: the target's distribution after each node.
    draft_probs
        As ``target_probs``: mass taken off before the last token is drawn, unless the path has
        full depth. SGLang passes zeros. The CUDA kernel also uses it as scratch, this does not.
    threshold_single, threshold_acc
        In [0, 1]: ``--speculative-accept-threshold-single`` and ``-acc``.
    deterministic
        Not used: this is always.

    Notes
    -----
    Source: ``kernels.ops.speculative.sampling.tree_speculative_sampling_target_only``. Sums along a
    row of children are float32 as there, the last token's CDF is float64. Where rounding rejects
    children that hold all of the mass, the kernel emits the last token of the vocabulary; here the
    token comes from the target's whole distribution.
    """
    batch, n = candidates.shape
    tokens, rows = candidates.tolist(), retrive_index.tolist()
    # After each node, the probability of each node's token.
    mass = target_probs.gather(2, candidates.unsqueeze(1).expand(batch, n, n)).numpy()
    number = mass.dtype.type
    single, divisor = number(threshold_single), number(max(threshold_acc, _SMALLEST_THRESHOLD))
    depth = accept_index.shape[1]
    walks = [
        _walk(children, siblings, after, coins, single, divisor, depth)
        for children, siblings, after, coins in zip(
            retrive_next_token.tolist(),
            retrive_next_sibling.tolist(),
            mass,
            uniform_samples.numpy(),
            strict=True,
        )
    ]
    paths = [path for path, _ in walks]
    last = torch.tensor([path[-1] for path in paths])
    full = torch.tensor([len(path) == depth for path in paths])
    refused = [
        [tokens[request][child] for child in declined]
        for request, (_, declined) in enumerate(walks)
    ]
    residual = _residual(target_probs, draft_probs, last, full, refused)
    final = _invert_cdf(residual, uniform_samples_for_final_sampling).tolist()
    store_paths(paths, final, tokens, rows, predicts, accept_index, accept_token_num)


def _walk(
    children: list[int],
    siblings: list[int],
    mass: npt.NDArray[np.floating[Any]],
    coins: npt.NDArray[np.floating[Any]],
    single: np.floating[Any],
    divisor: np.floating[Any],
    depth: int,
) -> tuple[list[int], list[int]]:
    """Accepted nodes of one tree, root first, and the children refused by the last of them."""
    path = [0]
    while len(path) < depth:
        node, total = path[-1], mass.dtype.type(0)
        declined: list[int] = []
        child = children[node]
        while child != -1:
            probability = mass[node, child]
            total += probability
            if probability > 0 and (coins[node] < total / divisor or probability >= single):
                break
            declined.append(child)
            child = siblings[child]
        if child == -1:
            return path, declined
        path.append(child)
    return path, []


def _residual(
    target_probs: torch.Tensor,
    draft_probs: torch.Tensor,
    last: torch.Tensor,
    full: torch.Tensor,
    refused: list[list[int]],
) -> torch.Tensor:
    """What is left of the target's distribution after each path's ``last`` node, unnormalised."""
    requests = torch.arange(len(refused))
    target = target_probs[requests, last]
    rest = torch.where(
        full.view(-1, 1), target, (target - draft_probs[requests, last]).clamp_(min=0)
    )
    for request, declined in enumerate(refused):
        rest[request, declined] = 0
    # Rounding alone can refuse children that leave nothing.
    return torch.where((rest > 0).any(1, keepdim=True), rest, target)


def _invert_cdf(weights: torch.Tensor, coins: torch.Tensor) -> torch.Tensor:
    """Per row, the first index whose cumulative weight exceeds the coin's share of the total."""
    cumulative = weights.cumsum(1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # A coin of 1 would walk past the last index of positive weight.
    wanted = torch.minimum(
        coins.view(-1, 1) * total, torch.nextafter(total, torch.zeros_like(total))
    )
    return torch.searchsorted(cumulative, wanted, right=True).view(-1)
