"""What happens in a clip: an exact scene graph drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
ROWS = ("upper", "middle", "lower")
COLUMNS = ("left", "centre", "right")
MOTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
MAX_SECONDS = 16
"""The longest clip: as many seconds as the background has levels of light."""

SPEED = 0.13
"""Sides of the clip's shorter edge that a moving actor travels in a second."""
_ATTEMPTS = 40
_EDGE = 0.04
"""No actor starts nearer than this (in shorter edges) to the border between two places."""


@dataclass(frozen=True)
class Actor:
    """One coloured shape from its coming to its going.

    Lengths are in units of the clip's shorter edge, so that the same scene can be drawn at any
    resolution; times are in seconds.

    Attributes
    ----------
    colour, shape, motion : str
        Of `COLOURS`, `SHAPES`, `MOTIONS`.
    start, end : int
        On screen during [start, end); an `end` at the clip's length means that it stays.
    x, y : float
        Centre at `start`.
    size : float
        Diameter.
    change : tuple of (int, str), optional
        Second at which it turns another colour, and that colour.
    meets : int, optional
        Index of the still actor that it moves up to and rests beside in its last second.
    """

    colour: str
    shape: str
    motion: str
    start: int
    end: int
    x: float
    y: float
    size: float
    change: tuple[int, str] | None = None
    meets: int | None = None

    def position(self, time: float) -> tuple[float, float]:
        """Centre (x, y) at `time` seconds."""
        moving = self.end - self.start - (1 if self.meets is not None else 0)
        travelled = SPEED * min(max(time - self.start, 0.0), moving)
        dx, dy = MOTIONS[self.motion]
        return self.x + dx * travelled, self.y + dy * travelled

    def visible(self, time: float) -> bool:
        return self.start <= time < self.end


@dataclass(frozen=True)
class Scene:
    """A clip's scene graph.

    Attributes
    ----------
    seed : int
        It also fixes texture and distractors.
    seconds : int
        Length of the clip.
    width, height : float
        In units of the shorter edge; the smaller of the two is 1.
    actors : tuple of Actor
        By time of appearance; at most one appears in any second.
    """

    seed: int
    seconds: int
    width: float
    height: float
    actors: tuple[Actor, ...]

    def place(self, actor: Actor) -> tuple[str, str]:
        """Row and column, of `ROWS` and `COLUMNS`, where the actor appears."""
        row = min(int(3 * actor.y / self.height), 2)
        column = min(int(3 * actor.x / self.width), 2)
        return ROWS[row], COLUMNS[column]


def make_scene(
    seed: int, seconds: int = 8, *, width: float = 1.0, height: float = 1.0, max_actors: int = 7
) -> Scene:
    """Draw a scene.

    Parameters
    ----------
    seed : int
        Same seed and sizes, same scene.
    seconds : int
        Length of the clip, 2 to `MAX_SECONDS`.
    width, height : float
        Aspect, in units of the shorter edge (the smaller one is 1).
    max_actors : int
        At most so many actors, at least 1.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if not 2 <= seconds <= MAX_SECONDS:
        raise ValueError(f"seconds must be 2 to {MAX_SECONDS}, got {seconds}")
    if min(width, height) != 1.0:
        raise ValueError(f"the smaller of width and height must be 1, got {width} x {height}")
    if max_actors < 1:
        raise ValueError(f"max_actors must be at least 1, got {max_actors}")
    rng = np.random.default_rng([seed, seconds])
    count = int(np.clip(round(seconds * rng.uniform(0.35, 0.65)), 1, max_actors))
    starts = np.sort(rng.choice(seconds - 1, size=min(count, seconds - 1), replace=False))
    looks = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    order = rng.permutation(len(looks))
    actors: list[Actor] = []
    for index, start in enumerate(starts):
        colour, shape = looks[order[index]]
        actor = _meeting(rng, actors, colour, shape, int(start), seconds, width, height)
        if actor is None:
            taken = {(a.colour, a.shape) for a in actors}
            taken |= {(a.change[1], a.shape) for a in actors if a.change}
            if (colour, shape) in taken:
                continue
            taken |= {looks[i] for i in order[: len(starts)]}
            actor = _actor(rng, actors, colour, shape, taken, int(start), seconds, width, height)
        if actor is not None:
            actors.append(actor)
    return Scene(seed, seconds, width, height, tuple(actors))


def _actor(
    rng: np.random.Generator,
    others: list[Actor],
    colour: str,
    shape: str,
    taken: set[tuple[str, str]],
    start: int,
    seconds: int,
    width: float,
    height: float,
) -> Actor | None:
    """An actor that keeps clear of the others, or None if no place was found."""
    end = min(start + int(rng.integers(2, 5)), seconds)
    change = None
    if end - start >= 3 and rng.random() < 0.3:
        free = [other for other in COLOURS if (other, shape) not in taken]
        if free:
            change = (int(rng.integers(start + 1, end - 1)), free[rng.integers(len(free))])
    for _ in range(_ATTEMPTS):
        motion = list(MOTIONS)[rng.integers(len(MOTIONS))]
        size = float(rng.uniform(0.22, 0.27))
        x, y = _start_point(rng, motion, size, SPEED * (end - start), width, height)
        # Those that rest stay longer, so that others can meet them.
        longer = 2 if motion == "still" and change is None else 0
        last = min(end + longer, seconds)
        actor = Actor(colour, shape, motion, start, last, x, y, size, change)
        if _inside(actor, width, height) and _clear(actor, others):
            return actor
    return None


def _meeting(
    rng: np.random.Generator,
    others: list[Actor],
    colour: str,
    shape: str,
    start: int,
    seconds: int,
    width: float,
    height: float,
) -> Actor | None:
    """An actor that moves up to a still one, where one is on screen long enough."""
    life = int(rng.integers(2, 4))
    end = start + life
    hosts = [
        index
        for index, host in enumerate(others)
        if host.motion == "still" and host.change is None and host.end >= end
    ]
    taken = {(a.change[1], a.shape) for a in others if a.change}
    if not hosts or end >= seconds or (colour, shape) in taken or rng.random() < 0.3:
        return None
    index = hosts[rng.integers(len(hosts))]
    host = others[index]
    size = float(rng.uniform(0.22, 0.27))
    for motion in rng.permutation(["left", "right", "up", "down"]):
        dx, dy = MOTIONS[str(motion)]
        gap = (size + host.size) / 2 + 0.01 + SPEED * (life - 1)
        x, y = host.x - dx * gap, host.y - dy * gap
        actor = Actor(colour, shape, str(motion), start, end, x, y, size, None, index)
        rest = [other for other in others if other is not host]
        if (
            _inside(actor, width, height)
            and _clear(actor, rest)
            and _distinct(x, width)
            and _distinct(y, height)
        ):
            return actor
    return None


def _start_point(
    rng: np.random.Generator,
    motion: str,
    size: float,
    travel: float,
    width: float,
    height: float,
) -> tuple[float, float]:
    """A point from which the whole way fits into the clip, away from the borders of places."""
    point = []
    for step, side in zip(MOTIONS[motion], (width, height), strict=True):
        low, high = size / 2 + 0.03, side - size / 2 - 0.03
        low += travel if step < 0 else 0.0
        high -= travel if step > 0 else 0.0
        value = rng.uniform(low, max(high, low))
        while high > low and not _distinct(value, side):
            value = rng.uniform(low, high)
        point.append(float(value))
    return point[0], point[1]


def _distinct(value: float, side: float) -> bool:
    return min(abs(value - side / 3), abs(value - 2 * side / 3)) > _EDGE


def _inside(actor: Actor, width: float, height: float) -> bool:
    margin = actor.size / 2 + 0.025
    points = (actor.position(actor.start), actor.position(actor.end))
    return all(margin <= x <= width - margin and margin <= y <= height - margin for x, y in points)


def _clear(actor: Actor, others: list[Actor]) -> bool:
    """Whether the actor keeps a gap to the others for as long as both are on screen."""
    for other in others:
        gap = (actor.size + other.size) / 2 + 0.05
        first, last = max(actor.start, other.start), min(actor.end, other.end)
        for time in np.arange(first, last + 0.01, 0.5).tolist() if first < last else ():
            x, y = actor.position(time)
            other_x, other_y = other.position(time)
            if max(abs(x - other_x), abs(y - other_y)) < gap:
                return False
    return True
