"""Names of the pruning policies and what each needs; importable without torch."""

from __future__ import annotations

from typing import Any

POLICIES: tuple[str, ...] = (
    "specvlm",
    "specvlm-grid",
    "attention",
    "uniform",
    "uniform-grid",
    "random",
    "window-front",
    "window-middle",
    "window-back",
    "frames",
    "none",
)
"""Every policy; `specvlm_sglang.pruning.selection` says what they do."""

NEED_SCORES = ("specvlm", "specvlm-grid", "attention")
"""Policies that read the target's attention."""

NEED_GRID = ("specvlm-grid", "uniform-grid", "frames")
"""Policies that space tokens over frames and over each frame's area."""


def check_retention(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a share in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r} must be a number in (0, 1], the share that is kept")


def check_share(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a share in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be a number in [0, 1]")


def check_policy(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a policy."""
    if value not in POLICIES:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(POLICIES)}")
