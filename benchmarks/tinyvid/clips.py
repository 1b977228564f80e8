"""Held-out prompts: real mp4 files, decoded and sampled as SGLang does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from specvlm_sglang.tools.demo.world import Scene, caption, make_scene, questions, write_clip
from specvlm_sglang.tools.demo.world.language import PROMPTS, plain

HELD_OUT = 2**32
"""First seed of held-out scenes; training draws its seeds from below 2 ** 31."""


@dataclass(frozen=True)
class Prompt:
    """A question about a clip, with its true answer.

    Attributes
    ----------
    scene : Scene
        What the clip shows.
    clip : Path
        An mp4 file.
    fps : float
        Frames read per second.
    kind : str
        "caption" or the kind of a `language.Question`.
    question, answer : str
        Texts.
    look : str
        What happens to the frames after they are read, one of `LOOKS`.
    """

    scene: Scene
    clip: Path
    fps: float
    kind: str
    question: str
    answer: str
    look: str = "plain"


@dataclass(frozen=True)
class Length:
    """One kind of held-out clip: seconds (lowest, highest), frames per second, pixels."""

    seconds: tuple[int, int]
    fps: tuple[int, ...]
    side: int


LENGTHS = {
    "training": Length((4, 16), (2,), 112),
    "dense": Length((4, 8), (4,), 112),
    "twice as long": Length((16, 16), (4,), 112),
    "2k tokens": Length((16, 16), (4,), 224),
}
"""`training` and `dense` have at most 32 frames, as in training; the other two have 64."""


def held_out(
    length: Length,
    count: int,
    folder: Path,
    *,
    first: int = HELD_OUT,
    ask: bool = False,
    start: int = 0,
    look: str = "plain",
) -> Iterator[Prompt]:
    """Write held-out clips and their prompts.

    Parameters
    ----------
    length : Length
        Of the clips.
    count : int
        Number of clips.
    folder : Path
        Where the files go.
    first : int
        Seed of the first scene.
    ask : bool
        One question of each kind that the clip allows, instead of the caption.
    start : int
        Leave out so many clips.
    look : str
        Of the prompts.
    """
    for index in range(start, count):
        rng = np.random.default_rng([first, index])
        low, high = length.seconds
        scene = make_scene(first + index, int(rng.integers(low, high + 1)))
        clip = write_clip(folder / f"{first + index}-{length.side}.mp4", scene, side=length.side)
        fps = int(rng.choice(length.fps))
        if not ask:
            prompt = PROMPTS[index % len(PROMPTS)]
            yield Prompt(scene, clip, fps, "caption", prompt, plain(caption(scene)), look)
            continue
        found = questions(scene)
        for kind in dict.fromkeys(question.kind for question in found):
            same = [question for question in found if question.kind == kind]
            chosen = same[rng.integers(len(same))]
            yield Prompt(scene, clip, fps, kind, chosen.text, plain(chosen.answer), look)


def _noise(frames: Tensor) -> Tensor:
    """A sensor's noise: 10 grey levels, another in every frame."""
    drawn = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    return (frames + 10 * drawn).round().clamp(0, 255).to(torch.uint8)


def _pan(frames: Tensor) -> Tensor:
    """A camera that sways sideways by a tenth of the width, once in 16 frames."""
    reach = frames.shape[-1] // 10
    turn = torch.arange(len(frames)) * (2 * torch.pi / 16)
    columns = torch.arange(frames.shape[-1]) + (reach * turn.sin()).round().long()[:, None]
    columns = columns.clamp(0, frames.shape[-1] - 1)
    return frames.gather(-1, columns[:, None, None].expand(frames.shape))


LOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda frames: frames,
    "noise": _noise,
    "pan": _pan,
}
"""What may happen to frames that were read; the models were trained on plain ones."""


def read(clip: Path, fps: float) -> tuple[Tensor, float]:
    """Frames of a file, and seconds between two pairs of them.

    Parameters
    ----------
    clip : Path
        A video file.
    fps : float
        Frames to read per second; an even number of them in all.

    Returns
    -------
    frames : uint8 tensor, shape (frames, 3, height, width)
    seconds_per_grid : float
    """
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    count = int(len(images) / rate * fps) // 2 * 2
    chosen = np.linspace(0, len(images) - 1, count, dtype=np.int64)
    frames = torch.from_numpy(np.stack([images[index] for index in chosen])).permute(0, 3, 1, 2)
    return frames, 2 * len(images) / (count * rate)
