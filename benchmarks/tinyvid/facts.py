"""Reads facts back from a caption and compares them with another one's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from scipy.optimize import linear_sum_assignment

Claim = dict[str, str]
"""Slots that one sentence fills, see `KIND_OF`."""

KIND_OF = {
    "colour": "colour",
    "shape": "shape",
    "row": "place",
    "column": "place",
    "motion": "motion",
    "start": "time",
    "end": "time",
    "new colour": "colour",
    "change": "time",
    "meets": "meeting",
    "length": "time",
}
"""Which kind of fact a slot states."""

_HEAD = {
    "look": re.compile(r"\ban? (?P<colour>\w+) (?P<shape>\w+)"),
    "place": re.compile(r"\bthe (?P<row>upper|middle|lower) (?P<column>left|centre|right)"),
    "start": re.compile(r"\bsecond (?P<start>\w+)"),
}
_TAIL = {
    "motion": re.compile(r"\b(?:moves )?(?P<motion>left|right|up|down|rests)\b"),
    "meets": re.compile(r"\bmeets the (?P<meets>\w+ \w+)"),
    "turns": re.compile(r"\bturns (?P<new_colour>\w+) at second (?P<change>\w+)"),
    "end": re.compile(r"\bleaves at second (?P<end>\w+)"),
    "stays": re.compile(r"\band (?P<end>stays)"),
}
_LENGTH = re.compile(r"ends at second (?P<length>\w+)")


def claims(text: str) -> list[Claim]:
    """What each sentence of a caption says; sentences that say nothing known give empty claims."""
    return [_claim(sentence) for sentence in text.split(".") if sentence.strip()]


def compare(text: str, truth: str) -> tuple[Counter[str], Counter[str]]:
    """Facts of a caption against those of the true one.

    Sentences are paired so that the most facts agree. A fact of the truth that the pair lacks and
    a fact of the text that the truth lacks count as wrong.

    Returns
    -------
    right, total : Counter
        By kind.
    """
    said, true = claims(text), claims(truth)
    agreement = np.array([[_shared(a, b) for b in true] for a in said]).reshape(
        len(said), len(true)
    )
    rows, columns = linear_sum_assignment(-agreement)
    right, total = Counter[str](), Counter[str]()
    partner = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    for index, fact in enumerate(true):
        other = said[partner[index]] if index in partner else {}
        for slot in fact.keys() | other.keys():
            total[KIND_OF[slot]] += 1
            right[KIND_OF[slot]] += slot in fact and fact[slot] == other.get(slot)
    for index in set(range(len(said))) - set(partner.values()):
        total.update(KIND_OF[slot] for slot in said[index])
    return right, total


def shares(counts: Iterable[tuple[Counter[str], Counter[str]]]) -> dict[str, float]:
    """Share of right facts by kind, and of all together, over many captions."""
    right, total = Counter[str](), Counter[str]()
    for one_right, one_total in counts:
        right += one_right
        total += one_total
    result = {kind: right[kind] / total[kind] for kind in sorted(total)}
    return result | {"all": sum(right.values()) / max(sum(total.values()), 1)}


def _shared(a: Claim, b: Claim) -> int:
    return sum(b.get(slot) == value for slot, value in a.items())


def _claim(sentence: str) -> Claim:
    if found := _LENGTH.search(sentence):
        return found.groupdict()
    head, _, tail = sentence.partition(",")
    claim: Claim = {}
    for part, patterns in ((head.lower(), _HEAD), (tail, _TAIL)):
        for pattern in patterns.values():
            if found := pattern.search(part):
                claim |= {k.replace("_", " "): v for k, v in found.groupdict().items()}
    return claim
