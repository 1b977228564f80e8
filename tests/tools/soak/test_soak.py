"""What a soak draws, counts and calls a leak, without a server."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from specvlm_sglang.tools import cli
from specvlm_sglang.tools.soak.health import Snapshot, leaks
from specvlm_sglang.tools.soak.load import DUPLICATE, ENDINGS, FLUSH, WHOLE, Job, Load, Question
from specvlm_sglang.tools.soak.record import SHOWN, Record
from specvlm_sglang.tools.soak.sending import Outcome

IDLE = Snapshot(
    running=0,
    waiting=0,
    used_tokens=0,
    draft_slots_in_use=0,
    draft_slots_free=4096,
    processes=4,
    threads=80,
    files=140,
    sockets=26,
    shared_memory=13,
    resident_bytes=4 << 30,
)
QUESTION = Question("text", [{"role": "user", "content": "What?"}], {"max_tokens": 4})


def test_a_server_that_holds_what_it_held_does_not_leak() -> None:
    assert leaks(IDLE, IDLE, IDLE) == []
    # Thread pools fill up, and pages are touched for the first time.
    later = replace(IDLE, threads=100, resident_bytes=IDLE.resident_bytes + (200 << 20))
    assert leaks(IDLE, IDLE, later) == []


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("running", 1, "running: 1 on an idle server"),
        ("used_tokens", 5, "used_tokens: 5 on an idle server"),
        ("draft_slots_in_use", 64, "draft_slots_in_use: 64 on an idle server"),
        ("draft_slots_free", 4095, "draft_slots_free: 4096 before, 4095 after"),
        ("processes", 5, "processes: 4 before, 5 after"),
        ("threads", 113, "threads: 80 when warm, 113 after"),
        ("files", 143, "files: 140 when warm, 143 after"),
        ("sockets", 29, "sockets: 26 when warm, 29 after"),
        ("shared_memory", 16, "shared_memory: 13 when warm, 16 after"),
        ("resident_bytes", 5 << 30, "resident memory: 4096 MiB when warm, 5120 MiB after"),
    ],
)
def test_what_a_server_keeps_is_named(field: str, value: int, said: str) -> None:
    assert leaks(IDLE, IDLE, replace(IDLE, **{field: value})) == [said]


def test_the_same_seed_draws_the_same_jobs_and_every_ending_comes() -> None:
    def drawn(seed: int) -> list[Job]:
        load = Load([QUESTION], seed)
        return [load.next() for _ in range(2000)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    counts = Counter(job.ending for job in drawn(3))
    assert set(counts) == set(ENDINGS)
    assert sum(ENDINGS.values()) == pytest.approx(1)
    assert all(abs(counts[name] / 2000 - share) < 0.03 for name, share in ENDINGS.items())


def test_a_record_counts_requests_and_compares_greedy_answers_only() -> None:
    record = Record({"text": ("so",)}, snapshots=dict.fromkeys(("before", "warm", "after"), IDLE))
    record.add(Job(QUESTION, WHOLE, {}, 0), Outcome("answered", ("so",)))
    record.add(Job(QUESTION, DUPLICATE, {}, 0), Outcome("answered", ("so",)))
    record.add(Job(replace(QUESTION, is_greedy=False), WHOLE, {}, 0), Outcome("answered", ("x",)))
    record.add(Job(QUESTION, "cut: round", {}, 0), Outcome("cut"))
    record.add(Job(QUESTION, FLUSH, {}, 0), Outcome("refused"))
    assert record.is_good
    assert (record.requests, record.taken_off, record.compared) == (5, 1, 2)
    record.add(Job(QUESTION, WHOLE, {}, 0), Outcome("answered", ("no",)))
    record.add(Job(QUESTION, WHOLE, {}, 0), Outcome("failed", said="500: oh"))
    assert not record.is_good
    assert (record.mismatches, record.failed) == (1, 1)
    assert record.failures == [
        "text, whole, {}: answered ('no',), plain decoding ('so',)",
        "text, whole, {}: 500: oh",
    ]


def test_a_record_keeps_the_first_failures_in_words_and_counts_all() -> None:
    record = Record({})
    for _ in range(SHOWN + 5):
        record.add(Job(QUESTION, WHOLE, {}, 0), Outcome("failed", said="500: oh"))
    assert record.failed == SHOWN + 5
    assert len(record.failures) == SHOWN


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes 0.0 must be above 0"),
        (["--concurrency", "0"], "--concurrency 0 must be at least 1"),
        (["--target", "/somewhere"], "--target and --draft go together"),
    ],
)
def test_arguments_that_make_no_soak_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["soak", *arguments]) == 1
    assert said in capsys.readouterr().err
