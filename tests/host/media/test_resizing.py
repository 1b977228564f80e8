"""Frames resized while they are decoded: the same pixels, of which few are held at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.multimodal.processors import qwen_vl
from sglang.srt.utils import video_decoder

from specvlm_sglang.host.media import install, resizing
from specvlm_sglang.host.media.picture import MAX_DECODED_BYTES_VARIABLE
from specvlm_sglang.host.media.reader import PyAVReader
from tests.support import clips, numbered
from tests.support.hooks import unhooked

HOOKED = (
    ("sglang.srt.utils.video_decoder", "VideoDecoderWrapper.__init__"),
    ("sglang.srt.multimodal.processors.qwen_vl", "preprocess_video"),
    ("sglang.srt.multimodal.processors.qwen_vl", "smart_nframes"),
)


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(video_decoder, "_BACKEND", video_decoder._BACKEND)
    with unhooked(*HOOKED):
        install.install()
        install.install_in_processors()
        yield


def preprocess(video: Any, **settings: Any) -> Any:
    return asyncio.run(qwen_vl.preprocess_video(video, video_config=settings))


def sglangs_own(video: Any, **settings: Any) -> Any:
    from specvlm_sglang.host.patching import original_of

    own = original_of(qwen_vl.preprocess_video)
    return asyncio.run(own(video, video_config=settings))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"fps": 1.0},
    {"nframes": 6},
    {"max_pixels": 60 * 28 * 28},
    {"min_pixels": 4 * 28 * 28, "max_pixels": 8 * 28 * 28},
    {"min_pixels": 900 * 28 * 28},
    {"total_pixels": 200 * 28 * 28, "min_pixels": 4 * 28 * 28},
    {"resized_height": 70, "resized_width": 300},
    {"max_frames": 4, "fps": 8.0},
]


@pytest.mark.parametrize(("height", "width"), [(96, 128), (360, 202), (28, 56), (122, 500)])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_qwens_frames_are_bit_equal_to_resizing_after_decoding(
    settings: dict[str, Any], height: int, width: int, tmp_path: Path
) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", frames=20, fps=6, height=height, width=width)
    with video_decoder.VideoDecoderWrapper(str(path)) as video:
        frames, metadata = preprocess(video, **settings)
        expected, its_metadata = sglangs_own(video, **settings)
    assert frames.dtype == expected.dtype == torch.uint8
    assert torch.equal(frames, expected)
    assert np.array_equal(metadata.pop("frames_indices"), its_metadata.pop("frames_indices"))
    assert metadata == its_metadata


def test_a_shape_that_no_size_fits_is_refused_in_words(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", frames=8, height=122, width=1000)
    with (
        video_decoder.VideoDecoderWrapper(str(path)) as video,
        pytest.raises(ValueError, match="a video of 1000 x 122 pixels has no size within"),
    ):
        preprocess(video, min_pixels=4 * 28 * 28, max_pixels=8 * 28 * 28)


def test_frames_and_tensors_that_are_no_file_pass_through() -> None:
    frames = torch.zeros(4, 3, 28, 28, dtype=torch.uint8)
    found, metadata = preprocess(frames)
    assert found is frames
    assert metadata is None


class Recorded(PyAVReader):
    """4K, 100 s at 30 frames a second, and no file: each picture is drawn when it is asked for."""

    def __init__(self) -> None:
        self.height, self.width = 2160, 3840
        self.drawn = 0

    def __len__(self) -> int:
        return 3000

    def get_avg_fps(self) -> float:
        return 30.0

    def pictures(self, indices: Any) -> Iterator[tuple[int, Any]]:
        picture = np.zeros((self.height, self.width, 3), np.uint8)
        for index in indices:
            self.drawn += 1
            picture[:] = index % 251
            yield index, picture


def synthetic() -> Any:
    video = video_decoder.VideoDecoderWrapper.__new__(video_decoder.VideoDecoderWrapper)
    video._decoder = Recorded()
    return video


def test_a_hundred_seconds_of_4k_fit_where_only_what_is_kept_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As they are stored, 50 of its frames take 1.2 GB, and one takes 25 MB.
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, str(100_000_000))
    video = synthetic()
    frames, metadata = preprocess(video, fps=0.5)
    assert len(frames) == video._decoder.drawn == 50
    assert frames[:, 0, 0, 0].tolist() == [index % 251 for index in metadata["frames_indices"]]


def test_the_event_loop_goes_on_while_a_video_is_decoded() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    async def both() -> int:
        ticking = asyncio.create_task(tick())
        await qwen_vl.preprocess_video(synthetic(), video_config={"nframes": 8})
        ticking.cancel()
        return ticks

    assert asyncio.run(both()) > 8


def test_frames_that_are_kept_beyond_the_limit_are_refused_before_one_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, str(30 << 20))
    video = synthetic()
    with pytest.raises(ValueError, match=f"200 frames of .*{MAX_DECODED_BYTES_VARIABLE}"):
        preprocess(video)
    assert video._decoder.drawn == 0


def test_a_4k_file_is_read_within_a_limit_of_two_of_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered.write(
        tmp_path / "a.mp4",
        "libx264",
        frames=6,
        rate=2,
        height=2160,
        width=3840,
        options={"preset": "ultrafast"},
    )
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, str(2 * 2160 * 3840 * 3))
    with video_decoder.VideoDecoderWrapper(str(path)) as video:
        frames, _ = preprocess(video)
    assert numbered.read_all(frames.permute(0, 2, 3, 1).numpy()) == list(range(6))


@pytest.mark.parametrize("most", [1, 100, 32 << 20])
def test_groups_of_frames_are_all_frames_in_order(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "_GROUP_BYTES", most)
    path = numbered.write(tmp_path / "a.mp4", "libx264", frames=20)
    with video_decoder.VideoDecoderWrapper(str(path)) as video:
        groups = list(resizing.decoded_groups(video, [1, 5, 19], (28, 28)))
        whole = video.get_frames_as_tensor([1, 5, 19]).permute(0, 3, 1, 2)
    assert len(groups) == (3 if most < 1000 else 1)
    assert torch.equal(torch.cat(groups), whole)


def test_sglangs_own_decoder_gives_one_group() -> None:
    class Own:
        def get_frames_as_tensor(self, indices: list[int]) -> torch.Tensor:
            return torch.zeros(len(indices), 4, 6, 3, dtype=torch.uint8)

    (group,) = resizing.decoded_groups(Own(), [0, 1], (28, 28))
    assert group.shape == (2, 3, 4, 6)
