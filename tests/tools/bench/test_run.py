"""A whole run with real servers and the shipped pair as it is."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from specvlm_sglang.tools.bench.arguments import add_arguments
from specvlm_sglang.tools.bench.run import run


@pytest.mark.serving
@pytest.mark.slow
def test_a_run_measures_plain_decoding_beside_specvlm_and_finds_equal_answers(
    tmp_path: Path,
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    chosen = ["--workloads", "512", "2k-chat", "--rounds", "1"]
    chosen += ["--configurations", "plain", "specvlm-0.1"]
    pair = ["--parameters", "0", "--dtype", "float32"]
    output = io.StringIO()
    out = ["--out", str(tmp_path), "--bars", "--servers-at-once", "2"]
    run(parser.parse_args([*chosen, *pair, *out]), Console(file=output, width=200))
    data = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["workload"], row["configuration"]): row for row in data["summary"]}
    assert set(rows) == {(w, c) for w in ("512", "2k-chat") for c in ("plain", "specvlm-0.1")}
    fast = rows["512", "specvlm-0.1"]
    assert (fast["equal"], fast["compared"], fast["cold"]) == (1, 1, 0)
    assert fast["metrics"]["accept_length"]["median"] > 1.5
    assert fast["metrics"]["kept_video_tokens"]["median"] == 51
    assert fast["metrics"]["phase.target_prefill"]["median"] > 0
    assert rows["512", "plain"]["metrics"]["accept_length"]["median"] == 1
    chat = [r for r in data["records"] if r["workload"] == "2k-chat"]
    # The second and third question find the video in the radix cache.
    assert all(len(r["answers"]) == 2 for r in chat)
    assert all(answer["cached_tokens"] > 2000 for r in chat for answer in r["answers"])
    (kv,) = data["draft_kv"]
    assert 51 < kv["slots"] < 200
    assert set(data["servers"]) == {"plain", "chain"}
    assert (tmp_path / "results.md").is_file()
