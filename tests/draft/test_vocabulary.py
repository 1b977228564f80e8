"""A draft whose vocabulary is padded otherwise than its target's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from specvlm_sglang.draft.vocabulary import limit_drafts, widen_embedding


@pytest.mark.parametrize(("draft", "expected"), [(40, 40), (64, 50)])
def test_only_tokens_of_the_target_are_drafted(draft: int, expected: int) -> None:
    processor = SimpleNamespace(vocab_size=draft)
    limit_drafts(processor, 50)
    assert processor.vocab_size == expected


@pytest.mark.parametrize(("ranks", "rows"), [(1, 50), (2, 40)])
def test_every_token_of_the_target_has_an_embedding(ranks: int, rows: int) -> None:
    table = nn.Embedding(40, 3)
    before = table.weight.detach().clone()
    table.tp_size = ranks  # type: ignore[assignment]
    parameter = table.weight
    widen_embedding(table, 50)
    assert table.weight is parameter, "an output layer may share it"
    assert table.weight.shape == (rows, 3)
    assert torch.equal(table.weight[:40], before)
    assert not table.weight[40:].any()
