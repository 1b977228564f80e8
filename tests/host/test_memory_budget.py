"""The share of memory that SGLang keeps back for the draft."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt import runtime_context
from sglang.srt.model_executor import pool_configurator
from sglang.srt.model_executor.model_runner_components import spec_aux_hidden_state
from sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state import (
    SpecAuxHiddenStateConfig,
)

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.host import memory_budget
from specvlm_sglang.host.memory_budget import equivalent_layers
from tests.support.hooks import unhooked

TARGET = (
    "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state",
    "resolve_spec_aux_hidden_state_config",
)


CONFIGURATOR = ("sglang.srt.model_executor.pool_configurator", "DefaultPoolConfigurator.__init__")


def model(kv_heads: int, head_dim: int) -> Any:
    return SimpleNamespace(
        get_num_kv_heads=lambda tp_size: max(1, kv_heads // tp_size), head_dim=head_dim
    )


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
    for name in ("SPECVLM_RETENTION", "SPECVLM_POLICY", "SPECVLM_DRAFT_KV_TOKENS"):
        monkeypatch.delenv(name, raising=False)
    ranks(monkeypatch, 1)
    draft_at(monkeypatch, "draft")
    with unhooked(TARGET, CONFIGURATOR):

        def resolve(
            *, server_args: Any, model_config: Any, spec_algorithm: Any, is_draft_worker: bool
        ) -> Any:
            # In place of SGLang's own, which needs a running scheduler's context.
            draft = None if spec_algorithm.name == "NONE" else model(2, 64)
            return SpecAuxHiddenStateConfig(
                eagle_draft_num_layers=12, draft_kv_num_layers=12, draft_model_config=draft
            )

        monkeypatch.setattr(spec_aux_hidden_state, TARGET[1], resolve)
        yield


def ranks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: SimpleNamespace(attn_tp_size=size))


def draft_at(monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    spec = SimpleNamespace(speculative_draft_model_path=path)
    monkeypatch.setattr(runtime_context, "get_spec", lambda: spec)


def install() -> None:
    memory_budget.install_in_scheduler("SPECVLM", SpecVLMConfig.from_environment)


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
    install()
    install()
    assert layers_kept_back("SPECVLM") == expected


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize(("size", "expected"), [(1, 3), (2, 3), (4, 6), (8, 6)])
def test_ranks_that_share_a_drafts_heads_hold_one_each(
    size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2 KV heads of 64 against 4 of 128: from four ranks on both have one head each.
    monkeypatch.setenv("SPECVLM_RETENTION", "1")
    ranks(monkeypatch, size)
    install()
    assert layers_kept_back("SPECVLM") == expected


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize("is_draft_worker", [False, True])
def test_a_draft_pool_of_a_given_size_is_taken_off_the_targets_memory_once(
    is_draft_worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, layers = 4 * 128 * 2 * 2, 10

    def configure(self: Any, kvc: Any) -> None:
        # In place of SGLang's own; eagle_draft_num_layers comes on top where it is above 0.
        assert not kvc.spec_aux_config.eagle_draft_num_layers
        self._cell_size, self._fixed_overhead_bytes = layers * layer, 77

    monkeypatch.setattr(pool_configurator.DefaultPoolConfigurator, "__init__", configure)
    monkeypatch.setenv("SPECVLM_DRAFT_KV_TOKENS", "1000")
    install()
    record = spec_aux_hidden_state.resolve_spec_aux_hidden_state_config(
        server_args=None,
        model_config=model(4, 128),
        spec_algorithm=SimpleNamespace(name="SPECVLM"),
        is_draft_worker=False,
    )
    kvc: Any = SimpleNamespace(
        spec_aux_config=record,
        spec_algorithm=SimpleNamespace(name="SPECVLM"),
        model_config=model(4, 128),
        is_draft_worker=is_draft_worker,
        layer_info=SimpleNamespace(num_effective_layers=layers),
    )
    found = pool_configurator.DefaultPoolConfigurator(kvc)._fixed_overhead_bytes
    # 12 layers of 2 heads of 64: 3 layers of the target's.
    assert found == 77 + (0 if is_draft_worker else 1000 * 3 * layer)


@pytest.mark.usefixtures("scheduler")
@pytest.mark.parametrize("algorithm", ["STANDALONE", "NONE"])
def test_other_algorithms_keep_their_record(algorithm: str) -> None:
    install()
    assert layers_kept_back(algorithm) == 12


def test_a_process_without_model_runners_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, memory_budget._RUNNER, raising=False)
    with unhooked(TARGET):
        before = spec_aux_hidden_state.resolve_spec_aux_hidden_state_config
        install()
        assert spec_aux_hidden_state.resolve_spec_aux_hidden_state_config is before


@pytest.mark.usefixtures("scheduler")
def test_nothing_is_kept_back_where_the_target_drafts_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    assert layers_kept_back("SPECVLM") > 0
    draft_at(monkeypatch, None)
    assert layers_kept_back("SPECVLM") == 0
