"""What each video token shows, for the auxiliary loss that teaches the vision tower to see.

A linear head reads these properties off every token during training and is thrown away after it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from specvlm_sglang.tools.demo.world.scene import (
    COLOURS,
    MAX_SECONDS,
    MOTIONS,
    SHAPES,
    Actor,
    Scene,
)

PROPERTIES = {
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "motion": len(MOTIONS) + 1,
    "state": 5,
    "row": 3,
    "column": 3,
    "second": MAX_SECONDS,
}
"""Classes of each property; class 0 of the first four means a token without an actor."""
_COVERED = 0.15
"""Share of a token's area that an actor must cover to be its content."""


def token_labels(scene: Scene, times: list[float], cells: int) -> npt.NDArray[np.int64]:
    """Labels of a square clip's tokens.

    Parameters
    ----------
    scene : Scene
        Of a square clip.
    times : list of float
        Of the frames, in seconds; two by two they make the grids.
    cells : int
        Tokens along an edge.

    Returns
    -------
    int64 array, shape (grids * cells * cells, len(PROPERTIES))
        Without an actor, a token has colour and state 0, and -1 for what it cannot have.
    """
    grids = len(times) // 2
    labels = np.zeros((grids, cells, cells, len(PROPERTIES)), np.int64)
    labels[..., [1, 2, 4, 5]] = -1
    covered = np.full((grids, cells, cells), _COVERED)
    edges = np.arange(cells + 1) / cells
    for grid in range(grids):
        time = times[2 * grid + 1]
        labels[grid, ..., 6] = int(time)
        for actor in scene.actors:
            if not actor.visible(time):
                continue
            x, y = actor.position(time)
            across = _overlap(edges, x, actor.size)
            down = _overlap(edges, y, actor.size)
            share = down[:, None] * across[None]
            won = share > covered[grid]
            covered[grid][won] = share[won]
            labels[grid, won, :6] = [
                COLOURS.index(actor.colour) + 1
                if actor.change is None or time < actor.change[0]
                else COLOURS.index(actor.change[1]) + 1,
                SHAPES.index(actor.shape) + 1,
                list(MOTIONS).index(actor.motion) + 1,
                _state(scene, actor, time),
                min(int(3 * y), 2),
                min(int(3 * x), 2),
            ]
    return labels.reshape(-1, len(PROPERTIES))


def _overlap(edges: npt.NDArray[np.float64], centre: float, size: float) -> npt.NDArray[np.float64]:
    low, high = centre - size / 2, centre + size / 2
    shared = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.maximum(shared, 0) * (len(edges) - 1)


def _state(scene: Scene, actor: Actor, time: float) -> int:
    if time < actor.start + 1:
        return 1
    if actor.end < scene.seconds and time >= actor.end - 1:
        return 2
    if actor.change is not None and actor.change[0] <= time < actor.change[0] + 1:
        return 3
    return 4
