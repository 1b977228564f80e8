"""Media that cannot be answered: a 400 that says why, and the server goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import openai
import pytest

from specvlm_sglang.tools.server import HOST, free_port
from tests.serving import plain
from tests.serving.plain import EXACT, FEW_DECODED_BYTES, Messages, ask, assert_as_transformers
from tests.support import clips
from tests.support.clips import data_url
from tests.support.messages import user
from tests.support.server import Server

pytestmark = pytest.mark.serving

LONGEST_MESSAGE = 500
MISSING = "missing"


def _missing(path: Path) -> Path:
    return path


def _damaged(path: Path) -> Path:
    content = bytearray(clips.write_clip(path, frames=40).read_bytes())
    content[1000:-3000] = bytes(len(content) - 4000)
    path.write_bytes(content)
    return path


@dataclass(frozen=True)
class Broken:
    """A file that cannot be answered, and words that the refusal must contain."""

    write: Callable[[Path], Path]
    says: str


BROKEN = {
    "cut short": Broken(clips.write_truncated_clip, "not a readable video file"),
    "zero bytes": Broken(clips.write_empty_file, "not a readable video file"),
    "text": Broken(clips.write_text_file, "not a readable video file"),
    "no frame": Broken(clips.write_clip_without_frames, "the video stream has no frames"),
    "sound only": Broken(clips.write_sound_only, "the file has no video stream"),
    "one frame": Broken(clips.write_one_frame_clip, "the video has 1 frame; at least 2 are needed"),
    "frames overwritten": Broken(_damaged, "cannot be decoded"),
    "256 times as wide as high": Broken(
        lambda path: clips.write_clip(path, height=16, width=4096), "aspect ratio"
    ),
    "more pixels than the server decodes": Broken(
        lambda path: clips.write_clip(path, height=1088, width=1920, frames=4),
        "1 frame of 1920 x 1088 pixels: 6266880 bytes; the limit is 4194304",
    ),
    MISSING: Broken(_missing, "the server finds no such file"),
}


@pytest.fixture(scope="module")
def server(serve: Any, vl_target: Path) -> Server:
    started: Server = serve(vl_target, *EXACT, **FEW_DECODED_BYTES)
    return started


@pytest.fixture(scope="module")
def good(clip_paths: list[Path], image_paths: list[Path]) -> Any:
    """Prompts that the server must still answer, one after the other."""
    return cycle(
        [
            user(clip_paths[0], "What happens?"),
            user("Which colours are there?"),
            user(clip_paths[1], image_paths[0], "Is it there?"),
        ]
    )


def refuse(server: Server, messages: Messages) -> str:
    """The refusal's message: a 400 of one readable sentence, no stack trace."""
    with pytest.raises(openai.BadRequestError) as refused:
        server.chat(messages, max_tokens=4)
    message: str = refused.value.body["message"]  # type: ignore[index,call-overload]
    assert len(message) < LONGEST_MESSAGE
    for trace in ("Traceback", 'File "', "site-packages", "Internal server error"):
        assert trace not in message
    return message


def answer_the_next(server: Server, model: Path, good: Any) -> None:
    messages = next(good)
    assert_as_transformers(model, [messages], [ask(server, messages)])


@pytest.mark.parametrize(
    ("name", "inline"),
    [(name, False) for name in BROKEN] + [(name, True) for name in BROKEN if name != MISSING],
)
def test_a_file_that_cannot_be_answered_is_a_400_and_the_next_request_is_answered(
    server: Server, vl_target: Path, good: Any, tmp_path: Path, name: str, inline: bool
) -> None:
    path = BROKEN[name].write(tmp_path / "clip.mp4")
    assert BROKEN[name].says in refuse(server, user(path, "What happens?", inline=inline))
    answer_the_next(server, vl_target, good)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"http://{HOST}:{{port}}/clip.mp4", "Connection refused"),
        ("file:///nowhere/clip.mp4", "the server finds no such file"),
        ("ftp://example.org/clip.mp4", "neither a file that the server finds, nor a URL"),
        ("data:video/mp4;base64,!!!!", "a data URL must be base64"),
        ("data:video/mp4;base64,", "not a readable video file"),
        ("", "not a readable video file"),
    ],
)
def test_an_address_without_a_video_is_a_400_and_the_next_request_is_answered(
    server: Server, vl_target: Path, good: Any, url: str, says: str
) -> None:
    parts = [
        {"type": "video_url", "video_url": {"url": url.format(port=free_port())}},
        {"type": "text", "text": "What happens?"},
    ]
    assert says in refuse(server, [{"role": "user", "content": parts}])
    answer_the_next(server, vl_target, good)


def test_a_broken_video_beside_good_ones_refuses_its_own_request_only(
    server: Server, vl_target: Path, clip_paths: list[Path], tmp_path: Path
) -> None:
    broken = clips.write_truncated_clip(tmp_path / "cut.mp4")
    assert "cut.mp4" in refuse(server, user(clip_paths[0], broken, "Compare them."))
    fine = user(clip_paths[0], clip_paths[1], "Compare them.")
    assert_as_transformers(vl_target, [fine], plain.ask_all(server, [fine], 1))


def test_two_frames_are_enough(server: Server, vl_target: Path, tmp_path: Path) -> None:
    shortest = user(clips.write_clip(tmp_path / "two.mp4", frames=2), "What happens?")
    assert_as_transformers(vl_target, [shortest], [ask(server, shortest)])


def test_a_data_url_that_is_refused_is_not_repeated_in_full(server: Server, tmp_path: Path) -> None:
    url = data_url(clips.write_truncated_clip(tmp_path / "cut.mp4"))
    parts = [{"type": "video_url", "video_url": {"url": url}}]
    assert url not in refuse(server, [{"role": "user", "content": parts}])
