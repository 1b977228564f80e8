"""Draw a pruned clip: the frames, their score heat map, and the tokens each stage kept."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from reference.selection import Selection

# Orange and blue stay apart for colour-blind readers.
STAGE_COLOURS = ((0.96, 0.55, 0.07), (0.16, 0.52, 0.96))
DIMMED = 0.4
MOST_COLUMNS = 6


def draw_pruned_clip(
    frames: npt.NDArray[np.uint8],
    scores: npt.NDArray[np.float32],
    selection: Selection,
    title: str,
    path: Path,
) -> None:
    """Write a PNG with three pictures per frame: itself, its scores, its kept tokens.

    Parameters
    ----------
    frames : uint8 [grids, height, width, 3]
        The first frame of each temporal patch.
    scores : float32 [grids, rows, columns]
    selection
        Indices into the flattened `scores`.
    """
    grids = len(frames)
    blocks = math.ceil(grids / MOST_COLUMNS)
    columns = math.ceil(grids / blocks)
    stages = np.zeros(scores.size, dtype=np.int64)
    stages[selection.stage_one], stages[selection.stage_two] = 1, 2
    stages = stages.reshape(scores.shape)
    # Scores span orders of magnitude: the colour is their ratio to an even spread, capped.
    ratio = scores * (scores.size / max(float(scores.sum()), np.finfo(np.float32).tiny))
    top = max(float(np.percentile(ratio, 99)), 1e-6)
    panel = 2.6
    height = panel * frames.shape[1] / frames.shape[2]
    figure, axes = plt.subplots(
        3 * blocks,
        columns,
        figsize=(panel * columns + 0.9, (height + 0.04) * 3 * blocks + 1.0),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
    heat = None
    for cell in axes.flat:
        cell.axis("off")
    for grid in range(grids):
        row, column = 3 * (grid // columns), grid % columns
        picture, map_, kept = (axes[row + i, column] for i in range(3))
        picture.imshow(frames[grid])
        picture.set_title(f"sampled frames {2 * grid + 1} and {2 * grid + 2}", fontsize=10)
        heat = map_.imshow(ratio[grid], cmap="magma", vmin=0, vmax=top, interpolation="nearest")
        kept.imshow(_tinted(frames[grid], stages[grid]))
        if column == 0:
            for cell, name in zip(
                (picture, map_, kept), ("frame", "attention score", "kept tokens"), strict=True
            ):
                _label(cell, name)
    assert heat is not None
    bar = figure.colorbar(heat, ax=axes, shrink=0.6, pad=0.01, aspect=20 * blocks, extend="max")
    bar.set_label("score, as a multiple of an even spread", fontsize=10)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    figure.suptitle(f"{title}\nscored by a toy target with random weights", fontsize=13)
    figure.legend(
        handles=[
            Patch(color=STAGE_COLOURS[0], label=f"Stage I, by score: {len(selection.stage_one)}"),
            Patch(
                color=STAGE_COLOURS[1],
                label=f"Stage II, without scores: {len(selection.stage_two)}",
            ),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=11,
    )
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)


def _label(cell: Axes, name: str) -> None:
    cell.text(
        -0.04,
        0.5,
        name,
        transform=cell.transAxes,
        rotation=90,
        ha="right",
        va="center",
        fontsize=11,
    )


def _tinted(frame: npt.NDArray[np.uint8], stages: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The frame with dropped tokens dark and kept ones framed in their stage's colour."""
    picture = frame / 255.0
    height, width = frame.shape[0] // stages.shape[0], frame.shape[1] // stages.shape[1]
    stage_of_pixel = stages.repeat(height, axis=0).repeat(width, axis=1)
    rows = np.arange(frame.shape[0])[:, None] % height
    columns = np.arange(frame.shape[1])[None, :] % width
    border = (np.minimum(rows, height - 1 - rows) < 3) | (
        np.minimum(columns, width - 1 - columns) < 3
    )
    grey = picture.mean(axis=-1, keepdims=True)
    shown = np.where((stage_of_pixel == 0)[..., None], DIMMED * grey, picture)
    for stage, colour in enumerate(STAGE_COLOURS, start=1):
        inside = stage_of_pixel == stage
        shown[inside] = 0.7 * shown[inside] + 0.3 * np.array(colour)
        shown[inside & border] = colour
    return shown
