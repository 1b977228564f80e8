"""The table of policies: what is recorded, resumed and compared, on prompts of the shipped pair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.policies import report
from benchmarks.policies.hypotheses import neighbouring_share, spearman
from benchmarks.policies.measure import POLICIES, Kept, Setting, scored, settings
from benchmarks.policies.prompts import SETS, Prepared
from benchmarks.policies.record import Record
from benchmarks.policies.statistics import SetRounds
from reference.selection import COMPARED, select_video_tokens
from reference.selection import POLICIES as SHIPPED
from tests.support.selection_cases import features_of

GRID, TEXT = (6, 4, 4), 5


def prompt(clip: int = 0, answer: int = 31) -> Prepared:
    n = int(np.prod(GRID))
    rng = np.random.default_rng(clip)
    return Prepared(
        clip,
        "caption",
        np.arange(answer),
        rng.gamma(0.1, 1.0, n).astype(np.float32),
        rng.random(n, np.float32),
        rng.random(n, np.float32),
        np.concatenate([np.zeros((TEXT, 5), np.float32), features_of(n)]),
        np.zeros((3, TEXT + n), np.int64),
        np.arange(TEXT, TEXT + n),
        GRID,
        0,
    )


def test_every_policy_that_ships_is_in_the_table_but_windows_frames_and_none() -> None:
    missing = set(SHIPPED) - set(POLICIES)
    assert missing == {"window-front", "window-middle", "window-back", "frames", "none"}
    assert set(COMPARED) <= set(POLICIES)
    assert len({kind.seeds for kind in SETS.values()}) == len(SETS)


@pytest.mark.parametrize("policy", [*POLICIES, "scope+merge"])
def test_what_retentions_share_is_computed_once_and_keeps_the_same_tokens(policy: str) -> None:
    one = prompt()
    kept = Kept(one, seed=4)
    for retention in (0.05, 0.25, 0.1, 0.9):
        name, scores = scored(policy.removesuffix("+merge"), one)
        expected = select_video_tokens(scores, retention, 0.2, name, GRID, 4, one.features)
        assert kept.of(Setting(policy, retention)).tolist() == expected.tolist()


def test_a_record_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "rounds.jsonl"
    chosen = [str(one) for one in settings(["specvlm"], [0.1])]
    record = Record(file)
    record.add("short", 0, 0, prompt(0), dict.fromkeys(chosen, 10))
    record.add("short", 1, 0, prompt(1), {chosen[0]: 9})
    again = Record(file)
    assert again.of_clips("short", 2) == 2
    assert again.has("short", 1, 0, chosen[0])
    assert not again.has("short", 1, 0, chosen[1])
    # What is not measured everywhere is left out.
    assert len(again.complete(chosen)["short"]["prompts"]) == 1
    again.add("short", 1, 0, prompt(1), dict.fromkeys(chosen[1:], 11))
    data = Record(file).complete(chosen)
    assert list(data) == ["short"]
    assert data["short"]["rounds"] == {chosen[0]: [10, 9], chosen[1]: [10, 11], chosen[2]: [10, 11]}
    assert [one["tokens"] for one in data["short"]["prompts"]] == [30, 30]


def test_published_rounds_are_taken_over_but_for_the_newest_clip(tmp_path: Path) -> None:
    chosen = [str(one) for one in settings(["specvlm"], [0.1])]
    record = Record(tmp_path / "first.jsonl")
    for clip, number in ((0, 0), (0, 1), (1, 0)):
        record.add("questions", clip, number, prompt(clip), dict.fromkeys(chosen, 9 + number))
    published = tmp_path / "rounds.json"
    published.write_text(json.dumps(record.complete(chosen)))
    again = Record(tmp_path / "second.jsonl")
    again.adopt(published)
    assert again.complete(chosen) == record.complete(chosen)
    assert again.is_done("questions", 0, chosen)
    # It may have more questions: who stopped there is not known.
    assert not again.is_done("questions", 1, chosen)
    assert not again.is_done("questions", 0, [*chosen, "uniform@0.1"])
    assert not again.is_done("short", 0, chosen)


def test_prompts_about_one_clip_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    of_clip = rng.integers(8, 20, 12)
    # Five prompts a clip that all do as their clip does.
    prompts = [{"clip": clip, "tokens": 60} for clip in range(12) for _ in range(5)]
    rounds = {"a@0.1": np.repeat(of_clip, 5).tolist(), "b@0.1": np.repeat(of_clip + 1, 5).tolist()}
    alone = [{**one, "clip": number} for number, one in enumerate(prompts)]
    together = SetRounds({"prompts": prompts, "rounds": rounds})
    apart = SetRounds({"prompts": alone, "rounds": rounds})
    assert (together.prompts, together.clips, apart.clips) == (60, 12, 60)
    assert together.accept_length("a@0.1") == pytest.approx(60 * 12 / of_clip.sum())
    widths = [np.diff(one.interval("a@0.1"))[0] for one in (together, apart)]
    assert widths[0] > 1.5 * widths[1]
    mean, low, high = together.difference("b@0.1", "a@0.1")
    assert low < mean < high < 0
    assert together.difference("a@0.1", "a@0.1") == (0, 0, 0)


@pytest.mark.parametrize("prompts", [9, 40])
def test_tables_and_picture_say_how_many_prompts_they_stand_on(
    prompts: int, tmp_path: Path
) -> None:
    chosen = [str(one) for one in settings(["specvlm", "uniform", "floc"])]
    rng = np.random.default_rng(1)
    data = {
        "prompts": [
            {"clip": clip, "kind": "caption", "video_tokens": 96, "tokens": 60}
            for clip in range(prompts)
        ],
        "rounds": {name: rng.integers(10, 20, prompts).tolist() for name in chosen},
    }
    (tmp_path / "rounds.json").write_text(json.dumps({"short": data}))
    report.write(tmp_path)
    table = (tmp_path / "accept_length.md").read_text()
    assert f"short: {prompts} prompts about {prompts} clips" in table
    assert ("too few to compare" in table) == (prompts < 40)
    value = prompts * 60 / sum(data["rounds"]["floc@0.1"])
    assert f"{value:.2f}" in table
    lines = (tmp_path / "accept_length.csv").read_text().splitlines()
    assert len(lines) == 1 + len(chosen)
    picture = tmp_path / "accept_length.png"
    assert picture.exists() == (prompts >= 40)
    assert prompts < 40 or picture.stat().st_size > 10_000


def test_rank_correlation_shares_ties_and_draws_clips_together() -> None:
    x = np.array([1.0, 2, 2, 3, 4, 5, 6, 7])
    clips = np.arange(8)
    assert spearman(x, x**3, clips)[0] == pytest.approx(1)
    assert spearman(x, -x, clips)[0] == pytest.approx(-1)
    assert spearman(x, np.ones(8), clips)[0] == 0
    # scipy.stats.spearmanr of the same.
    mean, low, high = spearman(x, np.array([3.0, 1, 4, 1, 5, 9, 2, 6]), clips)
    assert mean == pytest.approx(0.463855421686747)
    assert low < mean < high
    # Two clips of four prompts each: a draw is of whole clips.
    apart = spearman(np.arange(8.0), np.array([1.0, 2, 3, 4, 4, 3, 2, 1]), clips // 4)
    assert apart[1:] == pytest.approx((-1, 1))


def test_neighbours_among_the_highest_are_counted_in_time_and_space() -> None:
    grid = (4, 5, 5)
    one = prompt()
    scores = np.full(100, 1e-6, np.float32)
    # Ten are kept: a clique of four in a box over two frames, and six that stand alone.
    clique = [(0, 0, 0), (0, 0, 1), (1, 1, 1), (1, 0, 0)]
    alone = [(0, 4, 4), (1, 2, 4), (2, 4, 0), (2, 0, 4), (3, 2, 2), (3, 4, 4)]
    for value, place in enumerate([*clique, *alone]):
        scores[np.ravel_multi_index(place, grid)] = 1 + value
    made = replace(one, scores=scores, grid=grid, video=np.arange(100))
    assert neighbouring_share(made) == pytest.approx(0.3)
