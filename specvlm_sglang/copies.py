"""Copies from the host to the device that do not wait for it."""

from __future__ import annotations

import torch


def to_device(host: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a CPU tensor on ``device``, without a host sync on CUDA."""
    device = torch.device(device)
    if device.type == "cuda":
        # A copy out of pageable memory would wait for everything queued on the stream.
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
