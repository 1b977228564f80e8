"""The roofline: computed speedups beside published ones, labelled as computed."""

import json

import pytest

from benchmarks.roofline import (
    HARDWARE,
    PUBLISHED,
    SHOWN,
    compare,
    computed_speedup,
    main,
    own_prediction,
    prediction,
    record,
)
from benchmarks.roofline_report import markdown
from specvlm_sglang.tools.sizing.cost import decode_speedup

WITH_LENGTH = [row for row in PUBLISHED if row.accept_length is not None]


@pytest.mark.parametrize("row", WITH_LENGTH, ids=lambda row: f"{row.source} {row.draft}")
def test_the_residual_is_published_minus_computed_on_the_hardware_of_the_measurement(row):
    found = compare(row)
    there = computed_speedup(row, HARDWARE[row.hardware], row.accept_length)
    assert found["residual"] == pytest.approx(row.speedup - there)
    assert found["share_reached"] == pytest.approx(row.speedup / there)
    assert set(found["computed"]) == set(HARDWARE)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.source} {row.draft}")
def test_the_accept_length_needed_gives_back_the_published_speedup(row):
    for name, needed in compare(row)["accept_length_needed"].items():
        # The model refuses lengths outside 1 .. steps + 1, so scale from its value at 1.
        assert needed * computed_speedup(row, HARDWARE[name], 1.0) == pytest.approx(row.speedup)


def test_a_measurement_without_accept_length_has_neither_computed_speedup_nor_residual():
    headline = compare(PUBLISHED[0])
    assert headline["computed"] == {}
    assert headline["residual"] is None
    assert headline["share_reached"] is None


def test_a_self_draft_of_the_same_size_cannot_beat_the_draft_cost_it_pays():
    row = next(r for r in WITH_LENGTH if r.target == r.draft)
    # A chain whose every step costs a target step: accept_length / (1 + steps) at the best.
    bound = decode_speedup(row.accept_length, row.draft_steps, 1.0)
    assert computed_speedup(row, HARDWARE["H200"], row.accept_length) == pytest.approx(
        bound, rel=0.15
    )


def test_predictions_cover_pairs_batches_and_hardware_and_pruning_saves_memory_and_time():
    found = record([1, 8])["predictions"]
    assert len(found) == 3 * 2 * len(SHOWN)
    for row in found:
        assert row["kept_video_tokens"] == 2508
        assert row["draft_kv_bytes_saved"] > 0
        assert row["pruned"]["draft_start_seconds"] < row["unpruned"]["draft_start_seconds"]
        # The first token pays for the scores alone.
        assert row["plain"]["time_to_first_token"] < row["pruned"]["time_to_first_token"]
        assert row["unpruned"]["time_to_first_token"] == row["plain"]["time_to_first_token"]


def test_a_prediction_without_accept_length_is_refused():
    with pytest.raises(ValueError, match="no accept length is published"):
        prediction(PUBLISHED[0], HARDWARE["H100"], 1)


def test_the_markdown_says_computed_and_shows_every_row_with_its_residual():
    found = record([1])
    text = markdown(found, SHOWN)
    assert "**Computed, not measured.**" in text
    lines = [line for line in text.splitlines() if line.startswith(("| SpecVLM", "| ParallelVLM"))]
    assert len(lines) == len(PUBLISHED)
    for row, line in zip(found["published"], lines, strict=True):
        if row["residual"] is not None:
            assert f"{row['residual']:+.2f}" in line
    widths = {line.count("|") for line in lines}
    assert widths == {text.splitlines()[text.splitlines().index(lines[0]) - 1].count("|")}


def test_a_target_that_drafts_for_itself_pays_the_more_the_more_of_a_step_is_its_cache():
    rows = [row for row in record([1])["self_predictions"] if row["target"] == "qwen2.5-vl-32b"]
    by_share = sorted(rows, key=lambda row: row["kv_share"])
    costs = [row["break_even_accept_length"] for row in by_share]
    assert costs == sorted(costs, reverse=True)
    # A step that is nearly all weights costs a draft step nearly whole, and nothing is won.
    assert by_share[0]["highest_speedup"] < 1.05
    assert by_share[-1]["highest_speedup"] > 1.5
    assert "| qwen2.5-vl-32b | H100 | 25,088 | 16 |" in markdown(record([1]), SHOWN)


def test_a_run_writes_json_markdown_and_a_picture(tmp_path):
    assert main(["--out", str(tmp_path), "--batch", "1"]) == 0
    found = json.loads((tmp_path / "roofline.json").read_text())
    assert found["kind"] == "computed by tools.sizing.cost, not measured"
    assert (tmp_path / "roofline.md").read_text().startswith("# Roofline")
    assert (tmp_path / "roofline.png").stat().st_size > 1000


def test_a_batch_below_one_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--batch", "0"])
    assert "--batch 0 must be at least 1" in capsys.readouterr().err


def test_an_accept_length_that_no_round_can_give_is_marked():
    lines = markdown(record([1]), SHOWN).splitlines()
    marked = [line for line in lines if "(more than " in line]
    assert len(marked) == 1
    assert "(more than 6)" in marked[0]
    assert "qwen2.5-vl 7b / 7b" in marked[0]


def test_what_is_predicted_for_our_rounds_lies_below_the_roofline_and_is_labelled():
    found = record([1, 8])
    assert len(found["own_predictions"]) == 3 * 2
    for row in found["own_predictions"]:
        low, high, bound = (row[name]["decode"] for name in ("low", "high", "no_overhead"))
        assert low < high < bound
        assert row["low"]["round_ms"] > row["high"]["round_ms"] > row["no_overhead"]["round_ms"]
    # The smaller the models, the more of a round is overhead.
    big, small = (found["own_predictions"][at] for at in (0, 4))
    assert (big["target"], small["target"]) == ("llava-onevision-72b", "llava-onevision-7b")

    def reached(row):
        return row["low"]["decode"] / row["no_overhead"]["decode"]

    assert reached(small) < reached(big)
    text = markdown(found, SHOWN)
    assert "**No GPU has run this.**" in text
    assert f"{found['round_launches']} launches" in text


def test_our_rounds_are_predicted_from_a_published_accept_length_alone():
    with pytest.raises(ValueError, match="no accept length is published"):
        own_prediction(PUBLISHED[0], "H100", 1)
