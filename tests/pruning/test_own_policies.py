"""Pruning policies of a user's file: how they are found, called and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.policies import policy
from specvlm_sglang.pruning.registry import (
    check_policy,
    own_policies,
    policy_names,
    shipped_policies,
)
from specvlm_sglang.pruning.selection import select_per_video, select_video_tokens
from specvlm_sglang.request import RequestOptions, parse_options
from tests.support.sync_guard import NoHostSync

POLICIES = tuple(shipped_policies())
EXAMPLE = Path(__file__).parents[2] / "examples" / "pruning_policy.py"
GRID = (4, 3, 5)
SCORES = torch.from_numpy(np.random.default_rng(3).gamma(0.1, 1.0, 60).astype(np.float32))

HEAD = """
import torch
from specvlm_sglang.policies import policy
"""
LAST = HEAD + (
    """
@policy("last")
def last(scores, budget, grid, top_p):
    assert grid is None and not scores.any()
    return torch.arange(len(scores) - 1, len(scores) - 1 - budget, -1)
"""
)
WRONG = HEAD + (
    """
@policy("floats")
def floats(scores, budget, grid, top_p):
    return torch.zeros(budget)

@policy("nothing")
def nothing(scores, budget, grid, top_p):
    return None

@policy("too-many")
def too_many(scores, budget, grid, top_p):
    return torch.arange(budget + 1)

@policy("twice")
def twice(scores, budget, grid, top_p):
    return torch.zeros(budget, dtype=torch.int64)

@policy("beyond")
def beyond(scores, budget, grid, top_p):
    return torch.arange(budget) + len(scores) - 1

@policy("negative")
def negative(scores, budget, grid, top_p):
    return torch.arange(budget) - 1
"""
)


def use(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = folder / "mine.py"
    file.write_text(text)
    monkeypatch.setenv("SPECVLM_POLICY_FILE", str(file))
    return str(file)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECVLM_POLICY_FILE", str(EXAMPLE))


def test_without_a_file_there_are_the_projects_policies_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SPECVLM_POLICY_FILE", raising=False)
    assert policy_names() == POLICIES
    with pytest.raises(ValueError, match="must be one of specvlm"):
        check_policy("frame-peaks", "policy")


@pytest.mark.usefixtures("example")
def test_a_file_adds_its_policies_to_settings_and_requests() -> None:
    assert policy_names() == (*POLICIES, "frame-peaks")
    assert SpecVLMConfig.from_environment().policy_file == str(EXAMPLE)
    options = parse_options({"specvlm": {"policy": "frame-peaks"}}, SpecVLMConfig())
    assert (options.chosen.needs_scores, options.chosen.needs_grid) == (True, True)
    assert not RequestOptions(0.1, "uniform", 0.2).chosen.needs_scores


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("retention", [0.01, 0.07, 0.25, 0.5, 0.99, 1.0])
def test_the_example_keeps_the_best_of_every_frame(retention: float) -> None:
    found = select_video_tokens(
        SCORES, retention=retention, top_p=0.2, policy="frame-peaks", grid=GRID
    )
    budget = max(1, int(60 * retention + 1e-6))
    assert found.indices.tolist() == sorted(set(found.indices.tolist()))
    assert len(found.indices) == budget
    assert found.stage_one.all()
    assert not found.fallback
    frames = SCORES.reshape(4, 15).numpy()
    kept = np.zeros(60, dtype=bool)
    kept[found.indices.numpy()] = True
    for scores, chosen in zip(frames, kept.reshape(4, 15), strict=True):
        count = int(chosen.sum())
        assert count in (budget // 4, -(-budget // 4))
        assert set(np.flatnonzero(chosen)) == set(np.argsort(-scores, kind="stable")[:count])


@pytest.mark.usefixtures("example")
def test_every_video_gets_a_budget_of_its_own_where_a_policy_needs_a_grid() -> None:
    scores = torch.cat([SCORES, SCORES.flip(0)])
    found = select_per_video(
        scores, [60, 60], retention=0.1, top_p=0.2, policy="frame-peaks", grids=[GRID, GRID]
    )
    assert ((found.indices < 60).sum(), len(found.indices)) == (6, 12)
    with pytest.raises(ValueError, match="grid=None"):
        select_video_tokens(SCORES, retention=0.1, top_p=0.2, policy="frame-peaks")


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("bad", [torch.zeros(60), torch.full((60,), torch.nan)])
def test_scores_that_are_no_use_arrive_as_zeros_and_are_reported(bad: torch.Tensor) -> None:
    found = select_video_tokens(bad, retention=0.1, top_p=0.2, policy="frame-peaks", grid=GRID)
    assert found.fallback
    assert not found.stage_one.any()
    assert len(set(found.indices.tolist())) == 6


@pytest.mark.usefixtures("example")
def test_on_a_gpu_nothing_waits_for_the_selection() -> None:
    with FakeTensorMode(), NoHostSync():
        scores = torch.empty(60, device="cuda")
        found = select_video_tokens(
            scores, retention=0.1, top_p=0.2, policy="frame-peaks", grid=GRID
        )
    assert found.indices.shape == (6,)
    assert found.indices.device.type == "cuda"


def test_a_policy_without_needs_gets_neither_scores_nor_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(LAST, tmp_path, monkeypatch)
    found = select_video_tokens(SCORES, retention=0.05, top_p=0.2, policy="last", grid=GRID)
    assert found.indices.tolist() == [57, 58, 59]
    assert not found.fallback
    assert not found.stage_one.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("floats", "returned torch.float32, not an int64 tensor"),
        ("nothing", "returned NoneType, not an int64 tensor"),
        ("too-many", r"returned shape \[7\], not \[6\]"),
        ("twice", "returned 1 distinct tokens below 60, not 6"),
        ("beyond", "returned 1 distinct tokens below 60, not 6"),
        ("negative", "returned 5 distinct tokens below 60, not 6"),
    ],
)
def test_a_policy_that_does_not_keep_its_budget_is_named(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(WRONG, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=f"'{name}' {message}"):
        select_video_tokens(SCORES, retention=0.1, top_p=0.2, policy=name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no function in it has the decorator"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere"),
        ("def broken(:", "SyntaxError"),
        (HEAD + "a = policy('same')(len)\nb = policy('same')(print)", "AttributeError"),
        (HEAD + "@policy('Bad Name')\ndef f(*_): ...", "'Bad Name' must be lower-case words"),
        (HEAD + "@policy('uniform')\ndef f(*_): ...", "'uniform' is taken"),
        (
            HEAD + "@policy('same')\ndef f(*_): ...\n@policy('same')\ndef g(*_): ...",
            "two policies are named 'same'",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_start(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = use(text, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=message) as error:
        SpecVLMConfig.from_environment()
    assert str(error.value).startswith(f"--specvlm-policy-file={file}")


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ValueError, match="no such file"):
        own_policies("nowhere.py")


def test_the_decorator_leaves_the_function_as_it_was() -> None:
    def choose(
        scores: torch.Tensor, budget: int, grid: tuple[int, int, int] | None, top_p: float
    ) -> torch.Tensor:
        return torch.arange(budget)

    assert policy("mine")(choose) is choose
