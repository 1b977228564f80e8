"""Copies between the host and the device that do not wait for it."""

from __future__ import annotations

import torch


def to_device(host: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor on ``device``; from the CPU to CUDA without a host sync."""
    device = torch.device(device)
    if device.type == "cuda" and host.device.type == "cpu":
        # A copy out of pageable memory would wait for everything queued on the stream.
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


class LateFlag:
    """A bool of the device that the host reads later, when it has long arrived.

    Parameters
    ----------
    flag
        bool scalar, on any device. On CUDA it starts its way behind what the stream has queued.
    """

    def __init__(self, flag: torch.Tensor) -> None:
        self._flag = flag
        self._arrival: torch.cuda.Event | None = None
        if flag.is_cuda:
            self._flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record()

    def value(self) -> bool:
        """The bool; waits for it only where it is not here yet."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return bool(self._flag)
