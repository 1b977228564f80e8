"""The page's own selection against the reference, run by node or skipped where there is none."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from reference.selection import POLICIES, select_in_stages
from specvlm_sglang.tools.visualize.page import computed_policies

GRIDS = [(1, 1, 1), (1, 3, 5), (4, 2, 2), (3, 7, 4), (8, 4, 4), (5, 1, 9), (2, 9, 16)]
RETENTIONS = (0.01, 0.05, 0.1, 0.33, 0.5, 0.9, 1.0)


def cases() -> list[dict[str, Any]]:
    rng = np.random.default_rng(11)
    made = []
    for grid in GRIDS:
        n = int(np.prod(grid))
        kinds = {
            "peaked": rng.random(n) ** 6,
            "tied": rng.integers(0, 3, n) / 4,
            "zero": np.zeros(n),
        }
        for scores in kinds.values():
            rounded = [float(f"{score:.6g}") for score in scores]
            for policy in computed_policies():
                for retention in RETENTIONS:
                    for top_p in (0.0, 0.4, 1.0) if policy.startswith("specvlm") else (0.4,):
                        made.append(
                            {
                                "scores": rounded,
                                "retention": retention,
                                "topP": top_p,
                                "policy": policy,
                                "grid": grid,
                                "permutation": np.random.default_rng(0).permutation(n).tolist(),
                            }
                        )
    return made


def test_what_the_page_computes_has_an_oracle() -> None:
    assert set(computed_policies()) <= set(POLICIES)


def test_the_page_selects_the_reference_s_tokens_stage_by_stage() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine to run the page's script with")
    script = files("specvlm_sglang.tools.visualize").joinpath("selection.js").read_text()
    script += """
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map((one) => selectVideoTokens(one.scores, one))));
"""
    given = cases()
    done = subprocess.run(
        [node, "-e", script], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    for case, found in zip(given, json.loads(done.stdout), strict=True):
        expected = select_in_stages(
            case["scores"], case["retention"], case["topP"], case["policy"], case["grid"]
        )
        where = {key: case[key] for key in ("policy", "retention", "topP", "grid")}
        assert found["stageOne"] == expected.stage_one.tolist(), where
        assert found["stageTwo"] == expected.stage_two.tolist(), where
