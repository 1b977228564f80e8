"""The draft's private KV cache on SGLang's own tables and allocators."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sglang.srt.managers.schedule_batch import MultimodalInputs
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from specvlm_sglang.draft.kv_cache import GROWTH, DraftKVCache
from specvlm_sglang.draft.lengths import COLD

WIDTH = 96
PAGE_SIZES = [1, 16]


def make(
    *, slots: int = 128, page_size: int = 1, rows: int = 6, width: int = WIDTH
) -> tuple[DraftKVCache, ReqToTokenPool]:
    """A draft cache attached to a target table, as the draft worker builds them."""
    target = ReqToTokenPool(rows, 4 * width, "cpu", enable_memory_saver=False)
    table = ReqToTokenPool(rows, width, "cpu", enable_memory_saver=False)
    common: dict[str, Any] = {
        "dtype": torch.float32,
        "device": "cpu",
        "kvcache": None,
        "need_sort": False,
    }
    allocator = (
        TokenToKVPoolAllocator(slots, **common)
        if page_size == 1
        else PagedTokenToKVPoolAllocator(slots, page_size, **common)
    )
    cache = DraftKVCache(table, allocator, target_capacity=1000)
    target.attach_aux_cache(cache)
    return cache, target


def pages(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size) * page_size


def held(cache: DraftKVCache, row: int) -> list[int]:
    """Slots that the table shows for a row; the dummy slot 0 is nobody's."""
    slots: list[int] = cache.req_to_token_pool.req_to_token[row].tolist()
    return [slot for slot in slots if slot != 0]


def lengths_of(cache: DraftKVCache, rows: list[int], target: list[int]) -> list[int]:
    """Draft lengths, the same on the device and on the host."""
    on_device = cache.lengths(torch.tensor(rows, dtype=torch.int32), torch.tensor(target))
    on_host = cache.host_lengths(rows, torch.tensor(target, dtype=torch.int64))
    assert on_device.tolist() == on_host.tolist()
    assert on_device.dtype == on_host.dtype == torch.int64
    return on_device.tolist()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_an_admitted_row_holds_its_pruned_prompt_and_no_more_than_whole_pages(
    page_size: int,
) -> None:
    cache, _ = make(page_size=page_size)
    assert cache.admit(2, draft_length=21, target_length=70)
    slots = held(cache, 2)
    assert len(slots) == len(set(slots)) == pages(21, page_size) == cache.slots_in_use
    assert cache.allocator.available_size() == cache.capacity - cache.slots_in_use
    assert cache.is_warm(2)
    assert cache.dropped(2) == 50
    # Pages are the unit of attention kernels: a page's slots follow each other.
    starts = slots[::page_size]
    assert slots == [start + index for start in starts for index in range(page_size)]
    assert all(start % page_size == 0 for start in starts)


@pytest.mark.parametrize("dropped", [0, 1, 49])
def test_draft_lengths_follow_the_targets_at_a_constant_distance(dropped: int) -> None:
    cache, _ = make()
    # 60 prompt tokens, and the newest token that the target has not processed yet.
    assert cache.admit(1, draft_length=61 - dropped, target_length=60)
    assert cache.dropped(1) == dropped
    assert lengths_of(cache, [1, 1], [60, 75]) == [61 - dropped, 76 - dropped]


def test_cold_rows_have_length_one_beside_warm_ones_in_any_order() -> None:
    cache, _ = make()
    assert cache.admit(3, draft_length=11, target_length=40)
    assert cache.admit(1, draft_length=31, target_length=30)
    assert lengths_of(cache, [2, 3, 0, 1], [50, 41, 60, 33]) == [1, 12, 1, 34]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_reserving_grows_rows_to_what_the_target_allocated_and_keeps_their_slots(
    page_size: int,
) -> None:
    cache, _ = make(page_size=page_size)
    assert cache.admit(1, draft_length=10, target_length=40)
    before = held(cache, 1)[:10]
    assert cache.reserve([1], [56]) == []
    assert held(cache, 1)[:10] == before
    assert len(held(cache, 1)) == pages(56 + 1 - 31, page_size) == cache.slots_in_use
    # Asking for less than it has changes nothing.
    in_use = cache.slots_in_use
    assert cache.reserve([1], [41]) == []
    assert cache.slots_in_use == in_use


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_row_grows_for_some_rounds_at_once_while_there_is_plenty(page_size: int) -> None:
    cache, _ = make(slots=1024, page_size=page_size, width=600)
    assert cache.admit(1, draft_length=10, target_length=40)
    assert cache.reserve([1], [56]) == []
    ahead = cache.slots_in_use
    assert ahead == pages(pages(10, page_size) + GROWTH, page_size)
    for target_length in range(57, 30 + ahead):
        assert cache.reserve([1], [target_length]) == []
    assert cache.slots_in_use == ahead
    # Half of the pool is taken: now exactly what is asked for.
    assert cache.admit(2, draft_length=480, target_length=500)
    assert cache.reserve([1], [31 + ahead]) == []
    assert cache.slots_in_use == pages(ahead + 1, page_size) + pages(480, page_size)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_an_exhausted_pool_leaves_the_newcomer_cold_and_the_others_alone(page_size: int) -> None:
    cache, _ = make(slots=64, page_size=page_size)
    assert cache.admit(1, draft_length=40, target_length=80)
    first = held(cache, 1)
    assert not cache.admit(2, draft_length=40, target_length=80)
    assert not cache.is_warm(2)
    assert held(cache, 2) == []
    assert held(cache, 1) == first
    assert lengths_of(cache, [1, 2], [80, 80]) == [40, 1]
    cache.free(1)
    assert cache.admit(2, draft_length=40, target_length=80)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_row_that_cannot_grow_goes_cold_and_gives_all_its_slots_back(page_size: int) -> None:
    cache, _ = make(slots=64, page_size=page_size)
    assert cache.admit(1, draft_length=16, target_length=15)
    assert cache.admit(2, draft_length=32, target_length=31)
    assert cache.reserve([1, 2], [15, 80]) == [2]
    assert (cache.is_warm(1), cache.is_warm(2)) == (True, False)
    assert held(cache, 2) == []
    assert cache.slots_in_use == 16
    # It is reported once: a cold row needs nothing.
    assert cache.reserve([1, 2], [15, 90]) == []


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_row_longer_than_the_drafts_context_goes_cold(page_size: int) -> None:
    cache, _ = make(slots=256, page_size=page_size)
    assert not cache.admit(1, draft_length=WIDTH + 1, target_length=WIDTH)
    assert cache.admit(1, draft_length=WIDTH, target_length=WIDTH - 1)
    assert cache.reserve([1], [WIDTH]) == [1]
    assert cache.slots_in_use == 0


def test_a_row_is_readmitted_after_retraction_with_new_numbers() -> None:
    cache, _ = make()
    assert cache.admit(1, draft_length=30, target_length=60)
    assert cache.admit(1, draft_length=12, target_length=90)
    assert cache.slots_in_use == len(held(cache, 1)) == 12
    assert cache.dropped(1) == 79
    assert lengths_of(cache, [1], [90]) == [12]


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_the_targets_table_frees_and_clears_the_drafts_rows(page_size: int) -> None:
    cache, target = make(page_size=page_size)
    rows = target.alloc_rows(3)
    for row in rows:
        assert cache.admit(row, draft_length=20, target_length=50)
    target.free_rows(rows[:1])
    assert not cache.is_warm(rows[0])
    assert cache.slots_in_use == 2 * pages(20, page_size)
    # A row that never had a draft is freed the same way.
    cache.free(rows[0])
    target.reset_aux_cache_allocator()
    target.clear()
    assert cache.slots_in_use == 0
    cache.settle()
    assert cache.allocator.available_size() == cache.capacity
    assert (cache.offsets == COLD).all()
    assert not cache.req_to_token_pool.req_to_token.any()


def test_a_row_that_is_freed_while_a_step_is_queued_changes_nothing_until_the_next_one() -> None:
    cache, target = make()
    rows = target.alloc_rows(2)
    for row in rows:
        assert cache.admit(row, draft_length=20, target_length=50)
    slots = held(cache, rows[0])
    on_device = cache.lengths(torch.tensor(rows), torch.tensor([50, 50]))
    target.free_rows(rows[:1])
    # What the host plans is without it, and nothing counts its slots any more.
    assert not cache.is_warm(rows[0])
    assert cache.slots_in_use == 20
    # What was planned with it finds its length, its table and its slots to itself.
    assert torch.equal(cache.lengths(torch.tensor(rows), torch.tensor([50, 50])), on_device)
    assert held(cache, rows[0]) == slots
    assert cache.allocator.available_size() == cache.capacity - 40
    # The next thing that is planned comes after the device's part.
    assert cache.admit(rows[0], draft_length=5, target_length=9)
    assert lengths_of(cache, rows, [9, 50]) == [5, 20]
    assert len(held(cache, rows[0])) == 5
    assert cache.allocator.available_size() == cache.capacity - 25


def test_the_scheduler_still_counts_the_targets_capacity() -> None:
    cache, target = make(slots=64)
    assert target.schedulable_token_capacity(1000) == cache.dense_capacity == 1000
    target.alloc_aux_to_lengths(
        req_pool_indices_cpu=torch.tensor([1]), target_seq_lens_cpu=torch.tensor([500])
    )
    assert cache.slots_in_use == 0


def multimodal(delta: int) -> MultimodalInputs:
    inputs = MultimodalInputs(mm_items=[])
    inputs.mrope_position_delta = torch.tensor([[delta]])
    inputs.mrope_positions = torch.zeros((3, 4), dtype=torch.int64)
    return inputs


def batch_of(rows: list[int], target_lengths: list[int], **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(
        reqs=[SimpleNamespace(kv=SimpleNamespace(req_pool_idx=row)) for row in rows],
        req_pool_indices_cpu=torch.tensor(rows),
        req_pool_indices=torch.tensor(rows),
        seq_lens=torch.tensor(target_lengths),
        seq_lens_cpu=torch.tensor(target_lengths),
        seq_lens_sum=sum(target_lengths),
        out_cache_loc=torch.arange(len(rows)),
        **fields,
    )


def test_within_the_drafts_view_lengths_and_positions_are_the_drafts() -> None:
    cache, _ = make()
    assert cache.admit(2, draft_length=20, target_length=30, mrope_delta=-5)
    assert cache.admit(1, draft_length=11, target_length=40, mrope_delta=-7)
    assert cache.admit(3, draft_length=31, target_length=30)
    cache.free(2)
    batch = batch_of([3, 2, 1], [33, 20, 44], multimodal_inputs=[None, None, multimodal(-7)])
    before = dict(vars(batch))
    with cache.as_seen_by_draft(batch):
        assert batch.seq_lens.tolist() == batch.seq_lens_cpu.tolist() == [34, 1, 15]
        assert batch.seq_lens_sum == 50
        # A generated token's M-RoPE id is its index plus the delta; 30 indices are missing in the
        # third, none in the first, and the second has no draft.
        deltas = [shown.mrope_position_delta for shown in batch.multimodal_inputs]
        assert torch.cat(deltas).tolist() == [[0], [0], [23]]
        assert {delta.device for delta in deltas} == {cache.offsets.device}
        for shown in batch.multimodal_inputs:
            assert not shown.contains_image_inputs()
            assert not shown.contains_video_inputs()
            assert not shown.contains_audio_inputs()
        batch.out_cache_loc = torch.tensor([9])
    assert before["multimodal_inputs"][2].mrope_position_delta.tolist() == [[-7]]
    for name, value in before.items():
        assert getattr(batch, name) is value


def test_a_batch_without_videos_or_images_stays_one() -> None:
    cache, _ = make()
    assert cache.admit(1, draft_length=31, target_length=30)
    batch = batch_of([1], [33], multimodal_inputs=[None])
    with cache.as_seen_by_draft(batch):
        # SGLang then skips the deltas.
        assert batch.multimodal_inputs == [None]


def test_the_targets_view_returns_when_drafting_fails() -> None:
    cache, _ = make()
    batch = batch_of([1], [5], multimodal_inputs=None)
    batch.seq_lens_cpu, batch.seq_lens_sum = None, None
    before = dict(vars(batch))

    def fail() -> None:
        with cache.as_seen_by_draft(batch):
            assert batch.seq_lens.tolist() == [1]
            assert batch.seq_lens_cpu is None
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert {name: getattr(batch, name) for name in before} == before


class LivingRequests(RuleBasedStateMachine):
    """Requests that come, grow and go in any order, against a plain account of their lengths."""

    rows = st.integers(1, 6)

    @initialize(page_size=st.sampled_from(PAGE_SIZES), slots=st.sampled_from([48, 160, 480]))
    def start(self, page_size: int, slots: int) -> None:
        self.cache, self.target = make(slots=slots, page_size=page_size)
        self.page_size = page_size
        self.drawn = dict.fromkeys(range(1, 7), 0)
        """Slots that each warm row was given, at least its draft length."""
        self.target_length = dict.fromkeys(self.drawn, 0)

    @rule(row=rows, prompt=st.integers(1, 150), kept=st.floats(0, 1))
    def admit(self, row: int, prompt: int, kept: float) -> None:
        draft = 1 + round(kept * prompt)
        room = self.cache.allocator.available_size() + pages(self.drawn[row], self.page_size)
        fits = draft <= WIDTH and pages(draft, self.page_size) <= room
        assert self.cache.admit(row, draft_length=draft, target_length=prompt) == fits
        self.drawn[row] = draft if fits else 0
        self.target_length[row] = prompt

    @rule(row=rows, more=st.integers(0, 60))
    def reserve(self, row: int, more: int) -> None:
        if not self.drawn[row]:
            assert self.cache.reserve([row], [self.target_length[row] + more]) == []
            return
        wanted = self.target_length[row] + more + 1 - self.cache.dropped(row)
        grown = max(wanted, self.drawn[row])
        missing = pages(grown, self.page_size) - pages(self.drawn[row], self.page_size)
        free = self.cache.allocator.available_size()
        fits = wanted <= WIDTH and missing <= free
        gone = self.cache.reserve([row], [self.target_length[row] + more])
        assert gone == ([] if fits else [row])
        now, exact = len(held(self.cache, row)), pages(grown, self.page_size)
        if fits and now > exact:
            assert now == pages(self.drawn[row] + GROWTH, self.page_size)
            assert 2 * (free - GROWTH) > self.cache.capacity
        else:
            assert now == (exact if fits else 0)
        self.drawn[row] = now

    @rule(row=rows)
    def free(self, row: int) -> None:
        table = self.cache.req_to_token_pool.req_to_token
        planned = table.clone(), self.cache.offsets.clone(), self.cache.allocator.available_size()
        self.target.free_rows([row])
        self.drawn[row] = 0
        # A step that is queued still reads what it was planned with.
        assert torch.equal(table, planned[0])
        assert torch.equal(self.cache.offsets, planned[1])
        assert self.cache.allocator.available_size() == planned[2]

    @rule()
    @precondition(lambda self: any(self.drawn.values()))
    def flush(self) -> None:
        self.target.clear()
        self.drawn = dict.fromkeys(self.drawn, 0)

    @invariant()
    def no_slot_is_held_twice_or_lost(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        cache.settle()
        slots = list(chain.from_iterable(held(cache, row) for row in self.drawn))
        assert len(slots) == len(set(slots)) == cache.slots_in_use
        assert cache.slots_in_use == sum(
            pages(length, self.page_size) for length in self.drawn.values()
        )
        assert cache.allocator.available_size() == cache.capacity - cache.slots_in_use

    @invariant()
    def lengths_agree_on_host_and_device(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.settle()
        rows = list(self.drawn)
        found = lengths_of(self.cache, rows, [self.target_length[row] for row in rows])
        for row, length in zip(rows, found, strict=True):
            assert (
                self.cache.is_warm(row)
                == bool(self.drawn[row])
                == bool(self.cache.offsets[row] > COLD)
            )
            assert length <= max(1, self.drawn[row])


TestLivingRequests = LivingRequests.TestCase
TestLivingRequests.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
