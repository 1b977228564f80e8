"""A video's pixels, made a few frames at a time: those of all frames at once, bit for bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.utils import video_decoder
from transformers import LlavaOnevisionVideoProcessor

from specvlm_sglang.host.media import install, resizing
from specvlm_sglang.host.media.picture import MAX_DECODED_BYTES_VARIABLE
from specvlm_sglang.host.video_requests.options import VideoOptions
from specvlm_sglang.models.native.llava_onevision.frames import DEFAULTS, frame_indices
from specvlm_sglang.models.native.llava_onevision.processor import LlavaOnevisionMultimodalProcessor
from tests.support import clips
from tests.support.hooks import unhooked

HOOKED = (("sglang.srt.utils.video_decoder", "VideoDecoderWrapper.__init__"),)
SIDE = 384


@pytest.fixture
def processor() -> Any:
    """Our processor's methods over transformers' own video processor."""
    ours = LlavaOnevisionMultimodalProcessor
    holder = SimpleNamespace(
        frame_size=(SIDE, SIDE),
        layout=SimpleNamespace(pooled_side=14, video_tokens=lambda frames: 196 * frames + 1),
        disable_fast_image_processor=True,
        keep_mm_features_on_device=False,
    )
    for name in ("_frame_pixels", "_device", "_item", "_video_item"):
        setattr(holder, name, partial(getattr(ours, name), holder))
    return holder


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(video_decoder, "_BACKEND", video_decoder._BACKEND)
    path = clips.write_clip(tmp_path / "a.mp4", frames=24, fps=6, height=178, width=322)
    with unhooked(*HOOKED):
        install.install()
        with video_decoder.VideoDecoderWrapper(str(path)) as video:
            yield video


@pytest.mark.parametrize("frames_together", [1, 3, 100])
def test_pixels_of_groups_are_bit_equal_to_those_of_all_frames(
    frames_together: int, processor: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "_GROUP_BYTES", frames_together * 178 * 322 * 3)
    theirs = SimpleNamespace(
        video_processor=LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE})
    )
    item, shown = processor._video_item(theirs, clip, DEFAULTS)
    indices = frame_indices(DEFAULTS, 24, 6.0)
    whole = clip.get_frames_as_tensor(indices).permute(0, 3, 1, 2)
    expected = theirs.video_processor([whole], do_sample_frames=False, return_tensors="pt")
    assert torch.equal(item.feature, expected["pixel_values_videos"][0])
    assert item.feature.shape == (len(indices), 3, SIDE, SIDE)
    assert (shown["height"], shown["frames_used"]) == (SIDE, len(indices))


def test_frames_as_they_are_stored_do_not_count_against_the_limit(
    processor: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = SimpleNamespace(
        video_processor=LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28})
    )
    processor.frame_size = (28, 28)
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, str(178 * 322 * 3))
    item, _ = processor._video_item(theirs, clip, VideoOptions(nframes=24))
    assert item.feature.shape == (24, 3, 28, 28)
    processor.frame_size = (SIDE, SIDE)
    with pytest.raises(ValueError, match=f"24 frames of 384 x 384 .*{MAX_DECODED_BYTES_VARIABLE}"):
        processor._video_item(theirs, clip, VideoOptions(nframes=24))
