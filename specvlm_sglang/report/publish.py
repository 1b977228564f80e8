"""Reports of completed prompts, counted and put where SGLang takes them along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specvlm_sglang.report.detail import KEY, align_entries
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
    """Count the reports and put them into the responses' ``meta_info``.

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
        Counts them.
    """
    for one in complete:
        observer.finished_prefill(one.report)
        align_entries(one.req)
    if output.logits_output is None or not complete:
        return
    shown: list[dict[str, Any] | None] = [None] * batch_size
    for one in complete:
        shown[one.index] = _shown(one.report, observer)
    output.logits_output.customized_info = {
        **(output.logits_output.customized_info or {}),
        KEY: shown,
    }


def _shown(report: RequestReport, observer: Observer) -> dict[str, Any]:
    if report.late_fallback is None:
        return report.as_dict()
    why = NO_ATTENTION if report.ranks_by_attention else NO_CHANGE
    return LateReport(report.as_dict(), report.late_fallback, observer.fell_back, why)
