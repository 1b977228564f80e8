"""What is asked: clips of several lengths, alone and together, once and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.bench.configurations import MAIN, PAPER, PLAIN, UNPRUNED
from specvlm_sglang.tools.chat import data_url
from specvlm_sglang.tools.errors import ToolError

if TYPE_CHECKING:
    from specvlm_sglang.tools.bench.datasets import Sample

CLIP_SECONDS = 16
CLIP_FPS = 4
FIRST_SEED = 5_000_000_000
"""Training drew its scenes' seeds from below 2 ** 31, the evaluation from other ranges."""
LONG_ANSWER = 128
"""Clips of the default workloads are to be answered with at least so many tokens."""
_FOUR = (PLAIN, UNPRUNED, MAIN, PAPER)
_ALL = (
    *(*_FOUR, "specvlm-0.5", "specvlm-0.25", "specvlm-0.05", "specvlm-0.05-p0.4"),
    *(f"{MAIN}-tree", f"{PAPER}-tree"),
)
_THREE = (PLAIN, MAIN, PAPER)


@dataclass(frozen=True)
class Workload:
    """One kind of use.

    Attributes
    ----------
    name
        As given to ``--workloads``.
    about
        What it is, for people.
    side
        Edge of the clips' square frames, in pixels.
    configurations
        Which are compared, unless ``--configurations`` says otherwise.
    rounds
        How often each configuration answers, every time about other clips.
    max_tokens
        Length limit of an answer.
    concurrency
        Clips asked about at the same time.
    questions
        Questions per clip, one after the other. With more than one the first is not measured:
        it fills the caches.
    history
        Whether a question comes with the questions and answers before it.
    """

    name: str
    about: str
    side: int
    configurations: tuple[str, ...]
    rounds: int
    max_tokens: int = 256
    concurrency: int = 1
    questions: int = 1
    history: bool = False


MAIN_WORKLOAD = "2k"
WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(MAIN_WORKLOAD, "2,048 video tokens, one request", 224, _ALL, 3),
        Workload("512", "512 video tokens, one request", 112, _FOUR, 2),
        Workload("8k", "8,192 video tokens, one request", 448, _FOUR, 1),
        Workload("16k", "16,928 video tokens, one request", 644, _FOUR, 1),
        Workload("2k-128", "2,048 video tokens, answers of 128 tokens", 224, _FOUR, 1, 128),
        Workload("2k-short", "2,048 video tokens, answers of 32 tokens", 224, _FOUR, 1, 32),
        Workload("2k-x4", "2,048 video tokens, 4 requests at once", 224, _THREE, 1, concurrency=4),
        Workload("2k-x8", "2,048 video tokens, 8 requests at once", 224, _THREE, 1, concurrency=8),
        Workload(
            "2k-again",
            "further questions on a video that the server has seen",
            *(224, _THREE, 1),
            questions=4,
        ),
        Workload(
            "2k-chat",
            "later turns of a chat about a video",
            *(224, _THREE, 1),
            questions=3,
            history=True,
        ),
    )
}
"""Workloads of the shipped pair's world, by name."""


SIZED = ("qwen2_vl", "qwen2_5_vl")
"""Model types whose frames a server can be told to size."""
SAMPLED = (*SIZED, "qwen3_vl", "qwen3_vl_moe", "llava_onevision")
"""Model types whose frames a server can be told to count; others have their processor's own."""


def mm_config(model_type: str) -> dict[str, Any]:
    """Every frame of a clip in its own resolution, from 112 to 644 pixels, as far as it goes.

    Parameters
    ----------
    model_type
        Of the target's configuration.
    """
    if model_type not in SIZED:
        return {"video": {"fps": CLIP_FPS}} if model_type in SAMPLED else {}
    low, high = 112 * 112, 644 * 644
    size = {"shortest_edge": low, "longest_edge": high}
    limits = {"min_pixels": low, "max_pixels": high, "total_pixels": high * 64}
    return {"video": {"fps": CLIP_FPS, **limits, "size": size}}


def dataset_mm_config(frames: int, model_type: str) -> dict[str, Any]:
    """So many frames of a video, evenly from first to last; all where it has fewer.

    Raises
    ------
    ToolError
        A model whose processor chooses the frames itself.
    """
    if model_type not in SAMPLED:
        raise ToolError(
            f"--dataset wants {frames} frames of each video, and the processor of {model_type} "
            f"chooses them itself; it works with {', '.join(SAMPLED)}"
        )
    return {"video": {"fps": 1000, "max_frames": frames}}


@dataclass(frozen=True)
class Task:
    """Questions about one video.

    Attributes
    ----------
    name
        What the record calls it: a scene's seed or a sample's id.
    video
        Data URL.
    questions
        Asked one after the other.
    max_tokens
        Length limit of an answer.
    history
        What a chat's earlier turns have as answers: the true ones, so that every configuration
        is asked the same. Empty where questions come without those before them.
    """

    name: str
    video: str
    questions: tuple[str, ...]
    max_tokens: int
    history: tuple[str, ...] = ()


def long_scenes(count_tokens: Callable[[str], int]) -> Iterator[int]:
    """Seeds of scenes whose true description has at least `LONG_ANSWER` tokens, from the first on.

    The rule looks at the scene alone, never at a model's answer or its speed.
    """
    from specvlm_sglang.tools.demo.world import make_scene

    seed = FIRST_SEED
    while True:
        if count_tokens(demo.description(make_scene(seed, CLIP_SECONDS))[1]) >= LONG_ANSWER:
            yield seed
        seed += 1


def clip_tasks(workload: Workload, seeds: Iterator[int], folder: Path) -> list[list[Task]]:
    """Per round, the tasks that run at the same time; writes the clips into ``folder``."""
    return [
        [_clip_task(workload, next(seeds), folder) for _ in range(workload.concurrency)]
        for _ in range(workload.rounds)
    ]


def _clip_task(workload: Workload, seed: int, folder: Path) -> Task:
    path = folder / f"{seed}-{workload.side}.mp4"
    scene = demo.make_clip(path, seed, seconds=CLIP_SECONDS, side=workload.side)
    # Long answers measure decoding better than short ones: the description comes last.
    chat = [*demo.questions_and_answers(scene)[: workload.questions - 1], demo.description(scene)]
    questions, answers = zip(*chat, strict=True)
    return Task(
        str(seed),
        data_url(path),
        questions,
        workload.max_tokens,
        history=answers if workload.history else (),
    )


def sample_tasks(samples: list[Sample]) -> list[list[Task]]:
    """One round per sample of a dataset."""
    return [[Task(s.sample_id, data_url(s.video), (s.question,), s.max_tokens)] for s in samples]
