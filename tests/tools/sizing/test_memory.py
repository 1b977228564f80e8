"""Bytes of a pair on one GPU: by hand, as properties, and beside SGLang's own rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from sglang.srt.arg_groups.memory_hook import adjust_mem_fraction_for_vlm

from specvlm_sglang import algorithm
from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.draft import features
from specvlm_sglang.scoring import triton_scores
from specvlm_sglang.tools.sizing import memory
from specvlm_sglang.tools.sizing.memory import GIB, Model, Sizes, sizes
from specvlm_sglang.tools.sizing.published import PUBLISHED_MODELS, published_model


def model(name: str) -> Model:
    dimensions = published_model(name)
    return Model(name, dimensions, dimensions.parameters * 2, "table")


def pair(**options: Any) -> Sizes:
    given = {"tp": 4, "gpu_gib": 80.0, "video": 25_000, **options}
    return sizes(model("qwen2.5-vl-32b"), model("qwen2.5-vl-7b"), SpecVLMConfig(), **given)


def test_the_published_pair_by_hand() -> None:
    found = pair()
    assert found.target_weights == pytest.approx(33.45e9 * 2 / 4, rel=0.01)
    assert found.target_kv == 2 * 64 * (8 // 4) * 128 * 2
    assert found.draft_kv == 2 * 28 * (4 // 4) * 128 * 2
    assert found.kept == 2500
    assert found.target_request_kv == (25_000 + 64 + 512) * found.target_kv
    assert found.draft_request_kv == (2500 + 64 + 512) * found.draft_kv
    room = 80 * GIB * found.static_fraction - found.target_weights - found.draft_weights
    assert found.room == pytest.approx(room)
    # What the draft's pool takes is charged in whole layers of the target's width, as served.
    charged = found.tokens * (found.target_kv + 0.35 * found.draft_kv)
    assert room - 0.02 * room < charged <= room
    assert found.batch == found.tokens // (25_000 + 64 + 512) == 23


def test_a_target_that_drafts_for_itself_has_the_memory_alone() -> None:
    config = SpecVLMConfig()
    found = sizes(model("qwen2.5-vl-32b"), None, config, tp=4, gpu_gib=80.0, video=25_000)
    assert found.draft_weights == found.draft_kv == found.draft_request_kv == found.features == 0
    assert found.kept == 2500
    assert found.room == pytest.approx(80 * GIB * found.static_fraction - found.target_weights)
    assert found.tokens == int(found.room // found.target_kv)
    assert found.batch == found.tokens // (25_000 + 64 + 512) > pair().batch
    reads_features = SpecVLMConfig(policy="change")
    more = sizes(model("qwen2.5-vl-32b"), None, reads_features, tp=4, gpu_gib=80.0, video=25_000)
    assert more.features == 80 * GIB / 128
    assert more.beside == pytest.approx(found.beside - more.features)


def test_more_ranks_than_kv_heads_still_hold_one_each() -> None:
    assert pair(tp=8).draft_kv == pair(tp=4).draft_kv == 2 * 28 * 128 * 2


@pytest.mark.parametrize("gpu_gib", [24.0, 48.0, 80.0, 141.0, 192.0])
def test_more_memory_or_shorter_videos_never_hold_fewer_requests(gpu_gib: float) -> None:
    found = pair(gpu_gib=gpu_gib)
    assert 0.5 < found.static_fraction < 0.95
    assert pair(gpu_gib=gpu_gib + 20).batch >= found.batch
    assert pair(gpu_gib=gpu_gib, video=12_500).batch >= found.batch
    assert pair(gpu_gib=gpu_gib, video=12_500).vision_peak == pytest.approx(found.vision_peak / 2)


def test_a_pair_whose_weights_do_not_fit_holds_none() -> None:
    found = pair(tp=1, gpu_gib=48.0)
    assert found.room < 0
    assert found.tokens == found.batch == 0


def test_a_token_limit_of_the_draft_is_its_kept_tokens() -> None:
    config = SpecVLMConfig(draft_video_tokens=1000)
    large, small = model("qwen3-vl-32b"), model("qwen3-vl-2b")
    assert sizes(large, small, config, tp=1, gpu_gib=141.0, video=25_000).kept == 1000


def test_the_sizes_of_served_parts_are_theirs() -> None:
    assert memory.MAX_RUNNING_REQUESTS == algorithm.DEFAULT_MAX_RUNNING_REQUESTS
    assert memory.KEYS_PER_SPLIT == triton_scores.KEYS_PER_SPLIT
    assert memory.FEATURE_CACHE == (features.LEAST_CACHE_BYTES, features.CACHE_SHARE)


CONFIGURATIONS = {
    "qwen2-vl-7b": ("Qwen2VL", {"hidden_size": 3584}),
    "qwen2-vl-72b": ("Qwen2VL", {"hidden_size": 8192}),
    "qwen2.5-vl-7b": ("Qwen2_5_VL", {"hidden_size": 1280}),
    "qwen3-vl-2b": ("Qwen3VL", {"hidden_size": 1024}),
    "qwen3-vl-32b": ("Qwen3VL", {"hidden_size": 1152}),
    "llava-onevision-7b": ("LlavaOnevision", {}),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_share_that_vision_takes_is_sglangs(name: str) -> None:
    kind, vision = CONFIGURATIONS[name]
    config = getattr(transformers, f"{kind}Config")(**({"vision_config": vision} if vision else {}))
    tower = published_model(name).vision
    full = memory.static_fraction(80.0, 1, tower)
    ours = full / round((80 - (0.5 + 12 + 1 / 8 + 512 / 1024)) / 80, 3)
    theirs = adjust_mem_fraction_for_vlm(1.0, SimpleNamespace(hf_config=config), False, 80 * 1024)
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_scores_take_little_beside_the_keys_that_they_read(name: str) -> None:
    dimensions = published_model(name)
    scores = memory.scoring_bytes(dimensions, 1, 25_000, 256)
    assert 25_000 * 4 < scores < 0.05 * 25_000 * dimensions.kv_bytes_per_token + 8 * 2**20


def test_the_towers_peak_is_what_its_widest_block_holds() -> None:
    """One block of a tower as torch computes it, tensor by tensor, with what autograd would not."""
    dimensions = published_model("qwen3-vl-2b")
    tower, video = dimensions.vision, 49
    patches = video * 4
    held = [
        torch.zeros(patches, 3 * tower.temporal_patch * tower.patch**2),  # pixels, float32
        torch.zeros(patches, 3 * tower.temporal_patch * tower.patch**2, dtype=torch.bfloat16),
        *torch.zeros(2, patches, tower.hidden, dtype=torch.bfloat16),  # residual, normalised
        *torch.zeros(2, patches, tower.intermediate, dtype=torch.bfloat16),  # before, after GELU
    ]
    together = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert memory.vision_peak(dimensions, 1, video) == pytest.approx(together)
