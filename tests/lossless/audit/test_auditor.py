"""What waits, what is dropped, and when a replay gives way.

The replays are scripted: their passes need a server (`tests/serving/test_specvlm_audit.py`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specvlm_sglang.host.plain_decoding import NO_ROOM, CannotDecodeError
from specvlm_sglang.lossless.audit import auditor as module
from specvlm_sglang.lossless.audit.auditor import Auditor
from specvlm_sglang.lossless.audit.recorded import Recorded, is_selected
from specvlm_sglang.lossless.audit.replay import Mismatch, Verdict
from specvlm_sglang.report.observer import Observer
from tests.support.finished import finished, with_video

EQUAL = Verdict()


def differing(rid: str) -> Verdict:
    return Verdict(Mismatch(rid, 0, 7, 6, 1.0, 2.0, 1.0, 2, 1, 3))


class Stage:
    """Stands in for `Replay.start`: each replay takes the next script, one item a pass."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)
        self.begun: list[str] = []
        self.held = 0

    def __call__(self, scheduler: Any, recorded: Recorded) -> Any:
        if self.scripts and isinstance(self.scripts[0], Exception):
            raise self.scripts.pop(0)
        self.begun.append(recorded.id)
        self.held += 1
        script = self.scripts.pop(0) if self.scripts else [EQUAL]
        return ScriptedReplay(self, list(script))


class ScriptedReplay:
    def __init__(self, stage: Stage, script: list[Any]) -> None:
        self._stage = stage
        self._script = script

    def step(self) -> Any:
        said = self._script.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    def release(self) -> None:
        self._stage.held -= 1


def make(*scripts: Any, share: float = 1.0) -> tuple[Auditor, Stage]:
    stage = Stage(*scripts)
    return Auditor(share, Observer(prometheus=False), start=stage), stage


def run(auditor: Auditor) -> None:
    while auditor.has_work:
        auditor.step(scheduler=None)


def test_finished_requests_are_replayed_in_their_order_and_counted() -> None:
    auditor, stage = make([None, EQUAL], [differing("b")])
    assert not auditor.has_work
    for rid in "abc":
        auditor.note_finished(finished(rid))
    run(auditor)
    assert stage.begun == ["a", "b", "c"]
    assert stage.held == 0
    state = auditor.state()
    assert (state["selected"], state["audited"], state["mismatches"]) == (3, 3, 1)
    assert [mismatch["id"] for mismatch in state["last_mismatches"]] == ["b"]
    assert (state["waiting"], state["replaying"], state["skipped"]) == (0, None, {})


def test_only_the_share_is_recorded() -> None:
    auditor, stage = make(share=0.25)
    names = [str(number) for number in range(8)]
    for rid in names:
        auditor.note_finished(finished(rid))
        run(auditor)
    chosen = [rid for rid in names if is_selected(rid, 0.25)]
    assert 0 < len(chosen) < 8
    assert stage.begun == chosen
    assert auditor.state()["selected"] == len(chosen)


def test_a_replay_is_not_replayed() -> None:
    auditor, _ = make()
    req = finished()
    req.specvlm_replay = True
    auditor.note_finished(req)
    assert auditor.state()["selected"] == 0


def test_what_cannot_be_replayed_is_counted_by_its_reason() -> None:
    auditor, _ = make()
    for _ in range(2):
        auditor.note_finished(finished(temperature=0.5))
    assert not auditor.has_work
    assert auditor.state()["skipped"] == {"sampled": 2}


def test_no_more_than_eight_requests_are_held_the_running_one_included() -> None:
    auditor, stage = make([None, EQUAL])
    for number in range(10):
        auditor.note_finished(finished(str(number)))
    assert auditor.state()["waiting"] == module.MAX_WAITING == 8
    auditor.step(scheduler=None)
    auditor.note_finished(finished("late"))
    assert auditor.state()["skipped"] == {"queue full": 3}
    run(auditor)
    auditor.note_finished(finished("later"))
    run(auditor)
    assert stage.begun == [*map(str, range(8)), "later"]


def test_the_pixels_held_are_bounded_too_but_one_request_always_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PIXEL_BYTES", 100)
    auditor, stage = make()
    for rid, floats in (("large", 50), ("next", 10)):
        req = finished(rid)
        with_video(req, torch.zeros(floats))
        auditor.note_finished(req)
    auditor.note_finished(finished("text, behind too many pixels"))
    run(auditor)
    assert stage.begun == ["large"]
    assert auditor.state()["skipped"] == {"queue full": 2}
    for rid in "ab":
        req = finished(rid)
        with_video(req, torch.zeros(12))
        auditor.note_finished(req)
    run(auditor)
    assert stage.begun == ["large", "a", "b"]


def test_a_replay_gives_way_at_once_and_is_begun_again_behind_the_others() -> None:
    auditor, stage = make([None, None, EQUAL])
    auditor.note_finished(finished("a"))
    auditor.note_finished(finished("b"))
    auditor.step(scheduler=None)
    assert (stage.held, auditor.state()["replaying"]) == (1, "a")
    auditor.give_way()
    assert (stage.held, auditor.is_running) == (0, False)
    auditor.give_way()
    run(auditor)
    assert stage.begun == ["a", "b", "a"]
    assert auditor.state()["interruptions"] == 1
    assert auditor.state()["audited"] == 2


def test_a_replay_that_gave_way_three_times_is_begun_once_more_and_no_further() -> None:
    auditor, stage = make(*([[None, None]] * 4))
    auditor.note_finished(finished("a"))
    for _ in range(4):
        auditor.step(scheduler=None)
        auditor.give_way()
    assert not auditor.has_work
    assert stage.begun == ["a"] * 4
    assert auditor.state()["skipped"] == {"interrupted too often": 1}
    assert auditor.state()["audited"] == 0


@pytest.mark.parametrize(
    ("error", "reason"), [(CannotDecodeError(NO_ROOM), "no room"), (ValueError("odd"), "failed")]
)
@pytest.mark.parametrize("at_start", [True, False])
def test_a_replay_that_fails_is_dropped_and_holds_nothing(
    error: Exception, reason: str, at_start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for SGLang's runtime context, which knows the ranks in a server only.
    monkeypatch.setattr(module, "get_parallel", lambda: type("Parallel", (), {"tp_size": 1}))
    auditor, stage = make(error if at_start else [None, error])
    auditor.note_finished(finished("a"))
    auditor.note_finished(finished("b"))
    run(auditor)
    assert stage.begun[-1] == "b"
    assert stage.held == 0
    assert auditor.state()["skipped"] == {reason: 1}
    assert auditor.state()["audited"] == 1


def test_on_several_ranks_a_failed_pass_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "get_parallel", lambda: type("Parallel", (), {"tp_size": 2}))
    auditor, _ = make([ValueError("one rank alone")])
    auditor.note_finished(finished("a"))
    with pytest.raises(ValueError, match="one rank alone"):
        auditor.step(scheduler=None)


def test_replaced_weights_drop_what_the_old_ones_answered() -> None:
    auditor, stage = make([None, EQUAL])
    for rid in "ab":
        auditor.note_finished(finished(rid))
    auditor.step(scheduler=None)
    under_way, later = finished("under way"), finished("later")
    auditor.note_weights_changed([under_way])
    assert stage.held == 0
    assert not auditor.has_work
    auditor.note_finished(under_way)
    auditor.note_finished(later)
    run(auditor)
    assert stage.begun == ["a", "later"]
    assert auditor.state()["skipped"] == {"weights changed": 3}


def test_the_last_mismatches_are_kept() -> None:
    auditor, _ = make(*([differing(str(number))] for number in range(20)))
    for number in range(20):
        auditor.note_finished(finished(str(number)))
        run(auditor)
    state = auditor.state()
    assert state["mismatches"] == 20
    assert [mismatch["id"] for mismatch in state["last_mismatches"]] == [
        str(number) for number in range(4, 20)
    ]
