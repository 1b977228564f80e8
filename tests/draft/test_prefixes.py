"""Beginnings of draft prompts that stay in the draft's KV cache for further questions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specvlm_sglang.draft.inputs import DraftPrompt
from specvlm_sglang.draft.prefixes import CACHED_SHARE, PrefixKey, key_of
from specvlm_sglang.policies import Policy
from specvlm_sglang.pruning.registry import find_policy
from tests.draft.test_kv_cache import PAGE_SIZES, held, make, pages

DIM = 3
CLIP = PrefixKey(b"clip")


def prompt_of(tokens: int, *, deepstack: bool = False) -> DraftPrompt:
    """A draft prompt whose token ``i`` is told by ``i`` everywhere."""
    numbers = torch.arange(tokens)
    return DraftPrompt(
        numbers[:, None].float().expand(-1, DIM).contiguous(),
        numbers,
        numbers.expand(3, -1) + 100,
        None,
        numbers[:, None].float() if deepstack else None,
    )


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_a_second_row_begins_with_the_first_ones_slots_and_prefills_the_rest(
    page_size: int,
) -> None:
    cache, target = make(page_size=page_size)
    prompt, shared = prompt_of(45), 39
    assert cache.admit(1, draft_length=45, target_length=300)
    first = held(cache, 1)
    cache.share(1, CLIP, prompt, shared, filled=290)
    prefix = cache.prefixes.get(CLIP)
    assert prefix is not None
    whole = shared // page_size * page_size
    assert prefix.slots.tolist() == first[:whole]
    assert cache.slots_in_use == pages(45, page_size)

    assert cache.admit(2, draft_length=50, target_length=310, prefix=prefix)
    second = held(cache, 2)
    assert second[:whole] == first[:whole]
    assert not set(second[whole:]) & set(first)
    # Shared slots are held once.
    assert cache.slots_in_use == pages(45, page_size) + pages(50, page_size) - whole
    rest = prompt_of(50).part(shared, 50).after(prefix.tail, prefix.held)
    assert (rest.first, rest.stop) == (whole, 50)
    assert rest.input_ids.tolist() == list(range(whole, 50))
    assert rest.embeddings[:, 0].tolist() == list(range(whole, 50))

    target.free_rows([1])
    target.free_rows([2])
    cache.settle()
    assert cache.slots_in_use == 0
    assert cache.prefixes.unused == whole
    assert cache.allocator.available_size() == cache.capacity - whole
    # Another prompt needs the room more.
    assert cache.admit(3, draft_length=96, target_length=96)
    assert cache.admit(4, draft_length=cache.capacity - 96, target_length=200)
    assert cache.prefixes.get(CLIP) is None
    target.clear()
    cache.settle()
    assert cache.allocator.available_size() == cache.capacity


def test_a_tail_without_deepstack_features_goes_before_a_prompt_that_has_some() -> None:
    one, other = prompt_of(4, deepstack=True), prompt_of(3)
    for tail, rest in ((one, other), (one, one)):
        joined = rest.after(tail, 16)
        assert joined.deepstack is not None
        assert joined.deepstack.shape == (joined.tokens, 1)
        assert joined.mrope_positions is not None
        assert joined.mrope_positions.shape == (3, joined.tokens)


def test_a_prefix_that_is_read_outlives_a_flush_until_its_last_row_has_gone() -> None:
    cache, target = make()
    cache.admit(1, draft_length=20, target_length=20)
    cache.share(1, CLIP, prompt_of(20), 16, filled=16)
    prefix = cache.prefixes.get(CLIP)
    assert prefix is not None
    assert cache.prefixes.clear() == []
    assert cache.prefixes.get(CLIP) is None
    assert cache.slots_in_use == 20
    target.free_rows([1])
    cache.settle()
    assert cache.allocator.available_size() == cache.capacity


def test_the_least_recently_used_goes_first_and_the_bound_holds() -> None:
    cache, target = make(slots=128)
    for row, key in enumerate(map(PrefixKey, (b"a", b"b", b"c")), 1):
        cache.admit(row, draft_length=30, target_length=30)
        cache.share(row, key, prompt_of(30), 24, filled=24)
    # All are being read: nothing can go yet.
    assert cache.prefixes.held == 72 > CACHED_SHARE * cache.capacity
    cache.prefixes.get(PrefixKey(b"a"))
    for row in (1, 2, 3):
        target.free_rows([row])
    cache.admit(4, draft_length=30, target_length=30)
    cache.share(4, PrefixKey(b"d"), prompt_of(30), 24, filled=24)
    known = [key for key in (b"a", b"b", b"c", b"d") if cache.prefixes.knows(PrefixKey(key))]
    assert known == [b"a", b"d"]
    cache.admit(5, draft_length=90, target_length=90)
    cache.share(5, PrefixKey(b"long"), prompt_of(90), 80, filled=80)
    assert not cache.prefixes.knows(PrefixKey(b"long"))


def test_nothing_is_forgotten_for_a_prompt_that_would_not_fit_all_the_same() -> None:
    cache, target = make(slots=64)
    cache.admit(1, draft_length=20, target_length=20)
    cache.share(1, CLIP, prompt_of(20), 16, filled=16)
    target.free_rows([1])
    assert not cache.admit(2, draft_length=80, target_length=80)
    assert cache.prefixes.knows(CLIP)
    assert cache.admit(2, draft_length=60, target_length=60)
    assert not cache.prefixes.knows(CLIP)


class SharedVideos(RuleBasedStateMachine):
    """Requests about two videos that come and go while slots are scarce."""

    rows = st.integers(1, 6)

    @initialize(page_size=st.sampled_from(PAGE_SIZES), slots=st.sampled_from([64, 160]))
    def start(self, page_size: int, slots: int) -> None:
        self.cache, self.target = make(slots=slots, page_size=page_size)
        self.page_size = page_size

    @rule(row=rows, video=st.sampled_from([(b"a", 21), (b"b", 33)]), question=st.integers(1, 20))
    def ask(self, row: int, video: tuple[bytes, int], question: int) -> None:
        key, shared = PrefixKey(video[0]), video[1]
        prefix = self.cache.prefixes.get(key)
        length = shared + question
        if not self.cache.admit(row, draft_length=length, target_length=99, prefix=prefix):
            assert not self.cache.is_warm(row)
            return
        if prefix is None:
            self.cache.share(row, key, prompt_of(length), shared, filled=shared)
        else:
            assert held(self.cache, row)[: prefix.held] == prefix.slots.tolist()
        assert len(held(self.cache, row)) == pages(length, self.page_size)

    @rule(row=rows, more=st.integers(0, 40))
    def grow(self, row: int, more: int) -> None:
        self.cache.reserve([row], [99 + more])

    @rule(row=rows)
    def end(self, row: int) -> None:
        self.target.free_rows([row])

    @rule()
    @precondition(lambda self: self.cache.slots_in_use)
    def flush(self) -> None:
        self.target.clear()

    @invariant()
    def no_slot_is_lost_or_written_by_two(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        cache.settle()
        prefixes = list(cache.prefixes._known.values())
        shared = [slot for prefix in prefixes for slot in prefix.slots.tolist()]
        assert len(shared) == len(set(shared))
        own = [s for row in range(1, 7) for s in held(cache, row) if s not in set(shared)]
        assert len(own) == len(set(own))
        available = cache.allocator.available_size()
        assert available == cache.capacity - cache.slots_in_use - cache.prefixes.unused
        assert len(own) + len(shared) == cache.capacity - available
        for prefix in prefixes:
            readers = sum(one is prefix for one in cache._readers.values())
            assert prefix.users == readers


TestSharedVideos = SharedVideos.TestCase
TestSharedVideos.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def request(**changes: Any) -> tuple[Any, Any]:
    """A prompt of 3 tokens, 8 of a video and 4 of a question, under ``floc``."""
    chosen = {
        "ids": [1, 2, 3, *[77] * 8, 4, 5, 6, 7],
        "policy": "floc",
        "kept": 2,
        "retention": 0.25,
        "hash": 123456789,
        "seconds": 1,
        "detail": False,
        "pixels": torch.zeros(5, 5),
        **changes,
    }
    policy: Policy = find_policy(chosen["policy"])
    item = SimpleNamespace(
        hash=chosen["hash"], modality="VIDEO", offsets=[(3, 10)], feature=chosen["pixels"]
    )
    positions = torch.arange(15).expand(3, -1) * chosen["seconds"]
    req = SimpleNamespace(
        origin_input_ids=chosen["ids"],
        output_ids=[],
        multimodal_inputs=SimpleNamespace(mm_items=[item], mrope_positions=positions),
    )
    options = SimpleNamespace(
        policy=chosen["policy"],
        chosen=policy,
        top_p=0.2,
        retention=chosen["retention"],
        draft_video_tokens=None,
        detail=chosen["detail"],
    )
    layout = SimpleNamespace(video_positions=torch.arange(3, 11).numpy())
    kept = chosen["kept"]
    return req, SimpleNamespace(
        options=options, layout=layout, kept_video_tokens=kept, prunes=kept < 8
    )


def digest_of(**changes: Any) -> bytes | None:
    key = key_of(*request(**changes))
    return None if key is None else key.digest


def test_prompts_that_differ_after_the_video_share_and_no_others() -> None:
    digest = digest_of()
    assert digest is not None
    assert digest == digest_of(ids=[1, 2, 3, *[77] * 8, 9])
    for change in (
        {"ids": [1, 2, 9, *[77] * 8, 4]},
        {"hash": 987654321},
        {"kept": 3},
        {"retention": 0.3},
        {"policy": "change"},
        {"policy": "uniform"},
        {"seconds": 2},
        {"kept": 8},
    ):
        assert digest_of(**change) not in (digest, None), change


def test_a_hash_that_two_videos_share_is_not_trusted() -> None:
    cache, _ = make()
    key, other = key_of(*request()), key_of(*request(pixels=torch.ones(5, 5)))
    gone = key_of(*request(pixels=None))
    assert key is not None
    assert other is not None
    assert key.digest == other.digest
    cache.admit(1, draft_length=20, target_length=20)
    cache.share(1, key, prompt_of(20), 16, filled=16)
    assert cache.prefixes.get(other) is None
    # Pixels that SGLang has dropped can be no other's.
    assert cache.prefixes.get(gone) is cache.prefixes.get(key) is not None
    cache.admit(2, draft_length=20, target_length=20)
    cache.share(2, other, prompt_of(20), 16, filled=16)
    assert cache.prefixes.held == 16


@pytest.mark.parametrize(
    "change", [{"policy": "specvlm"}, {"detail": True}, {"hash": None}, {"policy": "scope"}]
)
def test_what_the_question_decides_or_nobody_can_tell_apart_is_not_shared(
    change: dict[str, Any],
) -> None:
    assert key_of(*request(**change)) is None


def test_a_whole_video_is_shared_whatever_the_policy() -> None:
    assert digest_of(kept=8) == digest_of(kept=8, policy="specvlm") is not None
