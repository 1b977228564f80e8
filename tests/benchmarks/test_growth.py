"""The growth benchmark: what it fits, what it counts as memory, and a small run."""

import json

import pytest
import torch

from benchmarks.growth import (
    LIMITS,
    Measurement,
    exceeded,
    growth,
    main,
    peak_bytes,
    scoring,
    slope,
)

MEGABYTE = 1 << 20


def measured(op, tokens, seconds, peak=1000, rows=64):
    return Measurement(op, rows, tokens, (seconds, seconds, 100.0), peak)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_slope_is_the_power_of_growth(power):
    sizes = [1000, 2000, 8000]
    assert slope(sizes, [3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize(("sizes", "values"), [([1], [1]), ([1, 2], [1, 0]), ([0, 2], [1, 1])])
def test_a_slope_needs_two_positive_sizes_and_values(sizes, values):
    with pytest.raises(ValueError, match="two sizes and positive numbers"):
        slope(sizes, values)


def test_growth_is_fitted_to_medians_of_long_videos_only():
    quadratic = [measured("scoring", n, (n / 1024) ** 2, n) for n in (8192, 16384, 32768)]
    short = measured("scoring", 1024, 5000.0, 5000)
    found = growth([short, *quadratic])["scoring"]
    assert found["time"] == pytest.approx(2)
    assert found["memory"] == pytest.approx(1)


def test_growth_by_rows_is_fitted_over_the_rows():
    found = growth([measured("scoring by rows", 100, rows, rows, rows) for rows in (16, 64)])
    assert found["scoring by rows"] == {"time": pytest.approx(1), "memory": pytest.approx(1)}


def test_an_op_that_allocates_nothing_or_has_one_size_has_no_slope():
    nothing = [measured("selection", n, n, 0) for n in (8192, 16384)]
    single = [measured("scoring", 8192, 1.0)]
    found = growth([*nothing, *single])
    assert found["selection"]["memory"] is None
    assert found["scoring"] == {"time": None, "memory": None}


def test_growth_above_its_limit_is_named_and_growth_below_is_not():
    slopes = {
        "scoring": {"time": 2.0, "memory": 1.0},
        "selection": {"time": 1.0, "memory": 1.0},
        "draft step": {"time": None, "memory": None},
    }
    problems = exceeded(slopes)
    assert [problem.partition(" with")[0] for problem in problems] == [
        "scoring: time grows",
        "scoring: memory grows",
    ]


def test_the_peak_counts_what_is_held_at_once_not_what_is_allocated_in_all():
    def one_after_the_other():
        for _ in range(4):
            torch.ones(MEGABYTE, dtype=torch.uint8)

    def together():
        return [torch.ones(MEGABYTE, dtype=torch.uint8) for _ in range(4)]

    assert MEGABYTE <= peak_bytes(one_after_the_other) < 1.5 * MEGABYTE
    assert 4 * MEGABYTE <= peak_bytes(together) < 4.5 * MEGABYTE


def test_scoring_longer_videos_holds_no_more_at_once_beyond_one_number_a_token():
    short, long = (peak_bytes(scoring(n, rows=4)) for n in (8 << 10, 32 << 10))
    whole_map = 4 * 28 * (24 << 10) * 4
    assert long - short < whole_map / 4


def test_a_small_run_records_every_op_with_slopes_and_a_picture(tmp_path):
    main(["--out", str(tmp_path), "--tokens", "256", "512", "--repeats", "1"])
    record = json.loads((tmp_path / "growth.json").read_text())
    assert set(record["slopes"]) == {*LIMITS, "scoring by rows"}
    scored = [m for m in record["measurements"] if m["op"] == "scoring"]
    assert [m["video_tokens"] for m in scored] == [256, 512]
    assert all(m["median"] > 0 for m in record["measurements"])
    assert record["command"].startswith("python -m benchmarks.growth --out")
    assert (tmp_path / "growth.png").stat().st_size > 1000
