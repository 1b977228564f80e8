"""Muon for many small matrices: those of one shape are orthogonalised together.

The update rule is Keller Jordan's (momentum, five Newton-Schulz steps), scaled to the step lengths
of AdamW as in "Muon is Scalable for LLM Training" (arXiv 2502.16982). `torch.optim.Muon` does the
same one matrix at a time, which on a CPU costs more than the model's own forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Muon over matrices.

    Parameters
    ----------
    parameters : iterable of Parameter
        Two-dimensional.
    weight_decay : float
        Share of the learning rate by which weights shrink.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, weight_decay: float) -> None:
        super().__init__(list(parameters), {"lr": 1e-3, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            ordered = sorted(group["params"], key=lambda p: tuple(p.shape))
            for shape, same in groupby(ordered, key=lambda p: tuple(p.shape)):
                members = [p for p in same if p.grad is not None]
                if not members:
                    continue
                for p in members:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - _MOMENTUM)
                blends = [p.grad.lerp(self.state[p]["momentum"], _MOMENTUM) for p in members]
                updates = orthogonalised(torch.stack(blends))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for p, update in zip(members, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-scale)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Nearly orthogonal matrices with the same row and column spaces.

    Parameters
    ----------
    matrices : tensor, shape (count, rows, columns)

    Returns
    -------
    float32 tensor of the same shape
        Singular values between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return (x.mT if tall else x).float()
