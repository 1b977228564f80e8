"""The columns that a target reads while it drafts for itself, beside plain lists of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sglang.srt.managers.schedule_batch import MultimodalInputs
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

from specvlm_sglang.draft.kept_columns import KeptColumns
from specvlm_sglang.draft.lengths import COLD

ROWS, WIDTH = 5, 48
STEPS = 3


def make() -> tuple[KeptColumns, ReqToTokenPool]:
    """The table of kept columns, attached to a target's."""
    target = ReqToTokenPool(ROWS, WIDTH, "cpu", enable_memory_saver=False)
    kept = KeptColumns(target, target_capacity=1000)
    target.attach_aux_cache(kept)
    return kept, target


def batch_of(lengths: dict[int, int], *, allocated: dict[int, int]) -> Any:
    """A decoding batch of rows with these target lengths."""
    rows = list(lengths)
    return SimpleNamespace(
        reqs=[SimpleNamespace(kv=SimpleNamespace(kv_allocated_len=allocated[row])) for row in rows],
        req_pool_indices=torch.tensor(rows),
        req_pool_indices_cpu=torch.tensor(rows),
        seq_lens=torch.tensor([lengths[row] for row in rows]),
        seq_lens_cpu=torch.tensor([lengths[row] for row in rows]),
        seq_lens_sum=sum(lengths.values()),
        out_cache_loc=None,
        multimodal_inputs=[MultimodalInputs([]) for _ in rows],
    )


class Rounds(RuleBasedStateMachine):
    """Requests begin, verify and end; what each draft reads is a list that anybody can follow."""

    @initialize()
    def start(self) -> None:
        self.kept, self.target = make()
        self.next_slot = 1
        self.lengths: dict[int, int] = {}
        self.columns: dict[int, list[int]] = {}
        self.deltas: dict[int, int] = {}

    def _slots(self, count: int) -> torch.Tensor:
        slots = torch.arange(self.next_slot, self.next_slot + count, dtype=torch.int32)
        self.next_slot += count
        return slots

    @precondition(lambda self: len(self.lengths) < ROWS)
    @rule(data=st.data(), filled=st.integers(1, 20), delta=st.integers(-9, 0))
    def prefill(self, data: Any, filled: int, delta: int) -> None:
        row = data.draw(st.sampled_from(sorted(set(range(1, ROWS + 1)) - set(self.lengths))))
        kept = data.draw(st.sets(st.integers(0, filled - 1), min_size=1))
        self.target.req_to_token[row] = self._slots(WIDTH)
        self.lengths[row] = filled
        if data.draw(st.booleans()):
            self.kept.begin(row, torch.tensor(sorted(kept)), filled, delta)
            self.columns[row] = [*sorted(kept), *range(filled, WIDTH)]
            self.deltas[row] = delta

    @precondition(lambda self: self.lengths)
    @rule(data=st.data(), accepted=st.integers(1, STEPS + 1))
    def verify(self, data: Any, accepted: int) -> None:
        row = data.draw(st.sampled_from(sorted(self.lengths)))
        if self.lengths[row] + 2 * (STEPS + 1) < WIDTH:
            self.lengths[row] += accepted

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def other_slots_for_the_prompt(self, data: Any) -> None:
        """The radix cache has the same prompt, and SGLang lets the row read that one."""
        row = data.draw(st.sampled_from(sorted(self.lengths)))
        count = data.draw(st.integers(1, self.lengths[row]))
        self.target.req_to_token[row, :count] = self._slots(count)

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def end(self, data: Any) -> None:
        row = data.draw(st.sampled_from(sorted(self.lengths)))
        self.target.free_rows([row])
        for held in (self.lengths, self.columns, self.deltas):
            held.pop(row, None)

    @rule()
    def flush(self) -> None:
        self.target.clear()
        for held in (self.lengths, self.columns, self.deltas):
            held.clear()

    @invariant()
    def the_table_is_what_a_list_says(self) -> None:
        if not self.lengths:
            return
        allocated = {row: length + STEPS + 1 for row, length in self.lengths.items()}
        batch = batch_of(self.lengths, allocated=allocated)
        self.kept.follow(batch)
        with self.kept.as_seen_by_draft(batch):
            lengths = batch.seq_lens.tolist()
            assert lengths == batch.seq_lens_cpu.tolist()
            assert batch.seq_lens_sum == sum(lengths)
            deltas = [int(shown.mrope_position_delta) for shown in batch.multimodal_inputs]
        assert batch.seq_lens.tolist() == list(self.lengths.values())
        table, source = self.kept.req_to_token_pool.req_to_token, self.target.req_to_token
        for row, length, delta in zip(self.lengths, lengths, deltas, strict=True):
            shown = table[row, : length + STEPS + 1].tolist()
            assert self.kept.is_warm(row) == (row in self.columns)
            if row not in self.columns:
                assert (length, delta) == (1, 0)
                assert not any(table[row].tolist())
                continue
            columns = self.columns[row][: length + STEPS + 1]
            assert shown == source[row][columns].tolist()
            # The last of them are where verification writes, token by token.
            window = range(self.lengths[row], self.lengths[row] + STEPS + 1)
            assert columns[length:] == list(window)
            # A drafted token has the position that it has in the target.
            assert length + delta == self.lengths[row] + self.deltas[row]
            assert length + self.kept.missing(torch.tensor([row])).item() == self.lengths[row]


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=60, stateful_step_count=25)


def test_the_targets_own_table_is_left_alone() -> None:
    kept, target = make()
    target.req_to_token[1] = torch.arange(1, WIDTH + 1, dtype=torch.int32)
    before = target.req_to_token.clone()
    kept.begin(1, torch.tensor([0, 5]), 9, 0)
    kept.follow(batch_of({1: 9}, allocated={1: 20}))
    assert torch.equal(target.req_to_token, before)
    assert kept.req_to_token_pool.req_to_token[1, :4].tolist() == [1, 6, 10, 11]


def test_a_draft_that_would_read_nothing_is_refused_and_the_row_stays_cold() -> None:
    kept, _ = make()
    with pytest.raises(ValueError, match="none of the prompt's tokens"):
        kept.begin(1, torch.empty(0, dtype=torch.int64), 9, 0)
    assert not kept.is_warm(1)
    assert int(kept.offsets[1]) == COLD


def test_a_freed_row_writes_to_the_dummy_slot_from_the_next_round_on() -> None:
    kept, target = make()
    target.req_to_token[2] = 7
    kept.begin(2, torch.tensor([0]), 1, 0)
    batch = batch_of({2: 1}, allocated={2: 8})
    kept.follow(batch)
    assert kept.req_to_token_pool.req_to_token[2, :8].tolist() == [7] * 8
    kept.free(2)
    # What is queued reads the row as it was planned.
    assert kept.req_to_token_pool.req_to_token[2, :8].tolist() == [7] * 8
    kept.follow(batch)
    assert not kept.req_to_token_pool.req_to_token[2].any()
