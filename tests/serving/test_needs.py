"""What `specvlm doctor` says that a pair needs, beside what a real server reports.

Of KV caches, whose size a server knows. Of weights a CPU server reports by how much the machine's
free memory fell while they were loaded, with all that other programs did meanwhile; they are
compared with the tensors of the files (`tests/tools/test_doctor.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.launch import specvlm_arguments
from specvlm_sglang.tools.needs import model_needs
from tests.support import checkpoints
from tests.support.checkpoints import LanguageShape
from tests.support.qwen_vl_checkpoints import QWEN3_DRAFT_VISION, qwen3_vl
from tests.support.server import Server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

GIB = 1 << 30
TOLERANCE = 0.05
LARGE = LanguageShape(512, 8, 8, 4, 3072, vocab_padding=65536 - 462)
NARROW = LanguageShape(256, 6, 4, 2, 512, vocab_padding=65536 - 462)
ALLOCATION = re.compile(
    r"KV Cache is allocated.* #tokens: (\d+), K size: ([\d.]+) GB, V size: ([\d.]+)"
)


def shipped(folder: Path) -> tuple[Path, Path]:
    return demo.target_path(), demo.draft_path()


def random_qwen2_5(folder: Path) -> tuple[Path, Path]:
    make = checkpoints.qwen2_5_vl
    target = make(folder / "target", LARGE, dtype=torch.bfloat16)
    draft = make(folder / "draft", NARROW, checkpoints.DRAFT_VISION, seed=1, dtype=torch.bfloat16)
    return target, draft


def random_qwen3(folder: Path) -> tuple[Path, Path]:
    draft_shape = replace(NARROW, layers=4)
    return (
        qwen3_vl(folder / "target", LARGE),
        qwen3_vl(folder / "draft", draft_shape, QWEN3_DRAFT_VISION, seed=1),
    )


@pytest.mark.parametrize("pair", [shipped, random_qwen2_5, random_qwen3])
def test_kv_caches_take_what_is_said(
    pair: Callable[[Path], tuple[Path, Path]], tmp_path: Path
) -> None:
    target, draft = pair(tmp_path)
    needs = [model_needs(str(path), "bfloat16") for path in (target, draft)]
    # Large enough for two decimals of a GiB to say it within the tolerance.
    tokens = -(-GIB // needs[0].kv_bytes_per_token)
    slots = -(-GIB // 2 // needs[1].kv_bytes_per_token)
    arguments = (
        *specvlm_arguments(draft),
        *("--dtype", "bfloat16", "--max-total-tokens", str(tokens)),
        *("--specvlm-draft-kv-tokens", str(min(slots, tokens))),
    )
    with Server(target, *arguments, log=tmp_path / "server.log") as server:
        state: dict[str, Any] = server.server_info()["internal_states"][0]
        log = server.log_text()
    usage = state["memory_usage"]
    said = usage["token_capacity"] * needs[0].kv_bytes_per_token
    assert said / GIB == pytest.approx(usage["kvcache"], rel=TOLERANCE)
    pools = {int(found[0]): float(found[1]) + float(found[2]) for found in ALLOCATION.findall(log)}
    held = state["specvlm"]["draft_kv_tokens"]
    drafts = [size for count, size in pools.items() if abs(count - held) <= 2]
    assert drafts == [pytest.approx(held * needs[1].kv_bytes_per_token / GIB, rel=TOLERANCE)]
