"""The draft's KV cache never waits for a GPU: its whole life on fake ``cuda`` tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from specvlm_sglang.draft.inputs import DraftPrompt
from specvlm_sglang.draft.kv_cache import DraftKVCache
from specvlm_sglang.draft.prefixes import PrefixKey
from tests.support.sync_guard import HostSyncError, NoHostSync

ROWS, WIDTH = 9, 4096
PAGE_SIZES = [1, 16]


class NothingAsked(TorchDispatchMode):
    """Fails at any tensor operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda host: host)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def cache_of(page_size: int) -> DraftKVCache:
    table = torch.zeros((ROWS, WIDTH), dtype=torch.int32, device="cuda")
    common: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "device": "cuda",
        "kvcache": None,
        "need_sort": False,
    }
    allocator = (
        TokenToKVPoolAllocator(2048, **common)
        if page_size == 1
        else PagedTokenToKVPoolAllocator(2048, page_size, **common)
    )
    return DraftKVCache(SimpleNamespace(req_to_token=table), allocator, target_capacity=10_000)


def batch_of(rows: list[int]) -> SimpleNamespace:
    return SimpleNamespace(
        reqs=[SimpleNamespace(kv=SimpleNamespace(req_pool_idx=row)) for row in rows],
        req_pool_indices=torch.tensor(rows, device="cuda"),
        seq_lens=torch.tensor([100 * row for row in rows], device="cuda"),
        # A host tensor would be fake here too, and have no values.
        req_pool_indices_cpu=SimpleNamespace(tolist=lambda: rows),
        seq_lens_cpu=None,
        seq_lens_sum=None,
        multimodal_inputs=[SimpleNamespace(), None],
        out_cache_loc=None,
    )


def test_the_guard_sees_a_single_element_that_is_assigned(fake: Any) -> None:
    on_device = torch.zeros(4, device="cuda")
    with NoHostSync(), pytest.raises(HostSyncError):
        on_device[2] = 1.0


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_admitting_growing_and_ending_rows_waits_for_nothing(fake: Any, page_size: int) -> None:
    cache, batch = cache_of(page_size), batch_of([1, 2])
    with NoHostSync():
        assert cache.admit(1, draft_length=20, target_length=100, mrope_delta=-3)
        assert cache.admit(2, draft_length=40, target_length=200)
        assert cache.reserve([1, 2], [140, 260]) == []
        for _ in range(2):
            with cache.as_seen_by_draft(batch):
                assert batch.seq_lens.device.type == "cuda"
                torch.stack([one.mrope_position_delta for one in batch.multimodal_inputs])
                cache.missing(batch.req_pool_indices)
        cache.free(1)
        assert cache.reserve([1, 2], [140, 300]) == []
        assert cache.admit(1, draft_length=30, target_length=90)
    assert cache.is_warm(1)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_sharing_the_beginning_of_a_prompt_waits_for_nothing(fake: Any, page_size: int) -> None:
    cache, tokens = cache_of(page_size), torch.zeros(50, dtype=torch.int64, device="cuda")
    prompt = DraftPrompt(torch.zeros((50, 8), device="cuda"), tokens, tokens.expand(3, -1))
    with NoHostSync():
        assert cache.admit(1, draft_length=50, target_length=200)
        cache.share(1, PrefixKey(b"clip"), prompt, 41, filled=180)
        prefix = cache.prefixes.get(PrefixKey(b"clip"))
        assert prefix is not None
        assert cache.admit(2, draft_length=60, target_length=210, prefix=prefix)
        assert prompt.part(41, 50).after(prefix.tail, prefix.held).stop == 50
        cache.free(1)
        cache.free(2)
        cache.settle()
        # The pool is full but for what is kept.
        assert cache.admit(3, draft_length=cache.capacity, target_length=3000)
    assert not cache.prefixes.held


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_flush_does_nothing_on_the_device(fake: Any, page_size: int) -> None:
    """It comes on another stream than the one that reads the slots."""
    cache = cache_of(page_size)
    tokens = torch.zeros(20, dtype=torch.int64, device="cuda")
    prompt = DraftPrompt(torch.zeros((20, 8), device="cuda"), tokens, tokens.expand(3, -1))
    assert cache.admit(1, draft_length=20, target_length=100)
    assert cache.admit(2, draft_length=20, target_length=100)
    cache.share(2, PrefixKey(b"clip"), prompt, 17, filled=90)
    with NothingAsked():
        cache.clear()
        cache.reset_allocator()
    assert cache.slots_in_use == 0
    with NoHostSync():
        assert cache.admit(1, draft_length=2000, target_length=2000)
