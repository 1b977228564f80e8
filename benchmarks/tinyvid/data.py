"""Batches of clips with their texts, made on the fly from (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from benchmarks.tinyvid.labels import token_labels
from benchmarks.tinyvid.model import TOKEN_SIDE
from benchmarks.tinyvid.vocabulary import SYSTEM, build_tokenizer
from reference.positions import VisionSpan, mrope_positions
from specvlm_sglang.tools.demo.world import Phrase, caption, make_scene, questions, render
from specvlm_sglang.tools.demo.world.language import KINDS, PROMPTS
from specvlm_sglang.tools.demo.world.render import FPS

TOKENS_PER_SECOND = 2
"""Temporal M-RoPE ids per second of video."""
QUESTIONS_PER_CLIP = 2
UNKNOWN_RATE = 24
"""Frames per second that plain SGLang takes for granted."""
_PLAIN_SHARE = 0.25
"""Share of the clips whose time ids are plain SGLang's, so that the pair bears both."""
_NOISE = 0.03
"""Standard deviation of what stands in for the noise of H.264, in normalised pixels."""


@dataclass(frozen=True)
class Shape:
    """What the clips of one batch share.

    Attributes
    ----------
    side : int
        Pixels of a square frame's edge.
    seconds, fps : int
        Length, and frames read per second.
    clips : int
        In the batch.
    """

    side: int
    seconds: int
    fps: int
    clips: int

    @property
    def grids(self) -> int:
        return self.seconds * self.fps // 2


@dataclass
class Batch:
    """Tensors of one training step; clips first, prompt and padded answers along `length`.

    Attributes
    ----------
    patches : bfloat16, (clips, grids, rows, columns, 4, 1176)
    labels : int64, (clips, grids * rows * columns, properties)
        What each video token shows (see `labels`); -1 where nothing.
    ids : int64, (clips, length)
    positions : int64, (3, clips, length)
    mask : bool, (clips, 1, length, length)
    video : slice
        Of the video tokens along `length`.
    goals : int64, (clips, length)
        The next token where it belongs to an answer; -100 elsewhere.
    kinds : int64, (clips, length)
        Index into `KINDS` of the fact that the next token states; -1 for none.
    """

    patches: Tensor
    labels: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    video: slice
    goals: Tensor
    kinds: Tensor


def sampled_times(seconds: int, fps: int) -> list[float]:
    """Times of the frames that SGLang reads from a clip: evenly spaced indices, ends included."""
    total = seconds * FPS
    return [int(index) / FPS for index in np.linspace(0, total - 1, seconds * fps, dtype=int)]


def patchify(frames: Tensor) -> Tensor:
    """Pixels in the processor's order.

    Parameters
    ----------
    frames : tensor, shape (clips, frames, height, width, 3)
        Levels 0 to 255.

    Returns
    -------
    float tensor, shape (clips, frames / 2, height / 28, width / 28, 4, 1176)
    """
    scale = 1 / (255 * torch.tensor(OPENAI_CLIP_STD))
    shift = torch.tensor(OPENAI_CLIP_MEAN) / torch.tensor(OPENAI_CLIP_STD)
    clips, count, height, width, _ = frames.shape
    x = frames.view(clips, count // 2, 2, height // 28, 2, 14, width // 28, 2, 14, 3)
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).contiguous().float()
    x = x.mul_(scale[:, None, None, None]).sub_(shift[:, None, None, None])
    return x.view(clips, count // 2, height // 28, width // 28, 4, 1176)


def make_batch(shape: Shape, seed: int, step: int) -> Batch:
    """The batch of a step, the same for the same arguments."""
    rng = np.random.default_rng([seed, step])
    scenes = [make_scene(int(rng.integers(2**31)), shape.seconds) for _ in range(shape.clips)]
    times = sampled_times(shape.seconds, shape.fps)
    frames = np.stack([render(scene, times, side=shape.side) for scene in scenes])
    tails = []
    for scene in scenes:
        asked = [(PROMPTS[rng.integers(len(PROMPTS))], caption(scene))]
        others = questions(scene)
        for index in rng.permutation(len(others))[:QUESTIONS_PER_CLIP]:
            asked.append((others[index].text, others[index].answer))
        tails.append([_segment(text, answer) for text, answer in asked])
    plain = rng.random(shape.clips) < _PLAIN_SHARE
    tokens = shape.side // TOKEN_SIDE
    seconds_per_grid = [2 / UNKNOWN_RATE if p else 2 / shape.fps for p in plain]
    patches = patchify(torch.from_numpy(frames)).bfloat16()
    _add_noise(patches, rng)
    labels = np.stack([token_labels(scene, times, tokens) for scene in scenes])
    return Batch(
        patches=patches,
        labels=torch.from_numpy(labels),
        **_texts(tails, (shape.grids, 2 * tokens, 2 * tokens), seconds_per_grid),
    )


def _add_noise(patches: Tensor, rng: np.random.Generator) -> None:
    bank = _noise_bank()
    for grid in patches.flatten(0, 1):
        start = int(rng.integers(len(bank) - grid.numel()))
        grid += bank[start : start + grid.numel()].view(grid.shape)


@cache
def _noise_bank() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1 << 20, generator=generator).mul_(_NOISE).bfloat16()


@cache
def prefix_ids() -> list[int]:
    """The prompt up to the first video token."""
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    return list(build_tokenizer()(text).input_ids)


@cache
def question_ids(text: str) -> list[int]:
    """The prompt from the end of the video on."""
    tail = f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
    return list(build_tokenizer()(tail).input_ids)


@cache
def _phrase_ids(text: str) -> list[int]:
    return list(build_tokenizer()(text).input_ids)


def _segment(question: str, answer: list[Phrase]) -> tuple[list[int], list[int], list[int]]:
    """Ids, goals and kinds of one question with its answer."""
    ids = list(question_ids(question))
    goals, kinds = [-100] * (len(ids) - 1), [-1] * (len(ids) - 1)
    for phrase in [*answer, Phrase("<|im_end|>")]:
        pieces = _phrase_ids(phrase.text)
        ids += pieces
        goals += pieces
        kinds += [-1 if phrase.kind is None else KINDS.index(phrase.kind)] * len(pieces)
    return ids, [*goals, -100], [*kinds, -1]


def _texts(
    tails: list[list[tuple[list[int], list[int], list[int]]]],
    grid_thw: tuple[int, int, int],
    seconds_per_grid: list[float],
) -> dict[str, Tensor | slice]:
    prefix = prefix_ids()
    tokens = grid_thw[0] * grid_thw[1] * grid_thw[2] // 4
    head = len(prefix) + tokens
    length = head + max(sum(len(segment[0]) for segment in tail) for tail in tails)
    length = -(-length // 16) * 16
    tokenizer = build_tokenizer()
    video = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    shape = (len(tails), length)
    ids = np.full(shape, tokenizer.pad_token_id)
    ids[:, :head] = prefix + [video] * tokens
    goals, kinds = np.full(shape, -100), np.full(shape, -1)
    owner = np.full(shape, -1)
    owner[:, :head] = 0
    positions = np.zeros((3, *shape), np.int64)
    for clip, tail in enumerate(tails):
        span = VisionSpan(len(prefix), grid_thw, seconds_per_grid[clip])
        row = mrope_positions(head, [span], tokens_per_second=TOKENS_PER_SECOND)
        positions[:, clip, :head] = row
        start, after = head, int(row.max()) + 1
        for number, segment in enumerate(tail, 1):
            stop = start + len(segment[0])
            ids[clip, start:stop], goals[clip, start:stop], kinds[clip, start:stop] = segment
            owner[clip, start:stop] = number
            positions[:, clip, start:stop] = np.arange(after, after + stop - start)
            start = stop
    owner_t = torch.from_numpy(owner)
    rows, columns = owner_t[:, :, None], owner_t[:, None, :]
    mask = ((columns == 0) | (rows == columns)) & torch.ones(length, length).tril().bool()
    return {
        "ids": torch.from_numpy(ids),
        "positions": torch.from_numpy(positions),
        "mask": mask[:, None],
        "video": slice(len(prefix), head),
        "goals": torch.from_numpy(goals),
        "kinds": torch.from_numpy(kinds),
    }
