"""The draft's own visual features and their cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem

from specvlm_sglang.draft.features import LEAST_CACHE_BYTES, DraftFeatures, default_cache_bytes
from specvlm_sglang.models.qwen2_5_vl import Qwen25VL

HIDDEN = 4
TOKEN_BYTES = HIDDEN * 4


class Tower:
    """Stands in for SGLang's model class: one feature row per pixel row, counting its calls."""

    def __init__(self) -> None:
        self.videos = self.images = 0
        self.extra = 0

    def get_video_feature(self, items: list[Any]) -> torch.Tensor:
        self.videos += 1
        return self._encode(items, 1.0)

    def get_image_feature(self, items: list[Any]) -> torch.Tensor:
        self.images += 1
        return self._encode(items, -1.0)

    def _encode(self, items: list[Any], sign: float) -> torch.Tensor:
        (item,) = items
        assert not torch.is_grad_enabled()
        rows = torch.cat([item.feature, item.feature[: self.extra]])
        return sign * rows


def item(
    key: int | None, tokens: int = 3, modality: Modality = Modality.VIDEO, **fields: Any
) -> MultimodalDataItem:
    pixels = torch.full((tokens, HIDDEN), float(key or 0))
    given = {"feature": pixels, "offsets": [(5, 4 + tokens)], "hash": key, **fields}
    return MultimodalDataItem(modality=modality, **given)


@pytest.fixture
def tower() -> Tower:
    return Tower()


def features(tower: Tower, tokens_cached: int) -> DraftFeatures:
    return DraftFeatures(tower, Qwen25VL(), cache_bytes=tokens_cached * TOKEN_BYTES)


def test_videos_and_images_go_to_their_own_encoder(tower: Tower) -> None:
    draft = features(tower, 100)
    assert (draft.of(item(2)) == 2).all()
    assert (draft.of(item(3, modality=Modality.IMAGE)) == -3).all()
    assert (tower.videos, tower.images) == (1, 1)


def test_the_same_content_is_encoded_once(tower: Tower) -> None:
    draft = features(tower, 100)
    first = draft.of(item(7))
    assert draft.of(item(7)) is first
    assert (draft.hits, draft.misses, tower.videos) == (1, 1, 1)
    assert draft.bytes_in_use == 3 * TOKEN_BYTES


def test_content_that_is_cached_needs_no_pixels_any_more(tower: Tower) -> None:
    draft = features(tower, 100)
    first = draft.of(item(7))
    # SGLang drops pixels once the target has encoded them.
    assert draft.of(item(7, feature=None)) is first


@pytest.mark.parametrize("length", [3, 5000])
def test_other_pixels_under_the_same_hash_get_features_of_their_own(
    tower: Tower, length: int
) -> None:
    draft = features(tower, 3 * length)
    first, other = item(7, tokens=length), item(7, tokens=length)
    other.feature[length // 2 :] += 1
    assert not draft.has(other)
    assert torch.equal(draft.of(first), first.feature)
    assert not draft.has(other)
    assert torch.equal(draft.of(other), other.feature)
    assert draft.has(other)
    assert not draft.has(first)
    assert draft.bytes_in_use == length * TOKEN_BYTES


def test_a_hash_that_two_items_share_is_not_trusted(tower: Tower) -> None:
    draft = features(tower, 100)
    assert draft.of(item(7, tokens=3)).shape[0] == 3
    assert draft.of(item(7, tokens=5)).shape[0] == 5
    assert (draft.hits, tower.videos, draft.bytes_in_use) == (0, 2, 5 * TOKEN_BYTES)


def test_the_least_recently_used_content_goes_first_and_the_bound_holds(tower: Tower) -> None:
    draft = features(tower, 7)
    draft.of(item(1))
    draft.of(item(2))
    draft.of(item(1))
    draft.of(item(3))
    assert draft.bytes_in_use == 6 * TOKEN_BYTES
    draft.of(item(1))
    draft.of(item(3))
    assert draft.hits == 3
    draft.of(item(2))
    assert draft.misses == 4


@pytest.mark.parametrize("order", [[1, 2, 3, 4], [4, 3, 2, 1, 4, 4, 3], [2, 9, 2, 9, 2]])
def test_bytes_in_use_are_those_of_what_is_kept(tower: Tower, order: list[int]) -> None:
    draft = features(tower, 10)
    for key in order:
        draft.of(item(key, tokens=key))
        kept = sum(tensor.shape[0] for tensor in draft._cache.values())
        assert draft.bytes_in_use == kept * TOKEN_BYTES <= 10 * TOKEN_BYTES


def test_an_item_larger_than_the_cache_is_encoded_each_time_and_displaces_nothing(
    tower: Tower,
) -> None:
    draft = features(tower, 4)
    draft.of(item(1))
    draft.of(item(2, tokens=5))
    draft.of(item(2, tokens=5))
    draft.of(item(1))
    assert (draft.hits, draft.misses) == (1, 3)


def test_an_item_without_a_hash_is_never_cached(tower: Tower) -> None:
    draft = features(tower, 100)
    draft.of(item(None))
    draft.of(item(None))
    assert (draft.hits, tower.videos, draft.bytes_in_use) == (0, 2, 0)


def test_a_flush_forgets_everything(tower: Tower) -> None:
    draft = features(tower, 100)
    draft.of(item(1))
    draft.clear()
    assert draft.bytes_in_use == 0
    draft.of(item(1))
    assert tower.videos == 2


def test_precomputed_embeddings_of_the_target_are_refused(tower: Tower) -> None:
    embedded = item(1, feature=None, precomputed_embeddings=torch.zeros(3, 9))
    with pytest.raises(ValueError, match="no pixels, only embeddings of the target"):
        features(tower, 100).of(embedded)


def test_another_number_of_tokens_than_the_prompt_has_is_refused_and_not_cached(
    tower: Tower,
) -> None:
    draft = features(tower, 100)
    tower.extra = 1
    with pytest.raises(ValueError, match="encodes 4 tokens where the prompt has 3"):
        draft.of(item(1))
    tower.extra = 0
    assert draft.of(item(1)).shape == (3, HIDDEN)


def test_spans_of_one_item_count_together(tower: Tower) -> None:
    split = item(1, tokens=5, offsets=[(2, 3), (6, 8)])
    assert features(tower, 100).of(split).shape == (5, HIDDEN)


def test_the_default_cache_is_a_bounded_share_of_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert default_cache_bytes("cpu") == LEAST_CACHE_BYTES == 256 * 2**20
    for total, expected in ((16 << 30, LEAST_CACHE_BYTES), (80 << 30, 640 << 20)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda *_, total=total: (0, total))
        assert default_cache_bytes("cuda") == expected


def test_what_is_cached_needs_no_encoder_and_the_largest_of_the_others_counts(
    tower: Tower,
) -> None:
    draft = features(tower, 1000)
    small, large = item(1), item(2, tokens=50)
    inputs = SimpleNamespace(mm_items=[small, large])
    assert not draft.has(small)
    assert draft.bytes_to_encode(None) == 0
    assert draft.bytes_to_encode(inputs) > draft.bytes_to_encode(SimpleNamespace(mm_items=[small]))
    draft.of(large)
    assert draft.has(large)
    assert draft.bytes_to_encode(inputs) == draft.bytes_to_encode(SimpleNamespace(mm_items=[small]))
    draft.of(small)
    assert draft.bytes_to_encode(inputs) == 0
