"""The twins in SGLang's places."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

from specvlm_sglang.cpu import kernels
from specvlm_sglang.cpu.kernels.install import _on_cpu

NONE_BY_NATURE = [
    "tree_speculative_sampling_target_only",
    "top_k_renorm_prob",
    "top_p_renorm_prob",
]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    # Holds most of the symbols by `from module import name`, as in a running server.
    importlib.import_module("sglang.srt.speculative.eagle_worker_common")
    kernels.install()


def held(module: str, attribute: str) -> object:
    found: object = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


def test_a_second_installation_changes_nothing() -> None:
    before = [held(twin.module, twin.attribute) for twin in kernels.TWINS]
    kernels.install()
    assert [held(twin.module, twin.attribute) for twin in kernels.TWINS] == before


@pytest.mark.parametrize("name", NONE_BY_NATURE)
def test_a_kernel_that_sglang_lacks_here_is_provided_where_it_was_imported_to(name: str) -> None:
    (twin,) = (twin for twin in kernels.TWINS if twin.attribute == name)
    eagle_utils = importlib.import_module("sglang.srt.speculative.eagle_utils")
    assert getattr(eagle_utils, name) is twin.function


def test_modules_that_hold_a_replaced_function_hold_the_replacement() -> None:
    common = importlib.import_module("sglang.srt.speculative.eagle_worker_common")
    spec_utils = importlib.import_module("sglang.srt.speculative.spec_utils")
    source = "sglang.kernels.ops.speculative"
    for module, name, defined_in in (
        (common, "fill_bonus_tokens_func", f"{source}.eagle"),
        (common, "assign_draft_cache_locs_contiguous_func", f"{source}.cache_locs"),
        (spec_utils, "fill_accept_out_cache_loc_func", f"{source}.eagle"),
        (spec_utils, "assign_req_to_token_pool_func", "sglang.srt.mem_cache.allocation"),
    ):
        assert getattr(module, name) is held(defined_in, name)
        assert hasattr(getattr(module, name), "__wrapped__")


def test_only_what_lives_on_the_cpu_takes_the_twin() -> None:
    dispatch = _on_cpu(lambda *args, **kwargs: "sglang", ours=lambda *args, **kwargs: "twin")
    assert dispatch(3, torch.zeros(1)) == "twin"
    assert dispatch(tensor=torch.zeros(1)) == "twin"
    assert dispatch(torch.zeros(1, device="meta")) == "sglang"
    assert dispatch(3) == "sglang"


def test_sglangs_own_calls_run_without_a_gpu() -> None:
    eagle = importlib.import_module("sglang.srt.speculative.eagle_utils")
    coins, last = eagle._seeded_verify_coins(
        sampling_seed=torch.tensor([1, 2]),
        seq_lens=torch.tensor([5, 6]),
        draft_token_num=4,
        device="cpu",
    )
    assert coins.shape == (2, 4)
    assert last.shape == (2,)
    assert ((coins >= 0) & (coins < 1)).all()
    mask, positions, index, child, sibling, tokens = eagle.build_tree_kernel_efficient(
        torch.tensor([7]),
        torch.tensor([[-1, 0, 1]]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([[8, 9, 10]]),
        torch.tensor([2]),
        2,
        2,
        2,
        4,
    )
    assert tokens.tolist() == [7, 8, 9, 10]
    assert positions.tolist() == [2, 3, 3, 4]
    assert index.tolist() == [[0, 1, 2, 3]]
    assert child.tolist() == [[1, 3, -1, -1]]
    assert sibling.tolist() == [[-1, 2, -1, -1]]
    rows = mask.view(4, 6).int().tolist()
    assert rows == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 1, 0, 1],
    ]


def test_a_kv_pool_in_host_memory_moves_rows_of_all_layers() -> None:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    pool = MHATokenToKVPool(
        size=32,
        page_size=1,
        dtype=torch.float32,
        head_num=2,
        head_dim=8,
        layer_num=3,
        device="cpu",
        enable_memory_saver=False,
        enable_kv_cache_copy=True,
    )
    for buffer in (*pool.k_buffer, *pool.v_buffer):
        buffer.copy_(torch.randn_like(buffer))
    before = [buffer.clone() for buffer in (*pool.k_buffer, *pool.v_buffer)]
    # A row that is read after it was written over in slot order: the move must read first.
    targets, sources = torch.tensor([4, 5, 0, 0]), torch.tensor([5, 9, 0, 0])
    pool.move_kv_cache(targets, sources)
    for after, old in zip((*pool.k_buffer, *pool.v_buffer), before, strict=True):
        expected = old.clone()
        expected[targets] = old[sources]
        assert torch.equal(after, expected)


def test_importing_the_kernels_does_not_import_sglang() -> None:
    code = "import sys, specvlm_sglang.cpu.kernels; print('sglang' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
