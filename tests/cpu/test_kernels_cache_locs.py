"""KV slot gathering and small fills against SGLang's Triton kernels."""

from __future__ import annotations

import pytest
import torch

from specvlm_sglang.cpu.kernels import cache_locs, fill
from tests.support.triton_interpreter import interpreted

CACHE_LOCS = "sglang.kernels.ops.speculative.cache_locs"
EAGLE = "sglang.kernels.ops.speculative.eagle"
BATCHES = (1, 2, 7)
WIDTH = 211


class Rows:
    """A request table of distinct slots, rows in shuffled order, and a committed length each."""

    def __init__(self, batch: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.batch = batch
        rows = batch + 3
        self.table = self.permutation(rows * WIDTH).view(rows, WIDTH).to(torch.int32)
        self.indices = self.permutation(rows)[:batch]
        self.lengths = self.integers(0, 60).to(dtype)

    def permutation(self, n: int) -> torch.Tensor:
        return torch.randperm(n, generator=self.generator)

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape or (self.batch,), generator=self.generator)


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@pytest.mark.parametrize("batch", BATCHES)
def test_new_slots_enter_the_request_table_as_by_sglang(batch: int) -> None:
    rows = Rows(batch, seed=batch, dtype=torch.int32)
    ends = rows.lengths + rows.integers(0, 70).to(torch.int32)
    slots = rows.integers(0, 9999, int((ends - rows.lengths).sum()))
    ours, theirs = rows.table.clone(), rows.table.clone()
    cache_locs.assign_req_to_token_pool(rows.indices, ours, rows.lengths, ends, slots, batch)
    interpreted(
        "sglang.srt.mem_cache.allocation:assign_req_to_token_pool_func",
        rows.indices,
        theirs,
        rows.lengths,
        ends,
        slots,
        batch,
    )
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, rows.table)


@pytest.mark.parametrize("with_positions", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("topk", "columns"), [(1, 3), (1, 1), (4, 5), (3, 50)])
def test_draft_slots_and_positions_equal_sglangs(
    topk: int, columns: int, batch: int, with_positions: bool
) -> None:
    rows = Rows(batch, seed=columns)
    results = []
    for theirs in (False, True):
        slots = torch.full((batch * topk * columns,), -7)
        positions = torch.full((batch * topk,), -7) if with_positions else None
        mrope = torch.full((3, batch * topk), -7) if with_positions else None
        arguments = (rows.indices, rows.table, rows.lengths, slots, topk, columns)
        if theirs:
            name = f"{CACHE_LOCS}:assign_draft_cache_locs_contiguous_func"
            interpreted(name, *arguments, positions=positions, mrope=mrope)
        else:
            cache_locs.assign_draft_cache_locs_contiguous(*arguments, positions, mrope)
        results.append((slots, positions, mrope))
    for found, expected in zip(*results, strict=True):
        assert (found is None and expected is None) or torch.equal(found, expected)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("most", [1, 6, 40])
def test_slots_of_ragged_extends_are_packed_as_by_sglang(most: int, batch: int) -> None:
    rows = Rows(batch, seed=most)
    ends = rows.lengths + rows.integers(0, most + 1)
    found = cache_locs.assign_extend_cache_locs(
        req_pool_indices=rows.indices,
        req_to_token=rows.table,
        start_offset=rows.lengths,
        end_offset=ends,
        batch_size=batch,
        draft_token_num=most,
        device="cpu",
    )
    expected = torch.full((batch * most,), -7)
    interpreted(
        f"{CACHE_LOCS}:assign_extend_cache_locs",
        rows.indices,
        rows.table,
        rows.lengths,
        ends,
        expected,
        WIDTH,
        power_of_two(batch),
        grid=(batch,),
    )
    written = int((ends - rows.lengths).sum())
    assert found.shape == expected.shape
    assert found.dtype == torch.int64
    assert torch.equal(found[:written], expected[:written])


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tokens", [1, 6, 70])
def test_uniform_windows_with_every_optional_output_equal_sglangs(
    tokens: int, batch: int, page_size: int
) -> None:
    rows = Rows(batch, seed=tokens)
    rows.table[rows.indices[0], 61] = -1
    pages = rows.table.numel() // page_size
    # Some virtual pages have no physical one, the window's table is too short for all of them.
    full_v2p = rows.permutation(pages)
    full_v2p[::5] = -1
    tables = {"full_v2p": full_v2p, "swa_v2p": rows.permutation(pages // 2)}
    anchors = rows.integers(0, 99)
    results = []
    for theirs in (False, True):
        outputs = {
            "full_out": torch.full((batch * tokens,), -7),
            "swa_out": torch.full((batch * tokens,), -7),
            "positions_out": torch.full((batch, tokens), -7),
            "anchor_out": torch.full((batch, 3), -7),
        }
        if theirs:
            slots = torch.full((batch * tokens,), -7)
            interpreted(
                f"{CACHE_LOCS}:assign_extend_cache_locs_uniform",
                rows.indices,
                rows.table,
                rows.lengths,
                slots,
                WIDTH,
                tokens,
                grid=(batch,),
                PAGE_SIZE=page_size,
                num_v_pages=pages,
                num_swa_pages=pages // 2,
                anchor_src=anchors,
                anchor_stride=3,
                **tables,
                **outputs,
            )
        else:
            slots = cache_locs.assign_extend_cache_locs_uniform(
                rows.indices,
                rows.table,
                rows.lengths,
                batch,
                tokens,
                "cpu",
                page_size=page_size,
                anchor_src=anchors,
                **tables,
                **outputs,
            )
        results.append({"slots": slots, **outputs})
    for name, found in results[0].items():
        assert torch.equal(found, results[1][name]), name


def test_a_window_beyond_the_row_is_an_error_and_not_another_requests_slots() -> None:
    rows = Rows(2)
    start = torch.full((2,), WIDTH - 2)
    with pytest.raises(ValueError, match="broadcast"):
        cache_locs.assign_extend_cache_locs_uniform(rows.indices, rows.table, start, 2, 4, "cpu")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("batch", [1, 7, 300])
def test_the_last_cached_slot_equals_sglangs(batch: int, dtype: torch.dtype) -> None:
    rows = Rows(batch, seed=batch, dtype=dtype)
    rows.lengths[0] = 0
    found = cache_locs.get_last_loc(rows.table, rows.indices, rows.lengths)
    expected = interpreted(
        "sglang.kernels.ops.memory.common:get_last_loc_triton",
        rows.table,
        rows.indices,
        rows.lengths,
    )
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert found[0] == -1


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("stride", [2, 6])
def test_bonus_tokens_equal_sglangs(stride: int, batch: int) -> None:
    rows = Rows(batch, seed=stride)
    tokens = rows.integers(0, 999, batch, stride).to(torch.int32)
    lengths = rows.integers(1, stride + 1).to(torch.int32)
    ours, theirs = torch.zeros(2, batch, dtype=torch.int32)
    fill.fill_bonus_tokens(tokens, lengths, ours, stride, batch)
    interpreted(f"{EAGLE}:fill_bonus_tokens_func", tokens, lengths, theirs, stride, batch)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("batch", BATCHES)
def test_slots_of_accepted_nodes_are_packed_as_by_sglang(batch: int) -> None:
    rows = Rows(batch, seed=batch)
    nodes, depth = 16, 6
    accepted = rows.integers(0, batch * nodes, batch, depth).to(torch.int32)
    accepted[torch.arange(depth) >= rows.integers(1, depth + 1).view(-1, 1)] = -1
    slots = rows.integers(0, 9999, batch * nodes)
    ours, theirs = torch.zeros(2, batch * depth, dtype=torch.int64)
    fill.fill_accept_out_cache_loc(accepted, slots, ours, batch * depth)
    name = f"{EAGLE}:fill_accept_out_cache_loc_func"
    interpreted(name, accepted, slots, theirs, batch * depth)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("batch", BATCHES)
def test_fronts_of_windows_are_packed_as_by_sglang(batch: int) -> None:
    rows = Rows(batch, seed=batch)
    counts, slots = rows.integers(0, 17), rows.integers(0, 9999, batch * 16)
    ours, theirs = torch.full((2, batch * 16), -7)
    fill.fill_front_out_cache_loc(counts, slots, ours)
    interpreted(f"{CACHE_LOCS}:fill_front_out_cache_loc_func", counts, slots, theirs)
    assert torch.equal(ours, theirs)
