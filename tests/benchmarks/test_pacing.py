"""The benchmark of the adaptive server: simulated costs, traces, and the table."""

from __future__ import annotations

from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.pacing.__main__ import table
from benchmarks.pacing.injected import VARIABLE, Costs, PassCost, install
from benchmarks.pacing.run import Load, mixed, useless
from specvlm_sglang.tools import demo

COSTS = Costs(PassCost(40.0, 0.5, 32), PassCost(3.0, 0.25))


def test_rows_below_the_free_ones_cost_as_many_as_these() -> None:
    assert COSTS.target.of(1) == COSTS.target.of(32) == pytest.approx(0.056)
    assert COSTS.target.of(64) == pytest.approx(0.072)
    assert COSTS.draft.of(4) == pytest.approx(0.004)


def test_costs_reach_the_server_as_they_are(tmp_path: Path) -> None:
    environment = install(tmp_path, COSTS)
    assert Costs.parse(environment[VARIABLE]) == COSTS
    (plugin,) = Distribution.discover(name="specvlm-benchmark-costs", path=[str(tmp_path)])
    (entry,) = plugin.entry_points
    assert (entry.group, entry.load().__name__) == ("sglang.srt.plugins", "register")


@pytest.mark.parametrize("text", ["", "40,0.4,32", "40,0.4;3,0.05", "a,b,c;3,0.05,32"])
def test_costs_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be FIXED,PER_ROW,FREE_ROWS"):
        Costs.parse(text)


def test_a_trace_has_every_load_as_often_in_an_order_of_its_seed() -> None:
    loads = [Load(1, 4), Load(8, 64), Load(32, 16)]
    trace = mixed(loads, 3, seed=0)
    assert {load: trace.count(load) for load in loads} == dict.fromkeys(loads, 3)
    assert trace == mixed(loads, 3, seed=0) != mixed(loads, 3, seed=1)


def test_a_useless_draft_has_the_same_numbers_elsewhere(tmp_path: Path) -> None:
    made = load_file(useless(demo.draft_path(), tmp_path / "draft") / "model.safetensors")
    for name, weight in load_file(demo.draft_path() / "model.safetensors").items():
        assert torch.equal(made[name].flatten().sort().values, weight.flatten().sort().values)
        assert torch.equal(made[name], weight) == (weight.ndim == 1 or weight.unique().numel() == 1)


def test_the_table_sets_the_adaptive_server_against_the_best_of_the_others() -> None:
    seconds = {"plain": [4.0, 6.0], "3 steps": [2.0, 3.0], "adaptive": [2.4, 2.6]}
    rows: list[dict[str, Any]] = [
        {
            "at_once": 4,
            "tokens": 64,
            "round": index,
            "server": name,
            "seconds": found,
            "latency": found / (2 + index),
        }
        for name, times in seconds.items()
        for index, found in enumerate(times)
    ]
    for row in rows:
        if row["server"] == "adaptive":
            row["pace"] = {"steps": 3 + row["round"]}
    mix = {"plain": 10.0, "3 steps": 12.0, "adaptive": 8.0}
    *_, load, mixed_row = table({"measured": rows, "mixed_seconds": mix}).splitlines()
    # Rounds are paired: 4.0 / 2.4 and 6.0 / 2.6 of plain, 2.0 / 2.4 and 3.0 / 2.6 of the best.
    assert load == "| 4 | 64 | 2.00x | 1.96x | 0.98x [0.12, 7.75] | 0.98x [0.12, 7.75] | 3, 4 |"
    assert mixed_row == "| mixed | mixed | 0.83x | 1.25x | 1.25 | | |"
