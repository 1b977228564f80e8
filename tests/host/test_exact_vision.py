"""Qwen2.5-VL videos as transformers computes them, and as plain SGLang does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.models.qwen2_5_vl import Qwen2_5_VisionTransformer
from sglang.srt.multimodal.processors import qwen_vl
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import get_parallel
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler
from transformers import AutoProcessor

from specvlm_sglang.host import exact_vision
from specvlm_sglang.host.exact_vision import one_row_per_temporal_grid
from tests.support import clips, hf
from tests.support.hooks import unhooked

MODULE = "sglang.srt.multimodal.processors.qwen_vl"
TARGETS = (
    ("sglang.srt.models.qwen2_5_vl", "Qwen2_5_VisionTransformer.forward"),
    (MODULE, "preprocess_video"),
    (MODULE, "QwenVLImageProcessor.process_mm_data_async"),
    (MODULE, "QwenVLImageProcessor.process_and_combine_mm_data_async"),
)
FULL_PROMPT = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    load_plugins()
    with unhooked(*TARGETS):
        yield


@contextmanager
def one_rank() -> Iterator[None]:
    """What SGLang's layers ask about parallelism, without process groups."""
    with get_parallel().override(
        tp_rank=0, tp_size=1, attn_tp_rank=0, attn_tp_size=1, tp_group=None
    ):
        yield


@pytest.fixture(scope="module")
def tower(vl_target: Path) -> Any:
    """SGLang's vision tower with the weights of transformers'."""
    load_plugins()
    arguments = ServerArgs(model_path=str(vl_target), dtype="float32")
    arguments.resolve_once()
    set_global_server_args_for_scheduler(arguments)
    model = hf.load_model(vl_target)
    with one_rank():
        visual = Qwen2_5_VisionTransformer(
            model.config.vision_config, norm_eps=1e-6, quant_config=None, prefix="visual"
        )
    weights = {}
    theirs = dict(model.model.visual.named_parameters())
    for name in dict(visual.named_parameters()):
        if "gate_up_proj" in name:
            halves = (name.replace("gate_up", half) for half in ("gate", "up"))
            weights[name] = torch.cat([theirs[half] for half in halves])
        else:
            weights[name] = theirs[name.replace("qkv_proj", "qkv")]
    visual.load_state_dict(weights, strict=False)
    return visual


@torch.no_grad()
def features(tower: Any, directory: Path, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SGLang's and transformers' features of random patches."""
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(int(grid.prod(1).sum()), 3 * 2 * 14 * 14, generator=generator)
    expected = hf.load_model(directory).model.visual(patches, grid_thw=grid).pooler_output
    with one_rank():
        return tower(patches, grid), expected


SEVERAL_GRIDS = [[[2, 8, 12]], [[4, 4, 4]], [[3, 8, 12], [1, 4, 4], [2, 6, 4]]]


@pytest.mark.parametrize("grid", [*SEVERAL_GRIDS, [[1, 8, 12]], [[1, 4, 4], [1, 6, 10]]], ids=str)
def test_with_the_hook_the_towers_features_are_those_of_transformers(
    grid: list[list[int]], tower: Any, vl_target: Path
) -> None:
    exact_vision.install_in_model()
    exact_vision.install_in_model()
    found, expected = features(tower, vl_target, torch.tensor(grid))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", SEVERAL_GRIDS, ids=str)
def test_plain_sglang_differs_once_a_video_has_several_temporal_grids(
    grid: list[list[int]], tower: Any, vl_target: Path
) -> None:
    found, expected = features(tower, vl_target, torch.tensor(grid))
    assert (found - expected).abs().max() > 1e-2 * expected.abs().max()


def test_each_temporal_grid_becomes_a_row_and_the_callers_grid_stays() -> None:
    grid = torch.tensor([[3, 8, 12], [1, 4, 6]])
    assert one_row_per_temporal_grid(grid).tolist() == [[1, 8, 12]] * 3 + [[1, 4, 6]]
    assert grid.tolist() == [[3, 8, 12], [1, 4, 6]]


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Clips by their frame rate; all are sampled at two frames per second."""
    folder = tmp_path_factory.mktemp("rates")
    return {
        fps: clips.write_clip(folder / f"{fps}.mp4", frames=24, fps=fps) for fps in (3, 6, 12, 24)
    }


class Processor(qwen_vl.QwenVLImageProcessor):
    """SGLang's processor as far as metadata travels; loading and M-RoPE are not of interest."""

    def __init__(self, directory: Path, model_type: str) -> None:
        self.hf_config = SimpleNamespace(model_type=model_type)
        self.video_config: dict[str, Any] = {}
        self.mm_processor_executor = None
        self.processor = AutoProcessor.from_pretrained(directory)
        self.given: dict[str, Any] = {}

    async def load_mm_data(self, **given: Any) -> Any:
        from sglang.srt.utils.common import load_video

        # Lets concurrent requests interleave.
        await asyncio.sleep(0)
        return SimpleNamespace(
            videos=[load_video(str(path), use_gpu=False) for path in given["video_data"]]
        )

    def process_and_combine_mm_data(self, base_output: Any, mm_tokens: Any, **kwargs: Any) -> Any:
        self.given = kwargs
        return base_output

    async def _process_mm_data_uncached(
        self, image_data: Any, input_text: str, request_obj: Any, *args: Any, **kwargs: Any
    ) -> Any:
        base = await self.load_mm_data(video_data=request_obj.video_data)
        metadata = []
        for index, video in enumerate(base.videos):
            base.videos[index], found = await qwen_vl.preprocess_video(video, video_config={})
            metadata.append(found)
            await asyncio.sleep(0)
        holder = Processor.__new__(Processor)
        vars(holder).update(vars(self))
        await holder.process_and_combine_mm_data_async(base, None)
        kwargs = {
            name: value
            for name, value in holder.given.items()
            if name in ("video_metadata", "do_sample_frames")
        }
        output = self.processor(
            text=[FULL_PROMPT * len(base.videos)],
            videos=base.videos,
            return_tensors="pt",
            **({"videos_kwargs": kwargs} if kwargs else {}),
        )
        return [float(seconds) for seconds in output["second_per_grid_ts"]]


async def seconds_per_grid(
    directory: Path, *paths: Path, model_type: str = "qwen2_5_vl"
) -> list[float]:
    request = SimpleNamespace(video_data=list(paths), audio_data=None)
    processor = Processor(directory, model_type)
    found: list[float] = await processor.process_mm_data_async([], FULL_PROMPT, request)
    return found


def expected_seconds(path: Path) -> float:
    return hf.sample_video(path).seconds_per_grid


def test_plain_sglang_takes_every_clip_for_one_of_24_frames_per_second(
    vl_target: Path, rates: dict[int, Path]
) -> None:
    for path in rates.values():
        found = asyncio.run(seconds_per_grid(vl_target, path))
        assert found == pytest.approx([2 / 24])


def test_with_the_hook_the_processor_gets_the_sampled_frames_rate(
    vl_target: Path, rates: dict[int, Path]
) -> None:
    exact_vision.install_in_processor()
    paths = list(rates.values())
    expected = [expected_seconds(path) for path in paths]
    # The trial is void if all clips are sampled alike, or at 24 frames per second.
    assert min(expected) > 0.2
    assert len(set(expected)) > 1
    for path, seconds in zip(paths, expected, strict=True):
        found = asyncio.run(seconds_per_grid(vl_target, path))
        assert found == pytest.approx([seconds])
    assert asyncio.run(seconds_per_grid(vl_target, *paths)) == pytest.approx(expected)


def test_concurrent_requests_keep_their_own_metadata(
    vl_target: Path, rates: dict[int, Path]
) -> None:
    exact_vision.install_in_processor()
    paths = list(rates.values())
    groups = [paths[:1], paths[1:], paths[::-1], [], paths[2:3]] * 2

    async def together() -> list[Any]:
        asked = [seconds_per_grid(vl_target, *group) for group in groups if group]
        return list(await asyncio.gather(*asked))

    expected = [[expected_seconds(path) for path in group] for group in groups if group]
    found = asyncio.run(together())
    assert found == [pytest.approx(seconds) for seconds in expected]


def test_other_models_of_the_processor_are_left_alone(
    vl_target: Path, rates: dict[int, Path]
) -> None:
    exact_vision.install_in_processor()
    found = asyncio.run(seconds_per_grid(vl_target, rates[6], model_type="qwen2_vl"))
    assert found == pytest.approx([2 / 24])


def test_a_video_without_metadata_is_processed_as_sglang_does(vl_target: Path) -> None:
    exact_vision.install_in_processor()
    processor = Processor(vl_target, "qwen2_5_vl")
    seen: list[Any] = []

    async def uncached(*args: Any, **kwargs: Any) -> None:
        # Frames that came decoded: SGLang knows no metadata of them.
        seen.append(await qwen_vl.preprocess_video(torch.zeros(2, 3, 28, 28), video_config={}))
        await processor.process_and_combine_mm_data_async(SimpleNamespace(), None)

    processor._process_mm_data_uncached = partial(uncached)  # type: ignore[method-assign]
    request = SimpleNamespace(video_data=["frames"], audio_data=None)
    asyncio.run(processor.process_mm_data_async([], FULL_PROMPT, request))
    assert seen[0][1] is None
    assert processor.given == {}
