"""What the text of a request means: paths, URLs, data URLs and base64, in every spelling."""

from __future__ import annotations

import base64
import io
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sglang.srt.utils import common

from specvlm_sglang.host.media import install, sources
from tests.support import clips
from tests.support.hooks import unhooked
from tests.support.media_hooks import LOADERS

CONTENT = bytes(range(256)) + b"\xfb\xff\xfe"
BASE64 = base64.b64encode(CONTENT).decode()
URL_SAFE = base64.urlsafe_b64encode(CONTENT).decode()


@pytest.fixture(autouse=True, scope="module")
def hooked() -> Iterator[None]:
    with unhooked(*LOADERS):
        install.install()
        yield


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/nowhere/clip.mp4", "no such file"),
        ("/nowhere/clip", "no such file"),  # also good base64
        ("file:///nowhere/clip.mp4", "no such file"),
        ("FILE:///nowhere/clip.mp4", "no such file"),
        ("file:relative.mp4", "no such file"),
        ("clip.mp4", "neither a file that the server finds, nor a URL, nor base64"),
        ("ftp://host/clip.mp4", "neither a file"),
        ("rtsp://host/clip", "neither a file"),
        ("concat:/etc/hosts|/etc/hosts", "neither a file"),
        ("data:video/mp4;base64,!!", "a data URL must be base64"),
        ("data:video/mp4", "a data URL must be base64"),
        ("DATA:video/mp4;BASE64,!!", "a data URL must be base64"),
        ("/nowhere/\0.mp4", "no such file"),
    ],
)
def test_a_source_that_is_nothing_is_named_as_such(source: str, says: str) -> None:
    for load in (common._normalize_video_input, common.load_image, common.get_image_bytes):
        with pytest.raises(ValueError, match=says) as caught:
            load(source)
        assert len(str(caught.value)) < 200


NAMES = [
    "a clip.mp4",
    "clip #1.mp4",
    "what?.mp4",
    "100%.mp4",
    "100%25.mp4",
    "%41.mp4",
    "a;b=c&d.mp4",
    "größe 視頻 🎬.mp4",
    "a:b.mp4",
    "line\nbreak.mp4",
    "http:.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_means_itself(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENT)
    # A file whose name is what decoding would make of it is another file.
    (tmp_path / "A.mp4").write_bytes(b"another")
    quoted = urllib.parse.quote(str(path))
    for source in (
        str(path),
        path.as_uri(),
        f"file://{quoted}",
        f"FILE://localhost{quoted}",
        f"file:{quoted}",
    ):
        assert common._normalize_video_input(source) == str(path)
        assert common.get_image_bytes(source) == CONTENT


@pytest.mark.parametrize("name", ["a clip.mp4", "clip #1.mp4", "what?.mp4", "100%.mp4"])
def test_a_file_url_that_forgot_its_percent_signs_is_understood(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    assert common._normalize_video_input(f"file://{tmp_path}/{name}") == f"{tmp_path}/{name}"


def test_a_fragment_ends_a_file_url_where_no_file_has_it(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(CONTENT)
    assert common._normalize_video_input(f"{path.as_uri()}#t=10,20") == str(path)
    assert common._normalize_video_input(urllib.parse.quote(str(path))) == str(path)


def test_a_directory_a_pipe_and_a_host_are_no_files(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for source in (str(tmp_path), str(tmp_path / "pipe"), "file://host/etc/hosts", "/dev/zero"):
        with pytest.raises(ValueError, match="no such file"):
            common._normalize_video_input(source)


DATA_URLS = [
    f"data:video/mp4;base64,{BASE64}",
    f"DATA:VIDEO/MP4;BASE64,{BASE64}",
    f"data:;base64,{BASE64}",
    f'data:video/mp4;codecs="avc1.42E01E, mp4a.40.2";base64,{BASE64}',
    f"data:video/mp4;codecs=avc1.42E01E,mp4a.40.2;base64,{BASE64}",
    f"data:video/webm;codecs=vp9;charset=utf-8;base64,{BASE64}",
    f"data:video/mp4; base64 ,{BASE64}",
    f"data:video/mp4;base64,{URL_SAFE}",
    f"data:video/mp4;base64,{BASE64.rstrip('=')}",
    f"data:video/mp4;base64,{URL_SAFE.rstrip('=')}",
    f"data:video/mp4;base64,{urllib.parse.quote(BASE64, safe='')}",
    f"data:video/mp4;base64,{BASE64[:76]}\r\n{BASE64[76:]}\n",
    f"data:video/mp4,{urllib.parse.quote_from_bytes(CONTENT)}",
    f'data:video/mp4;name="a,b",{urllib.parse.quote_from_bytes(CONTENT)}',
    f"data:,{urllib.parse.quote_from_bytes(CONTENT)}",
]


@pytest.mark.parametrize("url", DATA_URLS)
def test_data_urls_in_every_spelling(url: str) -> None:
    assert common._normalize_video_input(url) == CONTENT
    assert common.get_image_bytes(url) == CONTENT


@pytest.mark.parametrize("text", [BASE64, URL_SAFE, BASE64.rstrip("="), f"{BASE64}\n"])
def test_bare_base64_in_every_spelling(text: str) -> None:
    assert common._normalize_video_input(text) == CONTENT
    assert common.get_image_bytes(text) == CONTENT


@given(content=st.binary(), media_type=st.sampled_from(["video/mp4", "", "VIDEO/X;a=b"]))
def test_any_bytes_come_back_from_a_data_url(content: bytes, media_type: str) -> None:
    encoded = base64.b64encode(content).decode()
    url = sources.parse_data_url(f"data:{media_type};base64,{encoded}")
    assert url.content() == content
    assert url.media_type == media_type.lower().split(";")[0]
    plain = urllib.parse.quote_from_bytes(content)
    assert sources.parse_data_url(f"data:{media_type},{plain}").content() == content


def test_the_frames_of_a_list_stay_behind_the_first_comma() -> None:
    url = sources.parse_data_url("data:video/JPEG;base64,AAAA,BBBB,CCCC")
    assert url == ("video/jpeg", "AAAA,BBBB,CCCC", True)


def test_sources_that_sglang_takes_are_passed_on(tmp_path: Path) -> None:
    clip = clips.write_clip(tmp_path / "a clip.mp4")
    content = clip.read_bytes()
    load = common._normalize_video_input
    assert load(str(clip)) == str(clip)
    assert load(clip.as_uri()) == str(clip)
    assert load(content) == load(clips.data_url(clip)) == content
    assert load(base64.b64encode(content).decode()) == content
    assert load(3) is None


def test_base64_that_begins_with_a_slash_is_no_path() -> None:
    content = bytes([0xFF]) * 6000
    encoded = base64.b64encode(content).decode()
    assert encoded.startswith("/")
    assert common._normalize_video_input(encoded) == content


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return clips.write_image(tmp_path / "a picture #1 100%.png")


def test_images_are_found_as_videos_are(picture: Path) -> None:
    expected = np.asarray(Image.open(picture))
    spelled = (
        str(picture),
        picture.as_uri(),
        f"file://{picture}",
        clips.data_url(picture).replace("data:image/png", "DATA:Image/PNG;a=b,c"),
        picture.read_bytes(),
        common.ImageData(url=f"file://{picture}"),
        Image.open(picture),
    )
    for source in spelled:
        image, _ = common.load_image(source)
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_a_frame_is_loaded_as_an_image_is(picture: Path) -> None:
    frame = sources.load_frame(f"file://{picture}")
    assert frame.mode == "RGB"
    assert frame.size == (128, 96)
    with pytest.raises(ValueError, match="no such file"):
        sources.load_frame("/nowhere/frame.png")
    with pytest.raises(ValueError, match="Could not decode image") as caught:
        sources.load_frame(b"not a picture" * 1000)
    assert len(str(caught.value)) < 500
    with pytest.raises(ValueError, match="Invalid image"):
        sources.load_frame(3)


def test_a_frame_too_large_to_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "PNG")
    with pytest.raises(ValueError, match="exceeds limit"):
        sources.load_frame(file.getvalue())


@pytest.mark.parametrize("scheme", ["http", "HTTP", "HttpS"])
def test_the_allowed_domains_hold_for_frames_images_and_videos_in_any_case(scheme: str) -> None:
    from specvlm_sglang.host.media.install import install_in_processors

    install_in_processors()
    common.configure_media_url_security(["media.example"])
    try:
        for load in (
            common._normalize_video_input,
            common.load_image,
            common.get_image_bytes,
            sources.load_frame,
        ):
            for url in ("://evil.example/a.png", "://media.example@evil.example/a.png"):
                with pytest.raises(ValueError, match="domain is not allowed"):
                    load(f"{scheme}{url}")
    finally:
        common.configure_media_url_security()
