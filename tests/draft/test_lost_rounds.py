"""Two ranks in SGLang's own scheduler, whose drafts fail in a round: on both of them, or on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.host.ranks import PARTED
from specvlm_sglang.tools.launch import specvlm_arguments
from tests.support import hf, one_process

pytestmark = pytest.mark.slow

PROMPT = list(range(40, 70))
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def expected(vl_target: Path) -> list[int]:
    return hf.greedy(vl_target, PROMPT, NEW_TOKENS, ignore_eos=True).output_ids


def served(target: Path, draft: Path | None, failing: dict[int, str]) -> list[dict[str, Any]]:
    line = ("--dtype", "float32", *specvlm_arguments(draft, steps=3), "--max-total-tokens", "4096")
    groups = [[PROMPT], [PROMPT]]
    return one_process.run(target, line, groups, new_tokens=NEW_TOKENS, ranks=2, failing=failing)


@pytest.mark.parametrize("method", ["_draft_tokens", "_extend"])
def test_what_fails_on_both_ranks_costs_the_draft(
    vl_target: Path, expected: list[int], method: str
) -> None:
    for rank in served(vl_target, vl_target, {0: method, 1: method}):
        first, second = (group[0] for group in rank["answers"])
        assert first["ids"] == second["ids"] == expected
        assert rank["went_cold"] == 1
        assert sum(first["histogram"][1:]) < sum(second["histogram"][1:])
        assert len(set(rank["free"])) == 1


def test_so_does_what_fails_where_the_target_drafts_for_itself(
    vl_target: Path, expected: list[int]
) -> None:
    for rank in served(vl_target, None, {0: "_draft_tokens", 1: "_draft_tokens"}):
        assert [group[0]["ids"] for group in rank["answers"]] == [expected, expected]
        assert rank["went_cold"] == 1


def test_a_rank_that_fails_alone_ends_with_a_sentence(vl_target: Path) -> None:
    with pytest.raises(RuntimeError) as raised:
        served(vl_target, vl_target, {1: "_draft_tokens"})
    assert PARTED in str(raised.value)
