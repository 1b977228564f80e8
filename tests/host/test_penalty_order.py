"""Plain decoding's penalties add first and scale then, whatever order a set of classes has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.sampling import penaltylib
from sglang.srt.sampling.sampling_params import SamplingParams

from reference.penalties import Penalties, penalise
from specvlm_sglang.host import penalty_order
from tests.support.hooks import unhooked

VOCABULARY = 12
LOGITS = [0.3, -0.2, 1.5, -1.0, 0.6, -0.05, 2.0, 0.0, -3.0, 0.9, 0.1, -0.7]
OUTPUT = [2, 5, 2, 4, 11]
PENALIZERS = (
    penaltylib.BatchedFrequencyPenalizer,
    penaltylib.BatchedPresencePenalizer,
    penaltylib.BatchedRepetitionPenalizer,
)


class Batch:
    """What a penalizer asks of a batch."""

    device = "cpu"

    def __init__(self, sampling: SamplingParams) -> None:
        self.reqs = [SimpleNamespace(sampling_params=sampling)]


def penalised(penalizers: Any, **sampling: float) -> torch.Tensor:
    """Logits that SGLang's plain sampler without overlap scheduling gets after `OUTPUT`."""
    batch: Any = Batch(SamplingParams(**sampling))
    orchestrator = penaltylib.BatchedPenalizerOrchestrator(VOCABULARY, batch, penalizers)
    for token in OUTPUT:
        orchestrator.cumulate_output_tokens(torch.tensor([token]))
    logits = torch.tensor([LOGITS])
    orchestrator.apply(logits)
    return logits[0]


@pytest.fixture
def hooked() -> Iterator[None]:
    target = (
        "sglang.srt.sampling.penaltylib.orchestrator",
        "BatchedPenalizerOrchestrator.__init__",
    )
    with unhooked(target):
        found = [penalised(order, **BOOSTS) for order in itertools.permutations(PENALIZERS)]
        assert not all(torch.equal(found[0], other) for other in found), "no hook is needed"
        penalty_order.install()
        yield


BOOSTS = {"frequency_penalty": -1.0, "presence_penalty": -0.5, "repetition_penalty": 0.8}


@pytest.mark.parametrize("order", itertools.permutations(PENALIZERS))
def test_every_order_of_penalizers_gives_the_references_logits(hooked: None, order: Any) -> None:
    expected = penalise(LOGITS, OUTPUT, Penalties(frequency=-1.0, presence=-0.5, repetition=0.8))
    np.testing.assert_allclose(penalised(order, **BOOSTS).numpy(), expected, rtol=1e-6)
