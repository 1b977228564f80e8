"""Results are sent before a round whose head makes the host wait, through SGLang's own method."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from specvlm_sglang.host import first_token
from tests.support.hooks import unhooked


def batch(mode: ForwardMode, *, waits: bool) -> Any:
    algorithm = SimpleNamespace(is_none=lambda: False)
    return SimpleNamespace(
        forward_mode=mode,
        spec_algorithm=algorithm,
        grammar_needs_sync=lambda: False,
        waits=waits,
    )


@pytest.mark.parametrize(
    ("mode", "waits", "queued", "expected"),
    [
        (ForwardMode.DECODE, True, 1, True),
        (ForwardMode.DECODE, False, 1, False),
        (ForwardMode.DECODE, True, 0, False),
        (ForwardMode.EXTEND, True, 1, False),
    ],
)
def test_only_a_round_that_waits_has_the_results_sent_before_it(
    mode: ForwardMode, waits: bool, queued: int, expected: bool
) -> None:
    with unhooked(("sglang.srt.managers.scheduler", "Scheduler.is_disable_overlap_for_batch")):
        first_token.install(lambda round_: round_.waits)
        scheduler = SimpleNamespace(require_mlp_sync=False, result_queue=deque([None] * queued))
        decide: Any = Scheduler.is_disable_overlap_for_batch
        found = decide(scheduler, batch(mode, waits=waits), None)
        assert found is expected
        assert not decide(scheduler, None, None)
