"""The journal of a run: what goes on after an end is what was begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from specvlm_sglang.tools.bench.stored import Journal
from specvlm_sglang.tools.errors import ToolError
from tests.support.bench import answer, record

SETTINGS = {"pair": "P", "tree": (5, 2, 10)}
BOTH = {"plain", "fast"}


def begun(path: Path) -> Journal:
    """One round measured by both, another one cut off after the first."""
    journal = Journal(path, SETTINGS, resume=False)
    journal.add_record(record("plain", answer(), phases={"verify": 1.0}))
    journal.add_record(record("fast", answer((1, 2), cold="full")))
    journal.add_slots("2k", "fast", 7)
    journal.add_record(record("plain", answer(), index=1))
    return journal


def test_what_was_measured_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "out" / "journal.jsonl"
    first = begun(path)
    first.end_batch(0, {"plain": {"peak_resident_bytes": 3}})
    again = Journal(path, SETTINGS, resume=True)
    assert again.records == first.records
    assert (again.slots, again.servers, again.batches) == (first.slots, first.servers, {0})


def test_a_round_that_was_cut_off_is_measured_again_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    begun(path)
    with path.open("a") as file:
        file.write('{"record": {"workload": "2k", "conf')
    journal = Journal(path, SETTINGS, resume=True)
    assert journal.measured(0, "2k", 0, BOTH)
    assert not journal.measured(0, "2k", 1, BOTH)
    assert not journal.measured(1, "2k", 0, BOTH)
    assert [(r.configuration, r.round) for r in journal.records] == [("plain", 0), ("fast", 0)]
    for name in ("fast", "plain"):
        journal.add_record(record(name, answer(seconds=9.0), index=1))
    again = Journal(path, SETTINGS, resume=True)
    assert again.measured(0, "2k", 1, BOTH)
    assert {r.seconds for r in again.records if r.round == 1} == {9.0}


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    begun(path)
    with pytest.raises(ToolError, match=r"--resume: .* was begun with pair P, not Q"):
        Journal(path, {**SETTINGS, "pair": "Q"}, resume=True)
    path.write_text("nothing of the kind\n")
    with pytest.raises(ToolError, match="is no journal of a run"):
        Journal(path, SETTINGS, resume=True)


def test_without_resume_a_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    begun(path)
    Journal(path, SETTINGS, resume=False)
    assert Journal(path, SETTINGS, resume=True).records == []


def test_without_a_folder_nothing_is_kept() -> None:
    journal = Journal(None, SETTINGS, resume=False)
    journal.add_record(record("plain", answer()))
    assert len(journal.records) == 1
