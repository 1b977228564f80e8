"""Shared by the tests of serving without SPECVLM: prompts, and what transformers answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support import hf
from tests.support.messages import user
from tests.support.server import ChatAnswer, Server

Messages = list[dict[str, Any]]

FLOAT32 = ("--dtype", "float32")
EXACT = (*FLOAT32, "--specvlm-exact-vision")
FEW_DECODED_BYTES = {"SPECVLM_MAX_DECODED_VIDEO_BYTES": str(4 << 20)}
"""A limit on decoded frames that a small file can exceed."""
NEW_TOKENS = 24

_answers: dict[tuple[Path, str, bool], hf.Answer] = {}


def expected(model: Path, messages: Messages, *, exact: bool = True) -> list[int]:
    """Greedy tokens of transformers; computed once."""
    key = (model, repr(messages), exact)
    if key not in _answers:
        _answers[key] = hf.greedy(model, messages, NEW_TOKENS, exact=exact)
    return _answers[key].output_ids


def text_prompts() -> list[Messages]:
    """Short and long, with a system message, of several turns, and beyond ASCII."""
    scene = "Then the small red circle moves to the left, and the next frame shows it again. "
    return [
        user("Which colours are there?"),
        user("Which colours are there, and how many shapes?"),
        user("?"),
        user("Ça va? 你好 🎬"),
        user(scene * 6 + "What happens?"),
        [{"role": "system", "content": "Answer in one word."}, *user("Is it large?")],
        [
            *user("Is it dark?"),
            {"role": "assistant", "content": "No, bright."},
            *user("And then?"),
        ],
        [{"role": "user", "content": "a plain string instead of parts"}],
    ]


def image_prompts(images: Sequence[Path]) -> list[Messages]:
    """One, two and four images, before, between and after text."""
    first, second, third, fourth = images
    return [
        user(first, "What is it?"),
        user(second, "What is it?"),
        user("Look:", third),
        user(fourth, "Describe the shapes.", inline=True),
        user(first, second, "Which one is larger?"),
        user(second, first, "Which one is larger?"),
        user("One", first, "two", second, "three", third, "four", fourth, "?"),
        [*user(first, "Now?"), {"role": "assistant", "content": "Red."}, *user(third, "And now?")],
    ]


def video_prompts(clips: Sequence[Path], images: Sequence[Path]) -> list[Messages]:
    """One and two videos, as paths and data URLs, and with images in both orders."""
    first, second, third, *_ = clips
    image, other = images[:2]
    described = [user(clip, "What happens?") for clip in clips]
    return [
        *described,
        user(first, "What happens?", inline=True),
        user(second, "Where does the circle go?", inline=True),
        user("Watch:", third, "Now tell me."),
        user(first, second, "Compare them."),
        user(second, "and", first, "Compare them."),
        user(first, first, "Are they the same?"),
        user(first, image, "Is it there?"),
        user(image, first, "Is it there?"),
        user(image, third, other, "Which one is in the video?"),
        [
            *user(second, "What happens?"),
            {"role": "assistant", "content": "The red circle moves."},
            *user(image, "Like this?"),
        ],
    ]


def ask(server: Server, messages: Messages) -> ChatAnswer:
    """Send one prompt; the answer says how many tokens came from the cache."""
    return server.chat(messages, max_tokens=NEW_TOKENS, return_meta_info=True)


def ask_all(server: Server, prompts: Sequence[Messages], at_once: int) -> list[ChatAnswer]:
    """Send many prompts, ``at_once`` of them concurrently; answers in order."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda messages: ask(server, messages), prompts))


def cached_tokens(answer: ChatAnswer) -> int:
    """Prompt tokens that were not computed again."""
    return int(answer.raw["choices"][0]["meta_info"]["cached_tokens"])


def assert_as_transformers(
    model: Path, prompts: Sequence[Messages], answers: Iterable[ChatAnswer], *, exact: bool = True
) -> None:
    """Token for token; the message names the prompts that differ."""
    wrong = [
        (messages[-1]["content"], answer.output_ids, wanted)
        for messages, answer in zip(prompts, answers, strict=True)
        if answer.output_ids != (wanted := expected(model, messages, exact=exact))
    ]
    assert not wrong, (
        f"{len(wrong)} of {len(prompts)} differ, first (asked, got, wanted) {wrong[0]}"
    )
