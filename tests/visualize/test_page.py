"""The page: what it says, that it loads nothing, and how it behaves in a real Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.selection import select_in_stages
from specvlm_sglang.detail import DRAFT, TARGET
from specvlm_sglang.visualize.frames import read_frames
from specvlm_sglang.visualize.page import render, split_rounds

GRID = [4, 3, 5]
SCORES = [float(f"{score:.6g}") for score in np.random.default_rng(2).random(60) ** 5]


def page(video: Path, **changed: Any) -> str:
    detail = {
        "grids": [GRID],
        "video_lengths": [60],
        "scores": SCORES,
        "stage_one": [],
        "stage_two": [],
    }
    settings: dict[str, Any] = {
        "question": "Is </script> shown?",
        "detail": detail,
        "tokens": ["A", " red", " disc", " moves", ".", " Then"],
        "origins": [{}, DRAFT, DRAFT, TARGET, TARGET, DRAFT],
        "frames": read_frames(video, GRID[0]),
        "numbers": [("video tokens", "60")],
        "retention": 0.2,
        "policy": "specvlm",
        "top_p": 0.4,
    }
    return render(**{**settings, **changed})


def test_each_round_ends_with_the_targets_own_token() -> None:
    origins = [{}, DRAFT, DRAFT, TARGET, TARGET]
    assert split_rounds(["a", "b", "c", "d", "e"], origins) == [
        {"drafted": [], "own": "a"},
        {"drafted": ["b", "c"], "own": "d"},
        {"drafted": [], "own": "e"},
    ]


def test_a_last_round_that_the_answers_end_cut_has_no_own_token() -> None:
    rounds = split_rounds(["a", "b", "c"], [{}, DRAFT, DRAFT])
    assert rounds[1:] == [{"drafted": ["b", "c"], "own": None}]


def test_an_answer_without_an_origin_for_each_token_is_refused() -> None:
    with pytest.raises(ValueError, match="1 origins must be as many as tokens, 2"):
        split_rounds(["a", "b"], [{}])


def test_a_page_of_two_videos_is_refused(clip_paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="exactly one video"):
        page(clip_paths[0], detail={"grids": [GRID, GRID], "scores": None})


def test_pictures_come_in_order_and_as_many_as_asked(clip_paths: list[Path]) -> None:
    times = [frame.time for frame in read_frames(clip_paths[0], 5)]
    assert len(times) == 5
    assert times == sorted(times)


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        read_frames(broken, 3)


def test_the_page_loads_nothing(clip_paths: list[Path]) -> None:
    text = page(clip_paths[0])
    assert not re.findall(r"""(?:src|href)\s*=\s*["']|url\(|https?://|@import|fetch\(""", text)
    assert text.count("</script>") == 2


DRIVER = """<script>
function choose(id, value, event) {
  byId(id).value = value;
  byId(id).dispatchEvent(new Event(event));
  return byId("summary").textContent;
}
const seen = [byId("summary").textContent, choose("retention", 50, "input"),
  choose("policy", "frames", "change"), choose("policy", "attention", "change")];
byId("reset").click();
seen.push(byId("summary").textContent, byId("answer").textContent,
  document.querySelectorAll("#timeline button[aria-label], #frames img[alt]").length,
  document.querySelectorAll(".drafted").length - 1);
document.body.append(element("pre", { id: "seen", textContent: JSON.stringify(seen) }));
</script></body>"""


def test_slider_policy_and_reset_recompute_the_selection_in_chromium(
    clip_paths: list[Path], tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine to open the page with")
    file = tmp_path / "page.html"
    file.write_text(page(clip_paths[0]).replace("</body>", DRIVER), encoding="utf-8")
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-quic"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    seen = json.loads(html.unescape(found.group(1)))

    def summary(retention: float, policy: str) -> str:
        kept = select_in_stages(SCORES, retention, 0.4, policy, (4, 3, 5))
        one, two = kept.stage_one.size, kept.stage_two.size
        return f"{one + two} of 60 video tokens kept: {one} in Stage I, {two} in Stage II."

    assert seen == [
        summary(0.2, "specvlm"),
        summary(0.5, "specvlm"),
        summary(0.5, "frames"),
        summary(0.5, "attention"),
        summary(0.2, "specvlm"),
        "A red disc moves. Then",
        8,
        3,
    ]
