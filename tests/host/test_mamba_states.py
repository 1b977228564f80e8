"""Verification asks once whether a target has states of linear attention to commit."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.configs import hybrid_arch
from sglang.srt.speculative import eagle_worker_common, spec_utils

from specvlm_sglang.host import mamba_states
from tests.support.hooks import unhooked

MODULE, FUNCTION = "sglang.srt.speculative.spec_utils", "commit_mamba_states_after_verify"


class Config:
    """A target's configuration, which finds out whether it has such states."""

    def __init__(self, states: object = None) -> None:
        self.states = states
        self.asked = 0


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """What SGLang's own function was called with, in a process with the hook."""

    def find(model_config: Config) -> object:
        model_config.asked += 1
        return model_config.states

    calls: list[tuple[Any, ...]] = []

    def commit(target_worker: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
        calls.append((target_worker, batch, *args, kwargs))

    with unhooked((MODULE, FUNCTION)):
        own = spec_utils.commit_mamba_states_after_verify
        assert eagle_worker_common.commit_mamba_states_after_verify is own
        monkeypatch.setattr(hybrid_arch, "mambaish_config", find)
        monkeypatch.setattr(spec_utils, FUNCTION, commit)
        monkeypatch.setattr(eagle_worker_common, FUNCTION, commit)
        mamba_states.install()
        yield calls


def worker(config: Config) -> Any:
    return SimpleNamespace(model_runner=SimpleNamespace(model_config=config))


def test_a_target_without_states_is_asked_once(committed: list[tuple[Any, ...]]) -> None:
    config, other = Config(), Config()
    for _ in range(3):
        eagle_worker_common.commit_mamba_states_after_verify(worker(config), "batch", 1)
    assert config.asked == 1
    assert len(committed) == 1
    eagle_worker_common.commit_mamba_states_after_verify(worker(other), "batch", 1)
    assert other.asked == 1


def test_a_target_with_states_commits_them_after_every_round(
    committed: list[tuple[Any, ...]],
) -> None:
    target = worker(Config(states=object()))
    for turn in range(3):
        eagle_worker_common.commit_mamba_states_after_verify(target, "batch", turn, prepared=turn)
    assert committed == [(target, "batch", turn, {"prepared": turn}) for turn in range(3)]
