"""Tokens that make every token resemble a kept one: the twins of ``reference.cover``.

On a device every chunk takes its next token in the same step, and each step weighs all tokens anew:
how many of them changed is known on the device alone. A CPU has nothing to wait for, and weighs
only what changed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from specvlm_sglang.copies import to_device
from specvlm_sglang.pruning.budgets import shares
from specvlm_sglang.pruning.features import quantised_directions, similarity
from specvlm_sglang.pruning.spacing import Grid, ascending

CHUNK_TOKENS = 2048


def chunk_size(grid: Grid) -> int:
    """Tokens of a chunk: as many whole frames as have `CHUNK_TOKENS`, at least one."""
    frames, rows, columns = grid
    return min(frames, max(1, CHUNK_TOKENS // (rows * columns))) * rows * columns


def cover(worth: torch.Tensor, features: torch.Tensor, budget: int, grid: Grid) -> torch.Tensor:
    """Keep ``budget`` tokens by their gain in similarity times worth: int64, ascending.

    Parameters
    ----------
    worth
        float32 ``[N]``, at least 0.
    features
        ``[N, d]``, finite, on the same device.
    budget
        At most N.
    grid
        ``(frames, rows, columns)``, product N.
    """
    n = worth.shape[0]
    if budget == n:
        return torch.arange(n, device=worth.device)
    size = chunk_size(grid)
    counts = shares(budget, [min(size, n - start) for start in range(0, n, size)])
    if worth.device.type == "cpu":
        return cover_on_cpu(worth, features, counts, size)
    return cover_in_step(worth, features, counts, size)


def cover_on_cpu(
    worth: torch.Tensor, features: torch.Tensor, counts: list[int], size: int
) -> torch.Tensor:
    """Chunks of ``size`` tokens one after the other, so many tokens of each."""
    directions = quantised_directions(features)
    kept = []
    for start, count in zip(range(0, len(worth), size), counts, strict=True):
        inside = directions[start : start + size]
        alike = similarity(inside, inside).clamp(min=0).numpy()
        weight = worth[start : start + size].double().numpy()
        kept.append(start + np.sort(_greedy(alike, weight, count)))
    return torch.from_numpy(np.concatenate(kept))


def _greedy(
    alike: npt.NDArray[np.int32], weight: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.int64]:
    covered = np.zeros(len(alike), np.int32)
    gains = alike.sum(axis=0, dtype=np.int64)
    open_weight, kept = weight.copy(), np.empty(count, np.int64)
    for step in range(count):
        # What is taken weighs less than nothing, so that it also loses to a gain of 0.
        weighed = np.where(open_weight < 0, -1.0, gains * open_weight)
        best = kept[step] = int(weighed.argmax())
        open_weight[best] = -1
        changed = np.flatnonzero(alike[best] > covered)
        rows, before = alike[changed], covered[changed, None]
        covered[changed] = after = alike[best, changed]
        lost = np.maximum(rows, after[:, None]) - np.maximum(rows, before)
        # max(0, S - c) is max(S, c) - c: the rows' own change is the same for all tokens.
        gains += lost.sum(axis=0, dtype=np.int64) - int((after - before[:, 0]).sum(dtype=np.int64))
    return kept


def cover_in_step(
    worth: torch.Tensor, features: torch.Tensor, counts: list[int], size: int
) -> torch.Tensor:
    """All chunks at once, ``max(counts)`` steps; no host sync.

    Memory is two bytes for each pair of tokens of a chunk, twice: 4 KiB for each token of a video
    whose frames are small.
    """
    n, device, chunks = worth.shape[0], worth.device, len(counts)
    alike = _similarities(features, size)
    weight = torch.zeros(chunks * size, dtype=torch.float64, device=device)
    weight[:n] = worth
    weight = weight.view(chunks, size)
    number = torch.arange(chunks * size, device=device).view(chunks, size)
    free, kept = number < n, number < 0
    limits = to_device(torch.tensor(counts), device)
    every = torch.arange(chunks, device=device)
    covered = torch.zeros((chunks, size), dtype=torch.int16, device=device)
    gains = torch.empty_like(alike)
    for step in range(max(counts)):
        torch.sub(alike, covered[:, :, None], out=gains)
        gain = gains.clamp_(min=0).sum(1, dtype=torch.int64) * weight
        best = torch.where(free, gain, -1).argmax(1)
        taken = limits > step
        is_best = (number == number[every, best][:, None]) & taken[:, None]
        kept, free = kept | is_best, free & ~is_best
        better = torch.maximum(covered, alike[every, best])
        covered = torch.where(taken[:, None], better, covered)
    return ascending(kept.flatten()[:n], sum(counts))


def _similarities(features: torch.Tensor, size: int) -> torch.Tensor:
    """Similarities within each chunk of ``size`` tokens, int16 ``[chunks, size, size]``, from 0."""
    directions = quantised_directions(features)
    n = directions.shape[0]
    chunks = -(-n // size)
    found = torch.zeros((chunks, size, size), dtype=torch.int16, device=features.device)
    for chunk in range(chunks):
        inside = directions[chunk * size : (chunk + 1) * size]
        count = inside.shape[0]
        found[chunk, :count, :count] = similarity(inside, inside).clamp(min=0)
    return found
