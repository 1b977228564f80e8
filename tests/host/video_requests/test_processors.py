"""Options, lists of frames and receipts through SGLang's own processors, of both families."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.multimodal_processor import get_mm_processor, import_processors
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler
from transformers import AutoProcessor

from specvlm_sglang.host.video_requests import chat, qwen, receipt
from specvlm_sglang.host.video_requests.inputs import encode
from specvlm_sglang.host.video_requests.options import VideoOptions
from specvlm_sglang.host.video_requests.qwen import PixelLimits, pixel_config
from tests.support import clips
from tests.support.frames import write_lossless, write_pictures
from tests.support.hooks import unhooked
from tests.support.llava_checkpoints import llava_onevision
from tests.support.qwen_vl_checkpoints import qwen2_vl, qwen3_vl

QWEN, QWEN2, QWEN3, LLAVA = "Qwen2.5-VL", "Qwen2-VL", "Qwen3-VL", "LLaVA-OneVision"
QWENS = (QWEN, QWEN2, QWEN3)
PLACEHOLDERS = dict.fromkeys(QWENS, "<|vision_start|><|video_pad|><|vision_end|>") | {
    LLAVA: "<video>"
}
_QWEN_MODULE = "sglang.srt.multimodal.processors.qwen_vl"
HOOKED = (
    ("sglang.srt.managers.multimodal_processor", "get_mm_processor"),
    (_QWEN_MODULE, "preprocess_video"),
    (_QWEN_MODULE, "QwenVLImageProcessor._process_mm_data_uncached"),
    (_QWEN_MODULE, "QwenVLImageProcessor.process_mm_data_async"),
    (_QWEN_MODULE, "QwenVLImageProcessor.process_and_combine_mm_data_async"),
)


@pytest.fixture(scope="module", autouse=True)
def hooked() -> Iterator[None]:
    load_plugins()
    with unhooked(*HOOKED):
        qwen.install()
        yield
    chat.understand(parts=False)


@dataclass
class Prepared:
    """What a processor made of a request."""

    items: list[Any]
    receipts: list[dict[str, Any]]

    @property
    def features(self) -> torch.Tensor:
        """Pixels of all videos, in order."""
        return torch.cat([item.feature for item in self.items])

    def shown(self, *names: str) -> list[tuple[Any, ...]]:
        """Fields of each video's receipt."""
        return [tuple(video[name] for name in names) for video in self.receipts]


@dataclass
class Family:
    """A processor and how its prompts name a video."""

    name: str
    processor: Any

    def prepare(self, *videos: Any, **fields: Any) -> Prepared:
        """Process a prompt about these videos, each a path or fields beside it."""
        sent = [encode(video) if isinstance(video, dict) else video for video in videos]
        request = GenerateReqInput(text="", video_data=sent, **fields)
        output = asyncio.run(
            self.processor.process_mm_data_async(
                image_data=None,
                audio_data=None,
                input_text=PLACEHOLDERS[self.name] * len(videos) + "What happens?",
                request_obj=request,
            )
        )
        return Prepared(output.mm_items, receipt.kept(request))


Build = Callable[..., Family]


@pytest.fixture(scope="module")
def build(vl_target: Path, checkpoint_dir: Path) -> Build:
    directories = {
        QWEN: vl_target,
        QWEN2: qwen2_vl(checkpoint_dir / "qwen2-requests"),
        QWEN3: qwen3_vl(checkpoint_dir / "qwen3-requests"),
        LLAVA: llava_onevision(checkpoint_dir / "llava-requests"),
    }

    def make(name: str, **video: Any) -> Family:
        arguments = ServerArgs(
            model_path=str(directories[name]),
            dtype="float32",
            mm_process_config={"video": video} if video else {},
        )
        arguments.resolve_once()
        set_global_server_args_for_scheduler(arguments)
        import_processors("sglang.srt.multimodal.processors")
        import_processors("specvlm_sglang.models.native.llava_onevision")
        model = ModelConfig.from_server_args(arguments)
        processor = AutoProcessor.from_pretrained(directories[name])
        made = get_mm_processor(
            model.hf_config, arguments, processor, "default", model, skip_mm_pool=True
        )
        return Family(name, made)

    return make


@pytest.fixture(scope="module", params=[*QWENS, LLAVA])
def family(request: pytest.FixtureRequest, build: Build) -> Family:
    return build(request.param)


@pytest.fixture(scope="module")
def qwen_family(build: Build) -> Family:
    return build(QWEN)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty frames, ten a second."""
    path = tmp_path_factory.mktemp("options") / "clip.mp4"
    return str(clips.write_clip(path, frames=40, fps=10))


def frames_used(prepared: Prepared) -> list[int]:
    return [used for (used,) in prepared.shown("frames_used")]


@pytest.mark.parametrize(
    ("options", "used"),
    [
        ({}, 8),
        ({"fps": 1}, 4),
        ({"fps": 5}, 20),
        ({"fps": 5, "max_frames": 10}, 10),
        ({"fps": 0.1, "min_frames": 6}, 6),
        ({"nframes": 12}, 12),
        ({"nframes": 2}, 2),
        ({"nframes": 86_400}, 40),
    ],
    ids=str,
)
def test_options_of_frames_mean_the_same_in_every_place_and_family(
    family: Family, clip: str, options: dict[str, Any], used: int
) -> None:
    if options.get("fps") == 5 and family.name == LLAVA:
        used = min(used, 32)
    places = [
        family.prepare({"url": clip, **options}),
        family.prepare(clip, video_config=options),
        family.prepare(clip, mm_processor_kwargs=options),
    ]
    assert [frames_used(place) for place in places] == [[used]] * 3
    (times,) = places[0].shown("times")[0]
    assert (len(times), times[0], times[-1]) == (used, 0, 3.9)
    assert places[0].shown("frames", "duration", "container") == [
        (40, 4.0, "mov,mp4,m4a,3gp,3g2,mj2")
    ]


def test_each_video_has_its_own_options(family: Family, clip: str) -> None:
    videos = ({"url": clip, "nframes": 6}, clip, {"url": clip, "fps": 1})
    assert frames_used(family.prepare(*videos, video_config={"nframes": 10})) == [6, 10, 4]


def test_what_the_server_sets_is_farthest(build: Build, clip: str) -> None:
    for name in (QWEN, LLAVA):
        family = build(name, nframes=6)
        assert frames_used(family.prepare(clip)) == [6]
        assert frames_used(family.prepare(clip, mm_processor_kwargs={"fps": 1})) == [4]


@pytest.mark.parametrize("name", [QWEN, LLAVA])
def test_a_server_that_sets_both_ways_of_choosing_frames_does_not_start(
    build: Build, name: str
) -> None:
    with pytest.raises(ValueError, match="--mm-process-config video: fps=2 and nframes=4 exclude"):
        build(name, fps=2, nframes=4)
    with pytest.raises(ValueError, match="--mm-process-config video: fps=0 must be"):
        build(name, fps=0)


def test_the_size_of_frames_follows_the_options(qwen_family: Family, clip: str) -> None:
    sizes = {
        json.dumps(options): qwen_family.prepare({"url": clip, **options})
        for options in (
            {},
            {"max_pixels": 4000},
            {"min_pixels": 50_000},
            {"total_pixels": 16_000},
            {"max_pixels": 30_000, "min_pixels": 20_000},
        )
    }
    pixels = {}
    for name, prepared in sizes.items():
        ((height, width, tokens, used),) = prepared.shown(
            "height", "width", "tokens", "frames_used"
        )
        assert tokens == height * width // 28**2 * used // 2
        pixels[name] = height * width
    default, small, large, shared, both = pixels.values()
    assert small <= 4000 < default
    assert large >= 50_000
    assert shared * 8 <= 2 * 16_000
    assert 20_000 <= both <= 30_000


def test_the_size_of_one_video_leaves_the_others_as_they_are(
    qwen_family: Family, clip: str
) -> None:
    alone = qwen_family.prepare(clip)
    both = qwen_family.prepare({"url": clip, "max_pixels": 4000}, clip)
    small, beside = both.shown("height", "width", "tokens")
    assert small[0] * small[1] <= 4000
    assert [beside] == alone.shown("height", "width", "tokens")
    assert torch.equal(alone.features, both.features[-len(alone.features) :])


def test_options_that_cannot_be_kept_are_refused(qwen_family: Family, clip: str) -> None:
    for options, message in (
        ({"nframes": 1}, "nframes=1 must be at least 2"),
        ({"max_frames": 1}, "max_frames=1 must be at least 2"),
        ({"max_pixels": 784}, "has no size within min_pixels and max_pixels"),
        ({"min_pixels": 10**7, "nframes": 40}, "min_pixels=10000000 of 40 frames is more than"),
    ):
        with pytest.raises(ValueError, match=message):
            qwen_family.prepare({"url": clip, **options})


def test_a_minimum_of_all_frames_is_compared_with_the_total() -> None:
    limits = PixelLimits(3136, 12_544, 1_000_000)
    config = pixel_config(VideoOptions(min_pixels=20_000), 8, limits)
    assert config == {"min_pixels": 20_000, "max_pixels": 20_000, "total_pixels": 1_000_000}
    with pytest.raises(ValueError, match="total_pixels=50000 allows: 12500 for each"):
        pixel_config(VideoOptions(min_pixels=20_000, total_pixels=50_000), 8, limits)


def test_llava_onevision_refuses_options_of_a_frames_size(build: Build, clip: str) -> None:
    family = build(LLAVA)
    for fields in (
        {"video_config": {"max_pixels": 1000}},
        {"mm_processor_kwargs": {"max_pixels": 1000}},
    ):
        with pytest.raises(ValueError, match="max_pixels=1000 does not work with LLaVA-OneVision"):
            family.prepare(clip, **fields)
    with pytest.raises(ValueError, match="--mm-process-config video: max_pixels=1000 does not"):
        build(LLAVA, max_pixels=1000)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_list_of_frames_is_the_file_of_the_same_pixels(
    family: Family, tmp_path: Path, count: int
) -> None:
    frames = clips.draw(seed=3, frames=count, height=90, width=120)
    pictures = write_pictures(tmp_path / "frames", frames)
    # Qwen takes pairs: the file repeats the last of an odd number, as the processor does.
    padded = frames[[*range(count), *[-1] * (count % 2 * (family.name in QWENS))]]
    file = str(write_lossless(tmp_path / "clip.mkv", padded, fps=4))
    listed = family.prepare({"video": pictures, "fps": 4})
    filed = family.prepare({"url": file, "nframes": len(padded)})
    assert torch.equal(listed.features, filed.features)
    assert listed.shown("height", "width", "tokens") == filed.shown("height", "width", "tokens")
    assert listed.shown("container", "frames", "frames_used", "times") == [
        ("frames", count, count, [round(index / 4, 3) for index in range(count)])
    ]


def test_one_frame_is_a_video_to_llava_onevision_and_none_to_qwen(
    family: Family, image_paths: list[Path]
) -> None:
    single = [str(image_paths[0])]
    if family.name == LLAVA:
        assert frames_used(family.prepare(single)) == [1]
        return
    with pytest.raises(ValueError, match=r"1 frame; the model needs 2\. Send it as an image"):
        family.prepare(single)


def test_options_apply_to_lists_of_frames_too(qwen_family: Family, image_paths: list[Path]) -> None:
    pictures = [str(path) for path in image_paths]
    prepared = qwen_family.prepare(
        {"video": pictures, "nframes": 2, "fps": 1}, pictures, video_config={"max_pixels": 4000}
    )
    assert prepared.shown("frames", "frames_used", "times", "duration") == [
        (4, 2, [0, 3], 4.0),
        (4, 4, [0, 0.5, 1, 1.5], 2.0),
    ]
    assert all(height * width <= 4000 for height, width in prepared.shown("height", "width"))


def test_tokens_are_those_of_the_prompt(family: Family, clip: str) -> None:
    prepared = family.prepare(clip, {"url": clip, "fps": 1})
    newline = family.name == LLAVA
    lengths = [
        [last - first + 1 - newline for first, last in item.offsets] for item in prepared.items
    ]
    if family.name == QWEN3:  # a span for each pair of frames, an item for each video
        lengths = [[sum(of_frames)] for of_frames in lengths]
    assert prepared.shown("tokens") == [(length,) for of_item in lengths for length in of_item]


def test_the_size_of_frames_is_in_the_models_own_patches(family: Family, clip: str) -> None:
    (prepared,) = family.prepare(clip).receipts
    side = {QWEN: 28, QWEN2: 28, QWEN3: 32}.get(family.name)
    if side is None:
        return  # One size for all.
    per_frame = prepared["tokens"] // (prepared["frames_used"] // 2)
    assert (prepared["height"] // side) * (prepared["width"] // side) == per_frame


def test_a_model_that_sizes_a_video_as_a_whole_refuses_sizes_of_frames(
    build: Build, clip: str
) -> None:
    family = build(QWEN3)
    for options in ({"max_pixels": 4000}, {"total_pixels": 90_000}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}=.* has no meaning for qwen3_vl"):
            family.prepare({"url": clip, **options})
    with pytest.raises(ValueError, match="min_pixels=1000 has no meaning for qwen3_vl"):
        build(QWEN3, min_pixels=1000)


def test_a_prompt_that_states_times_states_those_of_the_receipt(
    build: Build, tmp_path: Path
) -> None:
    family = build(QWEN3)
    frames = clips.draw(seed=3, frames=4, height=90, width=120)
    pictures = write_pictures(tmp_path / "frames", frames)
    request = GenerateReqInput(text="", video_data=[encode({"video": pictures, "fps": 0.5})])
    output = asyncio.run(
        family.processor.process_mm_data_async(
            image_data=None,
            audio_data=None,
            input_text=PLACEHOLDERS[QWEN3] + "What happens?",
            request_obj=request,
        )
    )
    text = family.processor._processor.tokenizer.decode(output.input_ids)
    # Two seconds a frame, and the middle of each pair.
    assert receipt.kept(request)[0]["times"] == [0, 2, 4, 6]
    assert re.findall(r"<([\d.]+) seconds>", text) == ["1.0", "5.0"]


def test_pixels_that_came_decoded_have_a_receipt(qwen_family: Family, clip: str) -> None:
    pixels = torch.zeros(4, 3, 84, 112, dtype=torch.uint8)
    prepared = qwen_family.prepare(pixels, {"url": clip, "max_pixels": 4000})
    assert prepared.shown("container", "frames_used")[0] == (None, 4)
    alone = qwen_family.prepare(pixels)
    assert torch.equal(alone.features, prepared.features[: len(alone.features)])


def test_requests_at_once_keep_their_own_options(qwen_family: Family, clip: str) -> None:
    async def one(count: int) -> int:
        request = GenerateReqInput(text="", video_data=[clip], video_config={"nframes": count})
        await qwen_family.processor.process_mm_data_async(
            image_data=None, audio_data=None, input_text=PLACEHOLDERS[QWEN], request_obj=request
        )
        return int(receipt.kept(request)[0]["frames_used"])

    async def together() -> list[int]:
        return list(await asyncio.gather(*(one(count) for count in (2, 4, 6, 8, 10))))

    assert asyncio.run(together()) == [2, 4, 6, 8, 10]
