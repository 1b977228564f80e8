"""What travels with a request's tokens: its report, and who wrote each token.

SGLang carries one entry a token (``Req.customized_info``) from the scheduler to the process that
answers, which makes one object of them. A report comes with the token of a prefill. What becomes
of the draft is known a round later, and comes with the first token of that round.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

KEY = "specvlm"
"""Of our entries in ``Req.customized_info``, and of the report in ``meta_info``."""
DRAFT = "draft"
TARGET = "target"
PENDING = "pending"
"""Of a report whose draft has not begun; not shown."""
NO_ROUND = "the answer ended before its first round of drafts"
"""Why a request that was never refused one has no draft."""

Entry = dict[str, Any] | tuple[str | None, dict[str, Any]] | str | None
"""The report of a prefill; who wrote a token and a later report; who wrote it; nothing."""


def align_entries(req: Any) -> None:
    """Give each token that ``req`` has so far one entry: the next one is the next token's.

    Needed before a prefill that follows a retraction: its report belongs to the token that it
    brings, and SGLang sends each entry with its token.
    """
    entries = (req.customized_info or {}).get(KEY)
    if entries is not None:
        tokens = len(req.output_ids)
        entries[tokens:] = []
        entries.extend([None] * (tokens - len(entries)))


class RoundEntries:
    """Adds to the entries of SGLang's ``req`` what its verify rounds have to say.

    Parameters
    ----------
    req
        SGLang tells it each round how many drafts were right; from here on this object, too.
    notes_origins
        Whether each token of a round has an entry: `DRAFT` for an accepted draft token and
        `TARGET` for the target's own. A response shows them as ``origins`` (`ResponseReport`).
    """

    def __init__(self, req: Any, *, notes_origins: bool) -> None:
        self.accepted = 0
        """Drafts that were right, over all rounds."""
        self._req = req
        self._notes_origins = notes_origins
        self._report: dict[str, Any] | None = None
        # SGLang calls this once a round with the number, and keeps only a histogram.
        self._count = req.update_spec_correct_drafts_histogram
        req.update_spec_correct_drafts_histogram = self

    def show(self, report: dict[str, Any]) -> None:
        """Send this with the first token of the round that is about to run.

        It is copied when that round's results are there.
        """
        self._report = report

    def __call__(self, num_correct_drafts: int) -> None:
        """Add the entries of a round, before SGLang commits its tokens."""
        self.accepted += int(num_correct_drafts)
        entries = (self._req.customized_info or {}).get(KEY)
        if entries is not None and (self._notes_origins or self._report is not None):
            # A grammar may have cut the round before.
            align_entries(self._req)
            round_: list[Entry] = [None]
            if self._notes_origins:
                round_ = [*[DRAFT] * int(num_correct_drafts), TARGET]
            if self._report is not None:
                first = round_[0]
                assert first is None or isinstance(first, str)
                round_[0] = (first, self._report.copy())
                self._report = None
            entries.extend(round_)
        self._count(num_correct_drafts)


class ResponseReport:
    """What a response shows of the entries that have come for it."""

    def __init__(self) -> None:
        self._report: dict[str, Any] | None = None
        self._origins: list[str | None] = []

    def add(self, entries: Iterable[Entry]) -> None:
        """Take the next tokens' entries, in order."""
        for entry in entries:
            origin: str | None
            if isinstance(entry, dict):
                # After a retraction there is another one: what holds is the last.
                self._report, origin = entry, TARGET
            elif isinstance(entry, tuple):
                origin, self._report = entry
            else:
                origin = entry
            self._origins.append(origin)

    def report(self, *, is_last: bool) -> dict[str, Any] | None:
        """Return the last report, None before the first.

        Its ``detail``, where it has one, has ``origins`` too: `DRAFT` or `TARGET` for each token
        so far.

        Parameters
        ----------
        is_last
            Whether the answer has ended: a draft that is still to begin never will.
        """
        if self._report is None:
            return None
        shown = {name: value for name, value in self._report.items() if name != PENDING}
        if is_last and PENDING in self._report:
            shown["cold"] = NO_ROUND
        if "detail" in shown:
            shown["detail"] = {**shown["detail"], "origins": list(self._origins)}
        return shown
