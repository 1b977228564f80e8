"""Reports of completed prompts, put where SGLang takes them along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specvlm_sglang.report.entries import KEY, align_entries
from specvlm_sglang.report.observer import (
    NO_ATTENTION,
    NO_CHANGE,
    LateReport,
    Observer,
    RequestReport,
)


def publish(
    output: Any,
    batch_size: int,
    complete: Sequence[Any],
    observer: Observer,
) -> None:
    """Put the reports into the responses' ``meta_info``.

    Parameters
    ----------
    output
        SGLang's ``GenerationBatchResult`` of the prefill.
    batch_size
        Requests of the batch.
    complete
        Requests whose prompt is complete, each with its ``index`` in the batch, SGLang's ``req``
        and its ``report``.
    observer
        Told of what the device has yet to say.
    """
    for one in complete:
        align_entries(one.req)
    if output.logits_output is None or not complete:
        return
    reports: list[dict[str, Any] | None] = [None] * batch_size
    for one in complete:
        reports[one.index] = shown(one.report, observer)
    output.logits_output.customized_info = {
        **(output.logits_output.customized_info or {}),
        KEY: reports,
    }


def shown(report: RequestReport, observer: Observer) -> dict[str, Any]:
    """Return what a response shows of ``report``, complete when SGLang copies it."""
    if report.late_fallback is None:
        return report.as_dict()
    why = NO_ATTENTION if report.ranks_by_attention else NO_CHANGE
    return LateReport(report.as_dict(), report.late_fallback, observer.fell_back, why)
