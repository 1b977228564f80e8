"""Assisted generation beside plain generation: ratios within a round, and whether answers agree."""

from benchmarks.assisted import PLAIN, Times, table


def row(round: int, drafted: int, first: float, rest: float, ids: list[int]) -> dict[str, object]:
    figures = {"first": first, "rest": rest, "ids": ids, "passes": 5}
    return {"round": round, "drafted": drafted, **figures}


def test_ratios_are_taken_within_a_round() -> None:
    ids = list(range(11))
    rows = [
        row(1, PLAIN, 1.0, 10.0, ids),
        row(1, 3, 1.5, 5.0, ids),
        row(2, PLAIN, 2.0, 20.0, ids),
        row(2, 3, 2.0, 40.0, [*ids[:-1], 99]),
        row(3, 3, 4.0, 2.0, ids),
        row(3, PLAIN, 4.0, 8.0, ids),
    ]
    lines = table(rows).splitlines()
    # Decode 2, 0.5 and 4 times as fast; first tokens 1.5, 1 and 1 times as late.
    assert lines[2] == "| 3 | 2.00x | 1.69x | 1.00x | 2.20 | 2 of 3 |"
    assert len(lines) == 3


def test_the_first_token_is_the_first_after_the_prompt() -> None:
    times = Times()
    times.put(None)  # type: ignore[arg-type]
    assert times.first is None
    times.put(None)  # type: ignore[arg-type]
    first = times.first
    times.put(None)  # type: ignore[arg-type]
    times.end()
    assert first is not None
    assert first == times.first
    assert times.calls == 2
