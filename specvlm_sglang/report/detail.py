"""What a request with ``custom_params={"specvlm": {"detail": true}}`` gets to see of its pruning.

Only such a request waits for the device to hand over its scores.

A report comes with the token of a prefill, and who wrote a token with that token: SGLang carries
one entry a token (``Req.customized_info``) from the scheduler to the process that answers, which
makes one object of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from specvlm_sglang.pruning.layout import VideoLayout
from specvlm_sglang.pruning.selection import Selection

KEY = "specvlm"
"""Of our entries in ``Req.customized_info``, and of the report in ``meta_info``."""
DRAFT = "draft"
TARGET = "target"
_DIGITS = 6


def start_detail(layout: VideoLayout) -> dict[str, Any]:
    """Return the part of the detail that is known before any selection.

    Parameters
    ----------
    layout
        The request's.

    Returns
    -------
    dict
        ``grids`` (``[frames, rows, columns]`` or None for each video), ``video_lengths``,
        ``scores``, ``stage_one`` and ``stage_two`` (None until `add_selection`: all tokens kept).
    """
    return {
        "grids": [None if grid is None else list(grid) for grid in layout.video_grids],
        "video_lengths": list(layout.video_lengths),
        "scores": None,
        "stage_one": None,
        "stage_two": None,
    }


def note_rounds(req: Any) -> None:
    """From here on note who wrote each token of SGLang's ``req``.

    Each verify round adds an entry for each of its tokens: `DRAFT` for an accepted draft token and
    `TARGET` for the target's own. A response shows them as ``origins`` (`ResponseReport`).
    """
    count = req.update_spec_correct_drafts_histogram

    def count_and_note(num_correct_drafts: int) -> None:
        # A grammar may have cut the round before.
        align_entries(req)
        entries = (req.customized_info or {}).get(KEY)
        if entries is not None:
            entries.extend([DRAFT] * int(num_correct_drafts) + [TARGET])
        count(num_correct_drafts)

    # SGLang calls this once a round with the number, and keeps only a histogram.
    req.update_spec_correct_drafts_histogram = count_and_note


def add_selection(
    detail: dict[str, Any], scores: torch.Tensor | None, selection: Selection
) -> None:
    """Add scores and kept tokens to a detail.

    Parameters
    ----------
    detail
        From `start_detail`.
    scores
        float32 ``[N]``, rounded to six significant digits; None where the policy reads none.
    selection
        The kept tokens; indices count through all videos of the prompt.
    """
    if scores is not None:
        detail["scores"] = [float(f"{score:.{_DIGITS}g}") for score in scores.tolist()]
    for stage, chosen in (("stage_one", selection.stage_one), ("stage_two", ~selection.stage_one)):
        detail[stage] = selection.indices[chosen].tolist()


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


class ResponseReport:
    """What a response shows of the entries that have come for it.

    Each is the report of a prefill, with detail who wrote a token of a verify round, or None for a
    token of which nobody asked that.
    """

    def __init__(self) -> None:
        self._report: dict[str, Any] | None = None
        self._origins: list[str | None] = []

    def add(self, entries: Iterable[dict[str, Any] | str | None]) -> None:
        """Take the next tokens' entries, in order."""
        for entry in entries:
            if isinstance(entry, dict):
                # After a retraction there is another one: what holds is the last.
                self._report = entry
                self._origins.append(TARGET)
            else:
                self._origins.append(entry)

    def report(self) -> dict[str, Any] | None:
        """Return the last report, None before the first.

        Its ``detail``, where it has one, has ``origins`` too: `DRAFT` or `TARGET` for each token
        so far.
        """
        if self._report is None or "detail" not in self._report:
            return self._report
        detail = {**self._report["detail"], "origins": list(self._origins)}
        return {**self._report, "detail": detail}
