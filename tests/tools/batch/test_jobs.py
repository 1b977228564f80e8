"""What `specvlm batch` asks, and what it finds answered before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.tools.batch.jobs import Job, answered_before, read_jobs
from specvlm_sglang.tools.batch.run import Figures
from specvlm_sglang.tools.errors import ToolError


def jobs_of(source: Path, question: str | None = "What?") -> list[Job]:
    return read_jobs(source, question, 64, {"policy": "uniform"})


def lines(file: Path, *entries: Any) -> Path:
    file.write_text("\n".join(map(json.dumps, entries)) + "\n")
    return file


def test_a_folder_is_searched_to_its_end_for_videos_alone(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name in ("b.mp4", "a.MKV", "deeper/a.webm", "notes.txt"):
        (tmp_path / name).touch()
    found = jobs_of(tmp_path)
    assert [job.name for job in found] == ["a.MKV", "b.mp4", "deeper/a.webm"]
    assert {(job.question, job.max_tokens) for job in found} == {("What?", 64)}
    assert found[2].video == tmp_path / "deeper/a.webm"


def test_a_line_may_say_what_is_its_own(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "asked.jsonl",
        {"video": "a.mp4"},
        {"video": "a.mp4", "question": "Why?", "retention": 0.5},
        {"video": "/clips/b.mov", "id": "third", "max_tokens": 8, "policy": "floc"},
    )
    first, second, third = jobs_of(file)
    assert (first.name, first.question, first.specvlm) == ("a.mp4", "What?", {"policy": "uniform"})
    assert (second.name, second.question) == ("a.mp4 | Why?", "Why?")
    assert second.specvlm == {"policy": "uniform", "retention": 0.5}
    assert (third.name, third.video, third.max_tokens) == ("third", Path("/clips/b.mov"), 8)
    assert third.specvlm == {"policy": "floc"}
    assert first.video == tmp_path / "a.mp4"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ([], 'object with "video"'),
        ({"question": "What?"}, 'object with "video"'),
        ({"video": "a", "frames": 4}, "no field 'frames'; a line takes video, question"),
        ({"video": "a", "question": ""}, '"question" is missing'),
        ({"video": "a", "max_tokens": 0}, "max_tokens=0 must be an integer of at least 1"),
        ({"video": "a", "retention": 2}, "retention"),
    ],
)
def test_a_line_that_cannot_be_asked_is_named(tmp_path: Path, entry: Any, said: str) -> None:
    file = lines(tmp_path / "asked.jsonl", {"video": "good.mp4"}, entry)
    with pytest.raises(ToolError, match=r"asked\.jsonl:2: .*") as refused:
        jobs_of(file)
    assert said in str(refused.value)


def test_what_holds_nothing_to_ask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="has no videos"):
        jobs_of(tmp_path)
    with pytest.raises(ToolError, match="no such folder or file"):
        jobs_of(tmp_path / "nowhere")
    with pytest.raises(ToolError, match="say with --question"):
        jobs_of(tmp_path, None)
    with pytest.raises(ToolError, match="id 'a' comes twice"):
        jobs_of(lines(tmp_path / "asked.jsonl", {"video": "a"}, {"video": "b", "id": "a"}))
    (tmp_path / "asked.jsonl").write_text("{")
    with pytest.raises(ToolError, match=r"asked\.jsonl:1: "):
        jobs_of(tmp_path / "asked.jsonl")


def test_answers_are_kept_and_failures_asked_again(tmp_path: Path) -> None:
    jobs = [Job(name, Path(name), "What?", 8, {}) for name in ("a", "b", "c")]
    out = tmp_path / "answers.jsonl"
    assert answered_before(out, jobs) == set()
    lines(
        out,
        {"id": "a", "question": "What?", "answer": ""},
        {"id": "b", "question": "What?", "error": "no video"},
        {"id": "elsewhere", "question": "Why?", "answer": "So."},
    )
    assert answered_before(out, jobs) == {"a"}
    lines(out, {"id": "a", "question": "Why?", "answer": "So."})
    with pytest.raises(ToolError, match=r"answers\.jsonl:1 answers another question about 'a'"):
        answered_before(out, jobs)
    lines(out, {"name": "a"})
    with pytest.raises(ToolError, match=r"answers\.jsonl:1 is no answer of this command"):
        answered_before(out, jobs)


def test_figures_count_drafted_plain_and_failed_answers() -> None:
    figures = Figures(before=2, seconds=2.0)
    report = {"video_tokens": 100, "kept_video_tokens": 10, "cold": None}
    figures.add({"answer": "a", "tokens": 41, "verify_rounds": 10, "specvlm": report})
    figures.add({"answer": "b", "tokens": 11, "verify_rounds": None, "specvlm": None})
    figures.add({"answer": "c", "tokens": 1, "verify_rounds": 0, "specvlm": {"cold": "why"}})
    figures.add({"error": "no video"})
    first, second, *rest = figures.lines()
    assert first == "3 answered, 1 failed, 2 answered before"
    assert second == "2.0 s, 25.0 tokens/s together, 2.50 tokens per round"
    assert rest == ["100 video tokens, of which drafts kept 10.0%", "1 without a draft: why"]
