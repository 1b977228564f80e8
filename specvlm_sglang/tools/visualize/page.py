"""Builds the page: data, style and scripts in one HTML file that loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from specvlm_sglang.report.entries import DRAFT
from specvlm_sglang.tools.visualize.frames import Frame

_FOLDER = "specvlm_sglang.tools.visualize"


def computed_policies() -> list[str]:
    """Policies that the page's own script computes, in the order in which it offers them."""
    script = files(_FOLDER).joinpath("selection.js").read_text(encoding="utf-8")
    listed = re.search(r"const COMPUTED = (\[.*?\]);", script, re.DOTALL)
    assert listed is not None
    found: list[str] = json.loads(listed.group(1))
    return found


def split_rounds(tokens: Sequence[str], origins: Sequence[str]) -> list[dict[str, Any]]:
    """Divide an answer into its prefill token and its verify rounds.

    Parameters
    ----------
    tokens
        Text of each token of the answer.
    origins
        Who wrote each of them: the report's ``detail["origins"]``
        (`specvlm_sglang.report.entries.ResponseReport`).

    Returns
    -------
    list of dict
        ``drafted`` (list of str) and ``own`` (str, or None where the answer ended before it). The
        first has the target's prefill token only.

    Raises
    ------
    ValueError
        Not one origin a token.
    """
    if len(tokens) != len(origins):
        raise ValueError(f"{len(origins)} origins must be as many as tokens, {len(tokens)}")
    rounds: list[dict[str, Any]] = []
    drafted: list[str] = []
    for token, origin in zip(tokens, origins, strict=True):
        if origin == DRAFT:
            drafted.append(token)
        else:
            rounds.append({"drafted": drafted, "own": token})
            drafted = []
    if drafted:
        rounds.append({"drafted": drafted, "own": None})
    return rounds


def render(
    *,
    question: str,
    detail: dict[str, Any],
    tokens: Sequence[str],
    frames: Sequence[Frame],
    numbers: Sequence[tuple[str, str]],
    retention: float,
    policy: str,
    top_p: float,
) -> str:
    """Return the page of one answered question about one video.

    Parameters
    ----------
    question
        What was asked.
    detail
        The report's ``detail`` (`specvlm_sglang.report.detail`), of one video with a grid.
    tokens
        Text of each token of the answer.
    frames
        One picture for each frame of the grid.
    numbers
        Names and values shown on top.
    retention, policy, top_p
        As served; where the page starts.

    Raises
    ------
    ValueError
        Another number of videos than one, a video without a grid, or not one origin a token.
    """
    grids = detail["grids"]
    if len(grids) != 1 or grids[0] is None:
        raise ValueError(f"grids={grids}: the page shows exactly one video with a regular grid")
    scores = detail["scores"]
    note = (
        "Selections on this page are computed in it; 'random' draws from seed 0. "
        "One picture stands for each frame of the token grid."
    )
    if scores is None:
        note += " No attention was scored here, so policies that read it keep evenly spaced tokens."
    served = None
    if policy not in computed_policies():
        note += f" {policy!r} is shown as it was served."
        one, two = detail["stage_one"], detail["stage_two"]
        everything = list(range(detail["video_lengths"][0]))
        served = {"stageOne": one or [], "stageTwo": everything if two is None else two}
    data = {
        "question": question,
        "grid": grids[0],
        "scores": scores,
        "permutation": np.random.default_rng(0).permutation(detail["video_lengths"][0]).tolist(),
        "frames": [{"time": frame.time, "url": frame.url} for frame in frames],
        "rounds": split_rounds(tokens, detail["origins"]),
        "numbers": list(numbers),
        "retention": retention,
        "policy": policy,
        "policies": computed_policies(),
        "served": served,
        "top_p": top_p,
        "note": note,
    }
    # "<" written so cannot end the script element, whatever a question or an answer says.
    text = json.dumps(data).replace("<", "\\u003c")
    folder = files(_FOLDER)
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    for mark, name in (("STYLE", "page.css"), ("SELECTION", "selection.js"), ("SCRIPT", "page.js")):
        page = page.replace(f"/*{mark}*/", folder.joinpath(name).read_text(encoding="utf-8"))
    return page.replace("/*DATA*/", text)
