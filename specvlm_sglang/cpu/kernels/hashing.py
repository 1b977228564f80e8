"""The counter-based random numbers of seeded requests."""

from __future__ import annotations

import torch

_WORD = 0xFFFFFFFF


def murmur_hash32(
    seed: torch.Tensor, positions: torch.Tensor, col_indices: torch.Tensor
) -> torch.Tensor:
    """MurmurHash3 (32 bit) of (seed, position, column).

    Parameters
    ----------
    seed
        Int ``[rows]``, 64 bits count.
    positions
        Int ``[rows]``, 32 bits count.
    col_indices
        Int ``[columns]``, 32 bits count.

    Returns
    -------
    torch.Tensor
        Uint32 ``[rows, columns]``.

    Notes
    -----
    Source: ``kernels.ops.sampling.murmur_hash.murmur_hash32``, whose CPU branch needs
    ``sgl_kernel``. Arithmetic is int64 here, whose low words wrap as uint32 does.
    """
    seed_bits = seed.view(torch.int64) if seed.dtype == torch.uint64 else seed.to(torch.int64)
    mixed = torch.zeros_like(seed_bits)
    for block in (seed_bits, seed_bits >> 32, positions.to(torch.int64)):
        mixed = _mix(mixed, block & _WORD)
    grid = _mix(mixed.view(-1, 1), col_indices.to(torch.int64).view(1, -1) & _WORD)
    grid ^= 16  # bytes hashed
    grid ^= grid >> 16
    grid = (grid * 0x85EBCA6B) & _WORD
    grid ^= grid >> 13
    grid = (grid * 0xC2B2AE35) & _WORD
    grid ^= grid >> 16
    return grid.to(torch.uint32)


def _mix(state: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    scrambled = _rotate((block * 0xCC9E2D51) & _WORD, 15)
    scrambled = (scrambled * 0x1B873593) & _WORD
    return (_rotate(state ^ scrambled, 13) * 5 + 0xE6546B64) & _WORD


def _rotate(words: torch.Tensor, by: int) -> torch.Tensor:
    return ((words << by) | (words >> (32 - by))) & _WORD
