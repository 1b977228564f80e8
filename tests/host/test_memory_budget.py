"""The share of memory that SGLang keeps back for the draft."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.model_executor.model_runner_components import spec_aux_hidden_state
from sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state import (
    SpecAuxHiddenStateConfig,
)

from specvlm_sglang.host import memory_budget
from specvlm_sglang.host.memory_budget import equivalent_layers, install_in_scheduler
from tests.support.hooks import unhooked

TARGET = (
    "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state",
    "resolve_spec_aux_hidden_state_config",
)


def model(kv_heads: int, head_dim: int) -> Any:
    return SimpleNamespace(get_num_kv_heads=lambda tp_size: kv_heads, head_dim=head_dim)


@pytest.mark.parametrize(
    ("layers", "draft", "target", "share", "expected"),
    [
        (4, 64, 64, 1.0, 4),
        (36, 256, 512, 0.35, 7),
        (2, 16, 64, 0.35, 1),
        (24, 128, 128, 0.5, 12),
        (28, 512, 1024, 1.0, 14),
        (10, 1024, 128, 0.35, 28),
    ],
)
def test_the_drafts_pool_counts_as_layers_of_the_targets_width(
    layers: int, draft: int, target: int, share: float, expected: int
) -> None:
    assert equivalent_layers(layers, draft, target, share) == expected


@given(
    layers=st.integers(1, 80),
    draft=st.integers(1, 4096),
    target=st.integers(1, 4096),
    share=st.floats(0.01, 1),
)
def test_never_less_is_kept_back_than_the_draft_takes(
    layers: int, draft: int, target: int, share: float
) -> None:
    counted = equivalent_layers(layers, draft, target, share)
    needed = layers * draft * share
    assert needed * (1 - 1e-9) <= counted * target
    assert counted * target < needed + target or counted == 1


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has SGLang's model runner loaded; its draft has 12 layers."""
    monkeypatch.setitem(sys.modules, memory_budget._RUNNER, sys)
    for name in ("SPECVLM_RETENTION", "SPECVLM_POLICY"):
        monkeypatch.delenv(name, raising=False)
    with unhooked(TARGET):

        def resolve(
            *, server_args: Any, model_config: Any, spec_algorithm: Any, is_draft_worker: bool
        ) -> Any:
            # In place of SGLang's own, which needs a running scheduler's context.
            draft = None if spec_algorithm.name == "NONE" else model(2, 64)
            return SpecAuxHiddenStateConfig(eagle_draft_num_layers=12, draft_model_config=draft)

        monkeypatch.setattr(spec_aux_hidden_state, TARGET[1], resolve)
        yield


def layers_kept_back(algorithm: str) -> int:
    record = spec_aux_hidden_state.resolve_spec_aux_hidden_state_config(
        server_args=None,
        model_config=model(4, 128),
        spec_algorithm=SimpleNamespace(name=algorithm),
        is_draft_worker=False,
    )
    layers: int = record.eagle_draft_num_layers
    return layers


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize(
    ("settings", "expected"),
    # A quarter of the target's width: 12 layers are 3 of its own at retention 1.
    [({}, 2), ({"SPECVLM_RETENTION": "1"}, 3), ({"SPECVLM_POLICY": "none"}, 3)],
)
def test_a_pruned_drafts_depth_is_corrected_in_sglangs_record(
    settings: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    install_in_scheduler("SPECVLM")
    install_in_scheduler("SPECVLM")
    assert layers_kept_back("SPECVLM") == expected


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize("algorithm", ["STANDALONE", "NONE"])
def test_other_algorithms_keep_their_record(algorithm: str) -> None:
    install_in_scheduler("SPECVLM")
    assert layers_kept_back(algorithm) == 12


def test_a_process_without_model_runners_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, memory_budget._RUNNER, raising=False)
    with unhooked(TARGET):
        before = spec_aux_hidden_state.resolve_spec_aux_hidden_state_config
        install_in_scheduler("SPECVLM")
        assert spec_aux_hidden_state.resolve_spec_aux_hidden_state_config is before
