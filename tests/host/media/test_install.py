"""Our reader behind SGLang's wrapper, whatever else could decode; and short errors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.multimodal.processors import qwen_vl
from sglang.srt.multimodal.processors.base_processor import BaseMultimodalProcessor
from sglang.srt.utils import common, video_decoder
from sglang.srt.utils.common import VideoData, load_video

from specvlm_sglang.host.media import install
from specvlm_sglang.host.media.reader import PyAVReader
from tests.support import clips, numbered
from tests.support.hooks import unhooked
from tests.support.media_hooks import LOADERS

HOOKED = (
    ("sglang.srt.utils.video_decoder", "VideoDecoderWrapper.__init__"),
    ("sglang.srt.multimodal.processors.qwen_vl", "preprocess_video"),
    ("sglang.srt.multimodal.processors.qwen_vl", "smart_nframes"),
    (
        "sglang.srt.multimodal.processors.base_processor",
        "BaseMultimodalProcessor._load_single_item",
    ),
    *LOADERS,
)


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(install.DECODER_VARIABLE, raising=False)
    monkeypatch.setattr(video_decoder, "_BACKEND", "torchcodec")
    with unhooked(*HOOKED):
        install.install()
        # As SGLang does when it makes a processor.
        common.configure_media_url_security()
        yield


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return numbered.write(tmp_path / "a.mp4", "libx264", frames=20)


@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
def test_sglangs_wrapper_reads_through_our_reader_also_where_torchcodec_is(
    as_bytes: bool, clip: Path
) -> None:
    source = clip.read_bytes() if as_bytes else str(clip)
    with video_decoder.VideoDecoderWrapper(source, device="cuda", num_decode_threads=4) as decoder:
        assert isinstance(decoder._decoder, PyAVReader)
        assert len(decoder) == 20
        assert decoder.avg_fps == 25.0
        assert decoder.frame_shape == (numbered.HEIGHT, numbered.WIDTH)
        assert decoder.source_bytes == clip.read_bytes()
        assert numbered.read(decoder[9]) == 9
        assert numbered.read_all(decoder.get_frames_at([19, 4])) == [19, 4]
        assert numbered.read_all(decoder.get_frames_as_tensor([3, 5]).numpy()) == [3, 5]


def test_sglang_loads_files_and_data_urls_with_it(clip: Path) -> None:
    for source in (str(clip), clips.data_url(clip), clip.read_bytes(), VideoData(url=str(clip))):
        decoder = load_video(source, use_gpu=False)
        assert numbered.read_all(decoder.get_frames_at([0, 11])) == [0, 11]


def test_sglangs_own_decoder_is_used_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    given = []
    monkeypatch.setenv(install.DECODER_VARIABLE, "sglang")
    monkeypatch.setattr(
        video_decoder,
        "VideoDecoder",
        lambda source, **options: given.append(source) or SimpleNamespace(),
        raising=False,
    )
    decoder = video_decoder.VideoDecoderWrapper(str(clip))
    assert given == [str(clip)]
    assert not isinstance(decoder._decoder, PyAVReader)
    assert video_decoder._BACKEND == "torchcodec"


def test_another_decoder_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(install.DECODER_VARIABLE, "ffmpeg")
    with pytest.raises(ValueError, match="SPECVLM_VIDEO_DECODER='ffmpeg' is not one of pyav, sgl"):
        install.install()


def test_one_frame_is_too_few_and_two_are_enough() -> None:
    with pytest.raises(ValueError, match="the video has 1 frame; at least 2 are needed"):
        qwen_vl.smart_nframes({}, total_frames=1, video_fps=25.0)
    assert qwen_vl.smart_nframes({}, total_frames=2, video_fps=25.0) == 2


def load(data: Any, modality: Modality) -> Any:
    return BaseMultimodalProcessor._load_single_item(data, modality)


NOISE = np.random.default_rng(0).integers(0, 256, 90_000, np.uint8).tobytes()
ENCODED = base64.b64encode(NOISE).decode()
BROKEN = {
    "a data URL": f"data:video/mp4;base64,{ENCODED}",
    "base64": ENCODED,
    "bytes": NOISE,
    "no base64": f"data:video/mp4;base64,{ENCODED}!",
    "a long path": "/" + "a" * 4000,
    "a long address": "ftp://" + "a" * 9000,
    "a missing file": "/nowhere/file",
    "a directory": "/tmp",
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["text", "in a part"])
@pytest.mark.parametrize("modality", [Modality.VIDEO, Modality.IMAGE], ids=["video", "image"])
@pytest.mark.parametrize("kind", BROKEN)
def test_errors_are_short_and_repeat_no_media(kind: str, modality: Modality, wrapped: bool) -> None:
    data: Any = BROKEN[kind]
    if wrapped and isinstance(data, str):
        part = VideoData if modality == Modality.VIDEO else common.ImageData
        data = part(url=data)
    with pytest.raises(ValueError, match=r"[a-z]{3}") as caught:
        load(data, modality)
    said = str(caught.value)
    assert 10 < len(said) <= 320
    assert ENCODED[:12] not in said
    assert repr(NOISE[:4])[2:-1] not in said


def test_an_image_too_large_to_be_meant_is_the_clients_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = clips.write_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="exceeds limit"):
        load(str(path), Modality.IMAGE)


def test_errors_that_are_not_the_clients_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sglang.srt.multimodal.processors.base_processor.load_image",
        lambda *args: (_ for _ in ()).throw(KeyError("ours")),
    )
    with pytest.raises(RuntimeError, match="ours"):
        load("x", Modality.IMAGE)


def test_good_media_are_loaded(clip: Path, tmp_path: Path) -> None:
    assert len(load(str(clip), Modality.VIDEO)) == 20
    assert load(str(clips.write_image(tmp_path / "a.png")), Modality.IMAGE).size == (128, 96)


def test_installing_twice_changes_nothing() -> None:
    before = [common.load_image, video_decoder.VideoDecoderWrapper.__init__, qwen_vl.smart_nframes]
    install.install()
    common.configure_media_url_security()
    after = [common.load_image, video_decoder.VideoDecoderWrapper.__init__, qwen_vl.smart_nframes]
    assert after == before


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/nowhere/cut.mp4", "cut.mp4: "),
        ("/nowhere/cut.mp4?a=b#c", "cut.mp4: "),
        (VideoData(url="file:///nowhere/cut.mp4"), "cut.mp4: "),
        (f"/nowhere/{'a' * 200}.mp4", f"{'a' * 56}.mp4: "),
        ("data:video/x.y;base64,!!", "a data URL must be base64"),
        ("/nowhere/AAAA", "the server finds no such file"),
        (b"a.mp4", "Could not decode video: "),
    ],
)
def test_an_error_names_the_file_that_it_is_about(data: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]{3}") as caught:
        load(data, Modality.VIDEO)
    assert str(caught.value).startswith(name)
