"""What a request with ``custom_params={"specvlm": {"detail": true}}`` gets to see of its pruning.

Only such a request waits for the device to hand over its scores.
"""

from __future__ import annotations

from typing import Any

import torch

from specvlm_sglang.pruning.layout import VideoLayout
from specvlm_sglang.pruning.selection import Selection

_DIGITS = 6


def start_detail(layout: VideoLayout) -> dict[str, Any]:
    """Return the part of the detail that is known before any selection.

    Parameters
    ----------
    layout
        The request's.

    Returns
    -------
    dict
        ``grids`` (``[frames, rows, columns]`` or None for each video), ``video_lengths``,
        ``scores``, ``stage_one`` and ``stage_two`` (None until `add_selection`: all tokens kept).
    """
    return {
        "grids": [None if grid is None else list(grid) for grid in layout.video_grids],
        "video_lengths": list(layout.video_lengths),
        "scores": None,
        "stage_one": None,
        "stage_two": None,
    }


def add_selection(
    detail: dict[str, Any], scores: torch.Tensor | None, selection: Selection
) -> None:
    """Add scores and kept tokens to a detail.

    Parameters
    ----------
    detail
        From `start_detail`.
    scores
        float32 ``[N]``, rounded to six significant digits; None where the policy reads none.
    selection
        The kept tokens; indices count through all videos of the prompt.
    """
    if scores is not None:
        detail["scores"] = [float(f"{score:.{_DIGITS}g}") for score in scores.tolist()]
    for stage, chosen in (("stage_one", selection.stage_one), ("stage_two", ~selection.stage_one)):
        detail[stage] = selection.indices[chosen].tolist()
