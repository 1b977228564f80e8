"""The tiny trained pair and the clips that it can talk about."""

from __future__ import annotations

from pathlib import Path

import specvlm_sglang
from specvlm_sglang.tools.demo.world import caption, make_scene, questions
from specvlm_sglang.tools.demo.world.language import PROMPTS, plain
from specvlm_sglang.tools.demo.world.render import write_clip
from specvlm_sglang.tools.demo.world.scene import Scene

_MODELS = Path(specvlm_sglang.__file__).parent / "demo" / "models"


def target_path() -> Path:
    """Directory of the target's checkpoint."""
    return _MODELS / "target"


def draft_path() -> Path:
    """Directory of the draft's checkpoint."""
    return _MODELS / "draft"


def make_clip(path: Path, seed: int, *, seconds: int = 8, side: int = 112) -> Scene:
    """Write an mp4 of a procedural scene.

    Parameters
    ----------
    path : Path
        File to write.
    seed : int
        Same seed and length, same scene. Training drew its seeds from below 2 ** 31.
    seconds : int
        Length, 2 to 16; four frames a second.
    side : int
        Pixels of the square frame's edge; even, at least 56.

    Returns
    -------
    Scene
        What the clip shows.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    scene = make_scene(seed, seconds)
    write_clip(path, scene, side=side)
    return scene


def description(scene: Scene) -> tuple[str, str]:
    """A request to describe the clip, and the true description."""
    return PROMPTS[0], plain(caption(scene))


def questions_and_answers(scene: Scene) -> list[tuple[str, str]]:
    """Questions about parts of the clip, each with its true answer."""
    return [(question.text, plain(question.answer)) for question in questions(scene)]
