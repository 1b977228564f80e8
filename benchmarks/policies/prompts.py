"""Prompts, read and answered by the target once, so that policies are measured without it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.tinyvid.clips import HELD_OUT, LENGTHS, Length, Prompt, held_out
from benchmarks.tinyvid.reader import Question, Reader


@dataclass(frozen=True)
class PromptSet:
    """One kind of prompt.

    Attributes
    ----------
    length
        Of the clips.
    ask
        One question of each kind that a clip allows, instead of its caption.
    seeds
        First seed, counted from the first held-out one.
    look
        What happens to the frames (`benchmarks.tinyvid.clips.LOOKS`).
    """

    length: Length
    ask: bool
    seeds: int
    look: str = "plain"


_8K = Length((16, 16), (4,), 448)
SETS = {
    "short": PromptSet(LENGTHS["training"], False, 21_000_000),
    "questions": PromptSet(LENGTHS["training"], True, 22_000_000),
    "2k": PromptSet(LENGTHS["2k tokens"], False, 23_000_000),
    "8k": PromptSet(_8K, False, 24_000_000),
    "short, noise": PromptSet(LENGTHS["training"], False, 25_000_000, "noise"),
    "short, pan": PromptSet(LENGTHS["training"], False, 26_000_000, "pan"),
    "short, dense": PromptSet(LENGTHS["dense"], False, 27_000_000),
}
"""Captions of 64 to 256 video tokens, questions about such clips, captions of 2,048 and 8,192;
short ones of noisy and panned frames, and of twice as many a second."""
TUNING = 5_000_000
"""Added to every seed of a set for trying things out: other clips than those of the table."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What measuring a policy needs of one prompt.

    Attributes
    ----------
    clip, kind
        Number of the clip in its set, and what was asked.
    answer
        The target's greedy tokens, int64.
    scores
        Its attention to each video token: float32 ``[N]``.
    fastv
        The same of the second layer and the last row alone, which FastV ranks by.
    pixel_change
        Mean difference of a token's pixels to those of its place a frame earlier, float32 ``[N]``;
        the first frame has the second's.
    embeddings
        The draft's, of the whole prompt: float32 ``[length, d]``.
    positions
        M-RoPE ids, int64 ``[3, length]``.
    video
        Where the video tokens stand, int64 ``[N]``.
    grid
        ``(frames, rows, columns)``, int64.
    delta
        M-RoPE id of a generated token minus its place, int64.
    """

    clip: int
    kind: str
    answer: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    fastv: npt.NDArray[np.float32]
    pixel_change: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int64]
    video: npt.NDArray[np.int64]
    grid: tuple[int, int, int]
    delta: int

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """The draft's vision features, ``[N, d]``."""
        return self.embeddings[self.video]


def prepared(
    name: str, clip: int, folder: Path, target: Reader, draft: Reader, *, tuning: bool = False
) -> Iterator[Prepared]:
    """Yield the prompts of one clip, from files in ``folder`` where they were prepared before.

    Parameters
    ----------
    name : str
        One of `SETS`.
    clip : int
        Its number in the set.
    folder : Path
        Keeps what was prepared.
    target, draft : Reader
        The pair.
    tuning : bool
        Seeds for trying things out.
    """
    file = folder / f"{name}{'-tuning' if tuning else ''}-{clip}.npz"
    if not file.exists():
        _prepare(name, clip, file, target, draft, tuning)
    yield from _read(file)


def stored(name: str, folder: Path) -> Iterator[Prepared]:
    """Yield the prompts of a set that were prepared before."""
    for file in sorted(folder.glob(f"{name}-[0-9]*.npz")):
        if not file.name.endswith(".part.npz"):
            yield from _read(file)


def _read(file: Path) -> Iterator[Prepared]:
    with np.load(file) as parts:
        for number in range(int(parts["count"])):
            part = {key: parts[f"{number}/{key}"] for key in Prepared.__annotations__}
            part["clip"], part["kind"] = int(part["clip"]), str(part["kind"])
            part["grid"], part["delta"] = tuple(part["grid"].tolist()), int(part["delta"])
            yield Prepared(**part)


def _prepare(name: str, clip: int, file: Path, target: Reader, draft: Reader, tuning: bool) -> None:
    chosen = SETS[name]
    first = HELD_OUT + chosen.seeds + (TUNING if tuning else 0)
    parts: dict[str, npt.ArrayLike] = {}
    count = 0
    with tempfile.TemporaryDirectory() as clips:
        prompts = held_out(
            chosen.length,
            clip + 1,
            Path(clips),
            first=first,
            ask=chosen.ask,
            start=clip,
            look=chosen.look,
        )
        for count, prompt in enumerate(prompts, 1):
            one = _answered(clip, prompt, target, draft)
            parts |= {f"{count - 1}/{key}": getattr(one, key) for key in Prepared.__annotations__}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part.npz")
    np.savez(unfinished, count=count, **parts)
    unfinished.rename(file)


def _answered(clip: int, prompt: Prompt, target: Reader, draft: Reader) -> Prepared:
    with torch.no_grad():
        question = target.question(prompt)
        answer = target.greedy(question)
        attention = target.attention(question, target.embeddings(question))
        return Prepared(
            clip,
            prompt.kind,
            np.array(answer, np.int64),
            attention.scores(),
            attention.scores(rows=1, layer=1),
            _pixel_change(question),
            draft.embeddings(question).numpy(),
            question.positions,
            question.video,
            question.token_grid,
            question.delta,
        )


def _pixel_change(question: Question) -> npt.NDArray[np.float32]:
    # A token is made of four patches, which stand together.
    frames = question.token_grid[0]
    tokens = question.pixels.reshape(frames, len(question.video) // frames, -1)
    change = (tokens[1:] - tokens[:-1]).abs().mean(-1)
    if frames == 1:
        return np.zeros(len(question.video), np.float32)
    return torch.cat([change[:1], change]).flatten().numpy()
