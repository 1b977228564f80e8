"""The page: what it says, what it refuses, and that it names nothing to load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from specvlm_sglang.report.entries import DRAFT, TARGET
from specvlm_sglang.tools.visualize.frames import read_frames
from specvlm_sglang.tools.visualize.page import split_rounds
from tests.tools.visualize.example import GRID, make_page


def test_each_round_ends_with_the_targets_own_token() -> None:
    origins = [TARGET, DRAFT, DRAFT, TARGET, TARGET]
    assert split_rounds(["a", "b", "c", "d", "e"], origins) == [
        {"drafted": [], "own": "a"},
        {"drafted": ["b", "c"], "own": "d"},
        {"drafted": [], "own": "e"},
    ]


def test_a_last_round_that_the_answers_end_cut_has_no_own_token() -> None:
    rounds = split_rounds(["a", "b", "c"], [TARGET, DRAFT, DRAFT])
    assert rounds[1:] == [{"drafted": ["b", "c"], "own": None}]


def test_an_answer_without_an_origin_for_each_token_is_refused() -> None:
    with pytest.raises(ValueError, match="1 origins must be as many as tokens, 2"):
        split_rounds(["a", "b"], [TARGET])


def test_a_page_of_two_videos_is_refused(clip_paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="exactly one video"):
        make_page(clip_paths[0], detail={"grids": [GRID, GRID], "scores": None})


def test_pictures_come_in_order_and_as_many_as_asked(clip_paths: list[Path]) -> None:
    times = [frame.time for frame in read_frames(clip_paths[0], 5)]
    assert len(times) == 5
    assert times == sorted(times)


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        read_frames(broken, 3)


def test_the_page_names_nothing_to_load(clip_paths: list[Path]) -> None:
    text = make_page(clip_paths[0])
    assert not re.findall(r"""(?:src|href)\s*=\s*["']|url\(|https?://|@import|fetch\(""", text)
    assert text.count("</script>") == 2
