"""Requests that no client should send: strategies over SGLang's own fields, and media."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.support import clips, hostile

MOST_TOKENS = 8
"""Of an answer: inputs are tried, not decoding."""
ROUTES = ("/generate", "/v1/chat/completions", "/v1/completions")
PLACEHOLDERS = (
    *("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>", "<|image_pad|>"),
    *("<|vision_start|>", "<|vision_end|>", "<image>", "<video>", "<|im_end|>", "<|im_start|>"),
)
_LENGTHS = ("max_new_tokens", "max_tokens", "max_completion_tokens", "min_new_tokens", "min_tokens")
_COUNTS = ("n", "best_of")
_LEFT_ALONE = {
    # Never to be answered by design: they wait for another server, or for a client to come back.
    *("bootstrap_host", "bootstrap_port", "bootstrap_room", "background"),
    # The fields of the media and of the text have strategies of their own.
    *("text", "input_ids", "messages", "prompt", "image_data", "video_data", "stream"),
}

numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.floats(-2, 2),
    st.floats(),
)
words = st.one_of(
    st.text(max_size=12), st.sampled_from(PLACEHOLDERS), st.sampled_from(["", "\0", "a" * 5000])
)
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
junk: SearchStrategy[Any] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
prompts = st.lists(st.one_of(st.just("What happens? "), words), max_size=4).map("".join)
said = st.sampled_from(
    ["What happens?", "<|vision_start|><|video_pad|><|vision_end|>What happens?", "x" * 300]
)
options = st.one_of(
    junk,
    st.dictionaries(
        st.sampled_from(["retention", "policy", "top_p", "detail", "draft_video_tokens", "x"]),
        st.one_of(junk, st.sampled_from(["specvlm", "none", "uniform", 0.5, 1, True])),
        max_size=3,
    ),
)


def write_media(folder: Path, canary: Path, port: int) -> list[str]:
    """Files and addresses of media, most of them broken; returns what a request may name.

    ``canary`` is a file, ``port`` one of this machine: scripts among the media name both.
    """
    good = clips.write_clip(folder / "good.mp4")
    made = {
        "cut.mp4": clips.write_truncated_clip,
        "empty.mp4": clips.write_empty_file,
        "text.mp4": clips.write_text_file,
        "no-frames.mp4": clips.write_clip_without_frames,
        "sound.mp4": clips.write_sound_only,
        "one.mp4": clips.write_one_frame_clip,
        "wide.mp4": lambda path: clips.write_clip(path, height=16, width=4096),
        "long.mp4": lambda path: clips.write_clip(path, frames=400),
        "image.png": lambda path: clips.write_image(path, seed=3),
    }
    paths = [good, *(write(folder / name) for name, write in made.items())]
    for number, content in enumerate(hostile.scripts(str(canary), port).values()):
        paths.append(folder / f"script-{number}.mp4")
        paths[-1].write_bytes(content)
    outside = folder / "outside.mp4"
    outside.write_bytes(hostile.write_movie_with_outside_data(folder / "inside.mp4", str(canary)))
    names = [str(path) for path in [*paths, outside, folder, folder / "missing.mp4", canary]]
    names += ["/dev/zero", "/proc/self/mem", f"http://127.0.0.1:{port}/a.mp4", "http://[", "x:y"]
    return [*names, "data:video/mp4;base64,!!!!", *_write_claims(good)]


def _write_claims(good: Path) -> list[str]:
    """The good clip with numbers of its header overwritten: lengths and counts that lie."""
    content, made = good.read_bytes(), []
    for box, skip in ((b"mvhd", 16), (b"tkhd", 76), (b"mdhd", 12), (b"stsz", 8), (b"stts", 8)):
        at = content.index(box) + 4 + skip
        for value in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"):
            path = good.with_name(f"claims-{len(made)}.mp4")
            path.write_bytes(content[:at] + value + content[at + 4 :])
            made.append(str(path))
    return made


@cache
def _fields() -> dict[str, tuple[list[str], list[str]]]:
    """By route: the fields of a request, and those of its sampling parameters."""
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    native = list(inspect.signature(GenerateReqInput).parameters)
    sampling = list(inspect.signature(SamplingParams).parameters)
    return {
        "/generate": (native, sampling),
        "/v1/chat/completions": (list(ChatCompletionRequest.model_fields), []),
        "/v1/completions": (list(CompletionRequest.model_fields), []),
    }


@st.composite
def requests(draw: st.DrawFn, media: list[str]) -> tuple[str, dict[str, Any]]:
    """A route and a body: a plausible one, a few of its fields replaced."""
    named = st.integers(0, len(media) - 1).map(media.__getitem__)
    route = draw(st.sampled_from(ROUTES))
    names, sampling = _fields()[route]
    # A good value now and then, or nothing gets past the first check.
    some = st.dictionaries(
        st.sampled_from([name for name in names if name not in _LEFT_ALONE]), junk, max_size=2
    )
    body: dict[str, Any] = {"model": "default", **draw(_seldom(some))}
    custom = draw(_seldom(st.one_of(st.builds(lambda o: {"specvlm": o}, options), junk)))
    if route == "/generate":
        parameters = draw(_seldom(st.dictionaries(st.sampled_from(sampling), junk, max_size=2)))
        body["sampling_params"] = _bounded({"max_new_tokens": 4, "temperature": 0, **parameters})
        if custom:
            body["sampling_params"]["custom_params"] = custom
        body |= draw(_native(named))
    else:
        body = _bounded({"max_tokens": 4, "temperature": 0, **body})
        if custom:
            body["custom_params"] = custom
        body |= draw(_chat(named) if "chat" in route else _completion())
    body["stream"] = draw(st.sampled_from([False, False, True]))
    return route, body


def _seldom(fields: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.one_of(st.just({}), st.just({}), fields)


def _bounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Keep answers short: what would be a valid length or count is made a small one."""
    for names, most in ((_LENGTHS, MOST_TOKENS), (_COUNTS, 2)):
        for name in names:
            value = fields.get(name)
            if isinstance(value, int | float) and value > most:
                fields[name] = most
    if fields.get("max_new_tokens", 1) is None or fields.get("max_tokens", 1) is None:
        fields |= {name: MOST_TOKENS for name in fields if name in _LENGTHS[:3]}
    return fields


def _native(media: SearchStrategy[str]) -> SearchStrategy[dict[str, Any]]:
    some = st.one_of(media, st.lists(media, max_size=2), junk)
    text = st.builds(lambda text: {"text": text}, st.one_of(said, said, prompts, junk))
    ids = st.lists(st.one_of(st.integers(0, 300), st.integers(-2, 600), junk), max_size=6)
    given = st.one_of(text, text, st.builds(lambda one: {"input_ids": one}, st.one_of(ids, junk)))
    shown = st.fixed_dictionaries({}, optional={"video_data": some, "image_data": some})
    return st.builds(lambda one, two: {**one, **two}, given, _seldom(shown) | shown)


def _chat(media: SearchStrategy[str]) -> SearchStrategy[dict[str, Any]]:
    def part(kind: str, url: Any, more: Any) -> dict[str, Any]:
        holder = {"url": url, **more} if isinstance(more, dict) else more
        return {"type": kind, kind: holder}

    url = st.one_of(media, media, junk)
    more = st.one_of(st.just({}), st.just({}), st.just({"fps": 1}), junk)
    shown = st.builds(part, st.sampled_from(["video_url", "image_url", "audio_url"]), url, more)
    words_ = st.one_of(said, prompts, junk)
    text = st.builds(lambda words: {"type": "text", "text": words}, words_)
    good = st.tuples(shown, text).map(list)
    content = st.one_of(said, prompts, good, st.lists(st.one_of(shown, text, junk), max_size=3))
    message = st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "user", "user", "assistant", "system", "tool", ""]),
        content,
    )
    messages = st.lists(st.one_of(message, message, junk), max_size=3)
    alone = message.map(lambda one: [one])
    return st.builds(lambda one: {"messages": one}, st.one_of(alone, alone, messages, junk))


def _completion() -> SearchStrategy[dict[str, Any]]:
    ids = st.lists(st.integers(-2, 600), max_size=6)
    return st.builds(lambda one: {"prompt": one}, st.one_of(said, prompts, ids, junk))
