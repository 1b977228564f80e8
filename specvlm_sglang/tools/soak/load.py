"""What a soak asks and how each request ends, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WHOLE, STREAM, DUPLICATE = "whole", "stream", "duplicate"
UPLOAD, EARLY, PREFILL, ROUND = "cut: upload", "cut: early", "cut: prefill", "cut: round"
ABORT, SLOW, FLUSH, ABORT_ALL = "abort", "slow reader", "flush", "abort all"
ENDINGS: dict[str, float] = {
    WHOLE: 0.30,
    STREAM: 0.34,
    DUPLICATE: 0.05,
    UPLOAD: 0.03,
    EARLY: 0.06,
    PREFILL: 0.06,
    ROUND: 0.06,
    ABORT: 0.04,
    SLOW: 0.02,
    FLUSH: 0.03,
    ABORT_ALL: 0.01,
}
"""How often each comes."""
_POLICIES = ("specvlm", "uniform", "attention-spread", "change", "none")


@dataclass(frozen=True)
class Question:
    """A chat request.

    Attributes
    ----------
    name
        For the record: its kind.
    messages
        OpenAI messages.
    options
        Further fields, ``max_tokens`` among them.
    is_greedy
        Whether its answer can be compared with plain decoding's.
    """

    name: str
    messages: Sequence[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    is_greedy: bool = True

    def body(self, **more: Any) -> dict[str, Any]:
        """The request's JSON."""
        temperature = 0.0 if self.is_greedy else 1.0
        return {
            "model": "default",
            "messages": list(self.messages),
            "temperature": temperature,
            **self.options,
            **more,
        }


@dataclass(frozen=True)
class Job:
    """One request of the load.

    Attributes
    ----------
    question
        What is asked.
    ending
        One of `ENDINGS`.
    specvlm
        Its own ``custom_params.specvlm``; empty: none.
    when
        In [0, 1): where within its phase an ending comes.
    """

    question: Question
    ending: str
    specvlm: dict[str, Any]
    when: float


class Load:
    """Draws jobs, the same ones for the same seed.

    Parameters
    ----------
    questions
        What may be asked.
    seed
        Of the draw.
    """

    def __init__(self, questions: Sequence[Question], seed: int) -> None:
        self._questions = questions
        self._random = random.Random(seed)

    def next(self) -> Job:
        """Return the next job."""
        draw = self._random
        (ending,) = draw.choices(list(ENDINGS), list(ENDINGS.values()))
        return Job(draw.choice(self._questions), ending, self._options(), draw.random())

    def _options(self) -> dict[str, Any]:
        draw = self._random
        if draw.random() < 0.4:
            return {}
        chosen = {
            "retention": round(draw.uniform(0.02, 1.0), 2),
            "policy": draw.choice(_POLICIES),
            "top_p": round(draw.random(), 2),
            "draft_video_tokens": draw.randint(1, 64),
            "detail": draw.random() < 0.3,
        }
        return {name: value for name, value in chosen.items() if draw.random() < 0.5}


def user(*parts: str, text: str) -> list[dict[str, Any]]:
    """A user's turn: data URLs of videos and images, then ``text``."""
    shown = []
    for url in parts:
        kind = "video_url" if url.startswith("data:video") else "image_url"
        shown.append({"type": kind, kind: {"url": url}})
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


def questions(videos: Sequence[str], images: Sequence[str]) -> list[Question]:
    """What the command asks: every kind of request, about these data URLs.

    Parameters
    ----------
    videos, images
        At least two, and one.
    """
    ask, short, long = "Describe the video.", {"max_tokens": 6}, {"max_tokens": 96}
    first, second = videos[:2]
    turn = {"role": "assistant", "content": "A red circle moves."}
    found = [
        Question("text", user(text="Which colours are there?"), long),
        Question("image", user(images[0], text="What is shown?"), {"max_tokens": 32}),
        Question("two videos", user(first, second, text="Compare them."), {"max_tokens": 48}),
        Question("video and image", user(first, images[0], text="Is it there?"), short),
        Question(
            "chat", [*user(first, text=ask), turn, *user(text="And then?")], {"max_tokens": 48}
        ),
        Question("one token", user(first, text="Is it red?"), {"max_tokens": 1}),
        Question("ignored end", user(second, text=ask), {"max_tokens": 64, "ignore_eos": True}),
        Question("n of 3", user(first, text=ask), {"max_tokens": 24, "n": 3}),
        Question("grammar", user(first, text=ask), {"max_tokens": 24, "regex": "[a-z ]{8,40}"}),
        Question(
            "penalties",
            user(second, text=ask),
            {"max_tokens": 48, "frequency_penalty": 0.7, "presence_penalty": 0.3},
        ),
        Question("stop", user(first, text=ask), {"max_tokens": 64, "stop": [" circle", "and"]}),
        Question("sampled", user(first, text=ask), {"max_tokens": 48, "top_p": 0.9}, False),
        Question("sampled, n of 2", user(second, text=ask), {"max_tokens": 32, "n": 2}, False),
    ]
    for number, video in enumerate(videos):
        found.append(Question(f"video {number}, short", user(video, text=ask), short))
        found.append(Question(f"video {number}, long", user(video, text=ask), long))
    return found
