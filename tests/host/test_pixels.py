"""A draft's vision tower waits for pixels that SGLang is still moving."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from sglang.srt.managers import mm_schedule

from specvlm_sglang.host import pixels


def test_the_copy_to_the_host_is_waited_for_and_the_item_keeps_its_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feature = torch.zeros(3)
    item = SimpleNamespace(feature=feature)
    event = mock.MagicMock()
    # The copy arrives when its event is waited for.
    event.synchronize.side_effect = lambda: feature.fill_(7)
    monkeypatch.setattr(mm_schedule, "host_offload_event", event)
    with pixels.on_device(item, torch.device("cpu"), lambda: None):
        assert item.feature.tolist() == [7, 7, 7]
        item.feature = None
    assert item.feature is feature
