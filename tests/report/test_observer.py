"""Reports that are complete when SGLang takes them, and counted once."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from specvlm_sglang.copies import LateFlag
from specvlm_sglang.report.observer import (
    NO_ANSWER,
    NO_ATTENTION,
    POOL_FULL,
    LateReport,
    Observer,
    RequestReport,
)


def test_a_report_shows_everything_but_what_is_not_there_yet() -> None:
    report = RequestReport(60, 6, "specvlm", late_fallback=LateFlag(torch.tensor(True)))
    shown = report.as_dict()
    assert shown == {
        "video_tokens": 60,
        "kept_video_tokens": 6,
        "policy": "specvlm",
        "cold": None,
        "fallback": None,
        "scoring_seconds": 0.0,
    }
    report.detail = {"scores": [0.5]}
    assert report.as_dict()["detail"] == {"scores": [0.5]}


@pytest.mark.parametrize("fell_back", [False, True])
def test_a_late_fallback_is_filled_in_and_counted_when_sglang_copies_the_report(
    fell_back: bool,
) -> None:
    observer = Observer(prometheus=False)
    flag = torch.tensor(False)
    report = RequestReport(60, 6, "specvlm", late_fallback=LateFlag(flag))
    observer.began(report)
    late = LateReport(report.as_dict(), LateFlag(flag), observer.fell_back)
    # The device decides after the report was made.
    flag.fill_(fell_back)
    taken = late.copy()
    assert type(taken) is dict
    assert taken == {**report.as_dict(), "fallback": NO_ATTENTION if fell_back else None}
    assert observer.totals.score_fallbacks == int(fell_back)


def test_a_fallback_that_is_known_at_once_is_counted_with_the_draft() -> None:
    observer = Observer(prometheus=False)
    observer.began(RequestReport(60, 6, "specvlm", fallback="no text after the video"))
    assert observer.totals.score_fallbacks == 1


def test_a_flag_of_a_gpu_travels_behind_the_stream_and_is_waited_for_only_when_read() -> None:
    device_flag = mock.MagicMock(spec=torch.Tensor, is_cuda=True)
    host = torch.tensor(True)
    event = mock.MagicMock()
    with (
        mock.patch("torch.empty", return_value=host) as empty,
        mock.patch.object(torch.Tensor, "copy_") as copy,
        mock.patch("torch.cuda.Event", return_value=event),
    ):
        flag = LateFlag(device_flag)
    assert empty.call_args.kwargs["pin_memory"]
    assert copy.call_args.kwargs == {"non_blocking": True}
    event.record.assert_called_once_with()
    event.synchronize.assert_not_called()
    assert flag.value()
    event.synchronize.assert_called_once_with()


def test_a_prompt_counts_at_its_end_and_what_is_kept_of_it_where_a_draft_begins() -> None:
    observer = Observer(prometheus=False)
    totals = observer.totals
    drafted, full = RequestReport(60, 6, "specvlm"), RequestReport(40, 4, "specvlm")
    refused = RequestReport(30, 3, "specvlm", cold=NO_ANSWER)
    for report in (drafted, full, refused):
        observer.finished_prefill(report)
    assert (totals.requests, totals.video_requests, totals.video_tokens) == (3, 3, 130)
    assert (totals.kept_video_tokens, totals.cold_at_prefill) == (0, 1)
    full.cold = POOL_FULL
    observer.began(drafted)
    observer.began(full)
    assert (totals.kept_video_tokens, totals.cold_at_prefill) == (6, 2)


def test_metrics_that_cannot_be_counted_cost_nothing_but_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    observer = Observer(prometheus=False)
    # A disk that is full: every counter of Prometheus raises.
    observer._metrics = mock.MagicMock()
    observer._metrics.finished_prefill.side_effect = OSError("No space left on device")
    observer._metrics.kv_in_use.set.side_effect = OSError("No space left on device")
    for _ in range(3):
        observer.finished_prefill(RequestReport(60, 6, "specvlm"))
        observer.draft_kv(3, 10)
    assert observer.totals.requests == 3
    # What still counts is counted; the log says it once.
    assert observer._metrics.kv_capacity.set.call_count == 3
    assert len([one for one in caplog.messages if "cannot be counted" in one]) == 1
