"""The draft's logits on a GPU equal transformers' on the pruned prompt: the CPU's test, there.

float32 through the Triton backends: FlashInfer and FA3 compute in 16 bits only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving.specvlm import CHAIN, launch
from tests.serving.test_specvlm_internals import (  # noqa: F401
    cases,
    test_draft_logits_equal_transformers_on_the_pruned_prompt_at_prefill_and_in_every_round,
    test_the_draft_pool_holds_the_pruned_lengths_in_every_round_and_a_little_ahead,
)
from tests.support import probe
from tests.support.server import Server

pytestmark = [pytest.mark.serving, pytest.mark.gpu]


@pytest.fixture(scope="module")
def probed(
    serve: Any, vl_target: Path, vl_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Server, dict[str, str]]:
    environment = probe.install(tmp_path_factory.mktemp("probe"))
    backend = ("--attention-backend", "triton", "--mm-attention-backend", "triton_attn")
    backend += ("--max-total-tokens", "65536")
    return serve(vl_target, *launch(vl_draft, *CHAIN, *backend), **environment), environment


@pytest.fixture(scope="module")
def logit_atol() -> float:
    """Triton multiplies float32 as TF32, and so do the convolutions of the vision tower."""
    return 0.05
