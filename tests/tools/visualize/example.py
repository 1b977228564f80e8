"""A page of a small made-up answer about a real clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from specvlm_sglang.report.entries import DRAFT, TARGET
from specvlm_sglang.tools.visualize.frames import read_frames
from specvlm_sglang.tools.visualize.page import render

GRID = [4, 3, 5]
SCORES = [float(f"{score:.6g}") for score in np.random.default_rng(2).random(60) ** 5]
RETENTION = 0.2
TOP_P = 0.4


def make_page(
    video: Path,
    *,
    grid: list[int] = GRID,
    scores: list[float] | None = SCORES,
    stage_one: list[int] | None = None,
    stage_two: list[int] | None = None,
    **changed: Any,
) -> str:
    """The page; the named ones go into the report's detail, ``changed`` to `render`."""
    settings: dict[str, Any] = {
        "question": "Is </script> shown?",
        "detail": {
            "grids": [grid],
            "video_lengths": [int(np.prod(grid))],
            "scores": scores,
            "stage_one": stage_one,
            "stage_two": stage_two,
            "origins": [TARGET, DRAFT, DRAFT, TARGET, TARGET, DRAFT],
        },
        "tokens": ["A", " red", " disc", " moves", ".", " Then"],
        "frames": read_frames(video, grid[0]),
        "numbers": [("video tokens", "60"), ("decoding", "50.2 tokens/s")],
        "retention": RETENTION,
        "policy": "specvlm",
        "top_p": TOP_P,
    }
    return render(**{**settings, **changed})
