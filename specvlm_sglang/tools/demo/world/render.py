"""Draws a scene.

The background tells where and when: bluish above, yellowish below, reddish on the left, greenish
on the right, and lighter with every second. A shape is framed in white in its first second and in
black in its last one before it leaves, and is two-coloured in the second in which it changes. Grey
specks drift about and mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from specvlm_sglang.tools.demo.world.scene import MAX_SECONDS, Actor, Scene

Frames = npt.NDArray[np.uint8]
"""RGB frames, shape (frames, height, width, 3)."""
_Mask = npt.NDArray[np.bool_]

FPS = 4
"""Frames per second of the clips that are written."""

RGB = {
    "red": (220, 30, 30),
    "orange": (250, 140, 10),
    "yellow": (245, 235, 40),
    "green": (20, 140, 40),
    "cyan": (30, 220, 230),
    "blue": (30, 50, 220),
    "purple": (120, 20, 160),
    "pink": (255, 130, 195),
}
_DARKEST, _LIGHTEST = 55.0, 175.0
_ROW_TINTS = ((-8.0, -4.0, 26.0), (0.0, 0.0, 0.0), (10.0, 6.0, -28.0))
_COLUMN_TINTS = ((24.0, -10.0, 0.0), (0.0, 0.0, 0.0), (-24.0, 10.0, 0.0))
_TEXTURE = 5.0
_SPECKS = 3


def render(scene: Scene, times: Sequence[float], *, side: int) -> Frames:
    """Draw the scene at the given times.

    Parameters
    ----------
    scene : Scene
        What to draw.
    times : sequence of float
        In seconds, within the clip.
    side : int
        Pixels of the shorter edge; at least 56.

    Returns
    -------
    uint8 array, shape (len(times), height, width, 3)

    Raises
    ------
    ValueError
        If `side` is too small or a time is outside the clip.
    """
    if side < 56:
        raise ValueError(f"side must be at least 56 pixels, got {side}")
    outside = [time for time in times if not 0 <= time < scene.seconds]
    if outside:
        raise ValueError(f"times must be within [0, {scene.seconds}), got {outside[0]}")
    height, width = round(scene.height * side), round(scene.width * side)
    rng = np.random.default_rng([scene.seed, 1])
    ground = _ground(rng, height, width)
    specks = rng.uniform(0, 1, (_SPECKS, 4))
    step = (_LIGHTEST - _DARKEST) / (MAX_SECONDS - 1)
    levels = {int(time) for time in times}
    lit = {s: np.clip(ground + (_DARKEST + step * s), 0, 255).astype(np.uint8) for s in levels}
    frames = np.empty((len(times), height, width, 3), np.uint8)
    for frame, time in zip(frames, times, strict=True):
        frame[:] = lit[int(time)]
        for x, y, dx, dy in specks:
            column = int((x + (dx - 0.5) * 0.1 * time) % 1 * width)
            row = int((y + (dy - 0.5) * 0.1 * time) % 1 * height)
            frame[row : row + side // 28, column : column + side // 28] = 128
        for actor in scene.actors:
            if actor.visible(time):
                _draw(frame, scene, actor, time, side)
    return frames


def write_clip(path: Path, scene: Scene, *, side: int = 112) -> Path:
    """Write the scene as an H.264 mp4 of `FPS` frames a second.

    Parameters
    ----------
    path : Path
        File to write.
    scene : Scene
        What to draw.
    side : int
        Pixels of the shorter edge; even.

    Raises
    ------
    ValueError
        If `side` is too small, or leaves an odd edge, which H.264 with 4:2:0 colour cannot have.
    """
    frames = render(scene, [index / FPS for index in range(scene.seconds * FPS)], side=side)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"side must give even edges, got {side}: {height} x {width} pixels")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def _ground(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    rows = np.repeat(np.array(_ROW_TINTS), -(-height // 3), axis=0)[:height]
    columns = np.repeat(np.array(_COLUMN_TINTS), -(-width // 3), axis=0)[:width]
    coarse = rng.uniform(-_TEXTURE, _TEXTURE, (-(-height // 4), -(-width // 4), 1))
    texture = np.kron(coarse, np.ones((4, 4, 1)))[:height, :width]
    ground: npt.NDArray[np.float32] = (rows[:, None] + columns[None] + texture).astype(np.float32)
    return ground


def _draw(frame: Frames, scene: Scene, actor: Actor, time: float, side: int) -> None:
    x, y = actor.position(time)
    size = round(actor.size * side)
    border = max(2, round(0.03 * side))
    if time < actor.start + 1:
        _paint(frame, _mask(actor.shape, size + 2 * border), x * side, y * side, (255, 255, 255))
    elif actor.end < scene.seconds and time >= actor.end - 1:
        _paint(frame, _mask(actor.shape, size + 2 * border), x * side, y * side, (0, 0, 0))
    mask = _mask(actor.shape, size)
    colour = actor.colour
    if actor.change is not None and time >= actor.change[0]:
        colour = actor.change[1]
    _paint(frame, mask, x * side, y * side, RGB[colour])
    if actor.change is not None and actor.change[0] <= time < actor.change[0] + 1:
        lower = mask.copy()
        lower[: size // 2] = False
        _paint(frame, lower, x * side, y * side, RGB[actor.colour])


def _paint(frame: Frames, mask: _Mask, x: float, y: float, colour: tuple[int, int, int]) -> None:
    size = len(mask)
    top, left = round(y - size / 2), round(x - size / 2)
    bottom, right = top + size, left + size
    cut = mask[
        max(-top, 0) : size - max(bottom - frame.shape[0], 0),
        max(-left, 0) : size - max(right - frame.shape[1], 0),
    ]
    frame[max(top, 0) : bottom, max(left, 0) : right][cut] = colour


@lru_cache(maxsize=1024)
def _mask(shape: str, size: int) -> _Mask:
    y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
    radius = np.hypot(x, y)
    inside = {
        "circle": radius <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 0.9,
        "triangle": abs(x) <= (y + 1) / 2,
        "diamond": abs(x) + abs(y) <= 1,
        "cross": np.minimum(abs(x), abs(y)) <= 0.3,
        "ring": (radius <= 1) & (radius >= 0.5),
    }[shape]
    result: _Mask = inside
    return result
