"""Scorers, selectors and what a policy may ask for: the torch twins, and a user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import reference.cover
import reference.features
import reference.merging
import reference.selection as reference_selection
from reference.policies import SCORERS, SELECTORS
from specvlm_sglang.policies import INPUTS, Inputs, policy, scorer, selector
from specvlm_sglang.pruning import cover, features
from specvlm_sglang.pruning.budgets import kept_tokens, video_token_budgets
from specvlm_sglang.pruning.layout import find_video
from specvlm_sglang.pruning.merging import merge
from specvlm_sglang.pruning.registry import (
    all_scorers,
    all_selectors,
    check_policy,
    find_policy,
    policy_names,
)
from specvlm_sglang.pruning.selection import (
    select_in_layout,
    select_per_video,
    select_video_tokens,
)
from tests.support.selection_cases import features_of, scored_grids
from tests.support.sync_guard import NoHostSync

GRID = (4, 3, 5)
N = 60
SCORES = np.random.default_rng(3).gamma(0.1, 1.0, N).astype(np.float32)
PAIRS = [f"{one}/{other}" for one in SCORERS for other in SELECTORS]
HEAD = """
import torch
from specvlm_sglang.policies import policy, scorer, selector
"""


def select(name: str, retention: float = 0.2, n: int = N, **options: object) -> list[int]:
    given = {"grid": GRID, "features": torch.from_numpy(features_of(n)), **options}
    scores = torch.from_numpy(SCORES[:n])
    found = select_video_tokens(scores, retention=retention, top_p=0.4, policy=name, **given)
    return found.indices.tolist()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    def use(text: str) -> None:
        file = tmp_path / "mine.py"
        file.write_text(HEAD + text)
        monkeypatch.setenv("SPECVLM_POLICY_FILE", str(file))

    return use


def test_the_parts_are_the_references() -> None:
    assert list(all_scorers()) == list(SCORERS)
    assert list(all_selectors()) == list(SELECTORS)
    for name in PAIRS:
        one, other = name.split("/")
        assert find_policy(name).needs == SCORERS[one].needs | SELECTORS[other].needs


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_keeps_what_the_reference_keeps(name: str) -> None:
    vectors = features_of(N)
    for scores in (SCORES, np.zeros(N, np.float32)):
        for retention in (0.02, 0.3, 1.0):
            asked = {"retention": retention, "top_p": 0.4, "policy": name, "grid": GRID}
            expected = reference_selection.select_in_stages(scores, features=vectors, **asked)
            with NoHostSync():
                found = select_video_tokens(
                    torch.from_numpy(scores), features=torch.from_numpy(vectors), **asked
                )
            assert found.indices.tolist() == expected.indices.tolist()
            assert found.indices[found.stage_one].tolist() == expected.stage_one.tolist()
            assert bool(found.fallback) == bool(expected.fallbacks)


@settings(deadline=None, max_examples=60)
@given(case=scored_grids(), share=st.floats(0.01, 0.99), chunk=st.sampled_from([4, 50, 2048]))
def test_all_chunks_in_step_take_what_they_take_one_by_one(
    case: tuple[np.ndarray, tuple[int, int, int]], share: float, chunk: int
) -> None:
    scores, grid = case
    vectors, budget = features_of(scores.size), max(1, int(share * scores.size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cover, "CHUNK_TOKENS", chunk)
        patch.setattr(reference.cover, "CHUNK_TOKENS", chunk)
        expected = reference.cover.cover(scores, vectors, budget, grid).tolist()
        given = torch.from_numpy(scores), torch.from_numpy(vectors)
        assert cover.cover(*given, budget, grid).tolist() == expected
        size = cover.chunk_size(grid)
        sizes = [min(size, scores.size - at) for at in range(0, scores.size, size)]
        assert sizes == reference.cover.chunk_sizes(grid)
        counts = reference.cover.shares(budget, sizes)
        with NoHostSync():
            found = cover.cover_in_step(*given, counts, size)
    assert found.tolist() == expected


def test_long_videos_are_measured_block_by_block() -> None:
    vectors = features_of(7 * 30, width=9)
    given, grid = torch.from_numpy(vectors), (7, 5, 6)
    with pytest.MonkeyPatch.context() as patch:
        for block in (1, 300, 600):
            patch.setattr(features, "_CPU_BLOCK", block)
            np.testing.assert_array_equal(
                features.quantised_directions(given).numpy(),
                reference.features.quantised_directions(vectors),
            )
            np.testing.assert_array_equal(
                features.temporal_change(given, grid).numpy(),
                reference.features.temporal_change(vectors, grid),
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", [7, 4096])
def test_merging_equals_the_reference(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specvlm_sglang.pruning.merging._BLOCK", block)
    vectors = torch.from_numpy(features_of(N)).to(dtype)
    for kept in ([0], [3, 17, 40], list(range(N))):
        with NoHostSync():
            found = merge(vectors, torch.tensor(kept))
        expected = reference.merging.merge(vectors.float().numpy(), np.array(kept))
        assert found.dtype == dtype
        torch.testing.assert_close(found, torch.from_numpy(expected).to(dtype), rtol=0, atol=0)


def test_merging_keeps_the_same_tokens_and_asks_for_features() -> None:
    for name in ("specvlm", "uniform", "floc", "attention/spread"):
        plain, merged = find_policy(name), find_policy(f"{name}+merge")
        assert (merged.name, merged.merges, merged.needs_features) == (f"{name}+merge", True, True)
        assert (merged.needs, merged.per_video) == (plain.needs, plain.per_video)
        assert select(f"{name}+merge") == select(name)


@pytest.mark.parametrize(
    "name",
    ["best", "attention/best", "best/top-k", "attention/", "specvlm+", "specvlm+merge+merge"],
)
def test_what_is_no_policy_is_refused_with_everything_that_is(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"must be one of specvlm, .* SCORER/SELECTOR of "
    ) as error:
        check_policy(name, "policy")
    for part in (*policy_names(), *all_scorers(), *all_selectors(), "+merge"):
        assert part in str(error.value)


def test_features_that_are_not_finite_are_reported_and_tokens_spaced_evenly() -> None:
    vectors = torch.from_numpy(features_of(N))
    vectors[7, 2] = torch.nan
    for name in ("change", "evs", "floc", "scope", "attention-change-spread"):
        found = select_video_tokens(
            torch.from_numpy(SCORES),
            retention=0.2,
            top_p=0.4,
            policy=name,
            grid=GRID,
            features=vectors,
        )
        assert found.fallback
        assert not found.stage_one.any()
        assert found.indices.tolist() == select("uniform")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": None}, "features=None must be a tensor for policy 'floc'"),
        ({"features": torch.ones(59, 4)}, r"features of shape \[59, 4\] must be \[60, d\]"),
        ({"features": torch.ones(60)}, r"features of shape \[60\]"),
        ({"grid": None}, r"grid=None must be \(frames, rows, columns\) for policy 'floc'"),
    ],
)
def test_an_input_that_is_missing_or_does_not_fit_is_named(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        select("floc", **given)


def test_every_video_is_compared_with_itself_alone() -> None:
    vectors, scores = features_of(2 * N), np.concatenate([SCORES, SCORES[::-1]])
    for name in ("change", "scope", "attention-change-spread"):
        asked = {"retention": 0.2, "top_p": 0.4, "policy": name, "grids": [GRID, GRID]}
        found = select_per_video(
            torch.from_numpy(scores), [N, N], features=torch.from_numpy(vectors), **asked
        )
        expected = reference_selection.select_per_video(scores, [N, N], features=vectors, **asked)
        assert found.indices.tolist() == expected.indices.tolist()
        assert int((found.indices < N).sum()) == 12


@pytest.mark.parametrize(
    ("lengths", "at_most", "budgets"), [([100, 50], 7, [5, 2]), ([100, 50], 1, [1, 0])]
)
def test_a_limit_is_shared_as_the_reference_shares_it(
    lengths: list[int], at_most: int, budgets: list[int]
) -> None:
    assert video_token_budgets(lengths, 0.1, at_most) == budgets
    assert reference_selection.video_token_budgets(lengths, 0.1, at_most) == budgets
    together, each = find_policy("specvlm"), find_policy("uniform-grid")
    assert kept_tokens(lengths, together, 0.1, at_most) == min(15, at_most)
    assert kept_tokens(lengths, each, 0.1, at_most) == at_most
    grids = [(1, 1, length) for length in lengths]
    found = select_per_video(
        torch.ones(150),
        lengths,
        retention=0.1,
        top_p=0.4,
        policy="uniform-grid",
        grids=grids,
        at_most=at_most,
    )
    assert [int((found.indices < 100).sum()), int((found.indices >= 100).sum())] == budgets


def test_a_function_of_inputs_gets_what_it_asked_for_and_nothing_else() -> None:
    seen: list[Inputs] = []

    @policy("mine", needs={"layer_scores", "last_row_scores", "frame_seconds"})
    def mine(inputs: Inputs, budget: int) -> torch.Tensor:
        seen.append(inputs)
        return torch.arange(budget)

    chosen = mine.specvlm_policy
    assert chosen.needs_scores
    assert chosen.per_video
    assert not chosen.needs_grid
    layout = find_video(80, [[(2, 2 + N - 1)]], 8, [GRID], 0, [0.5])
    more = {"layer_scores": torch.ones(3, N), "last_row_scores": torch.ones(N)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specvlm_sglang.pruning.selection.find_policy", lambda name: chosen)
        found = select_in_layout(torch.ones(N), layout, chosen, 0.1, 0.4, **more)
    (inputs,) = seen
    assert found.indices.tolist() == list(range(6))
    assert inputs.layer_scores.shape == (3, N)
    assert inputs.last_row_scores.tolist() == [1] * N
    assert inputs.frame_seconds.tolist() == [0, 0.5, 1, 1.5]
    assert inputs.scores.tolist() == [0] * N
    assert inputs.grid is inputs.features is None


def test_times_that_nobody_knows_are_an_error() -> None:
    @policy("timed", needs={"frame_seconds"})
    def timed(inputs: Inputs, budget: int) -> torch.Tensor:
        return torch.arange(budget)

    layout = find_video(80, [[(2, 2 + N - 1)]], 8, [GRID])
    with pytest.raises(ValueError, match="'timed' needs videos with known frame times"):
        select_in_layout(torch.ones(N), layout, timed.specvlm_policy, 0.1, 0.4)


@pytest.mark.parametrize("make", [policy, scorer, selector])
def test_a_need_that_does_not_exist_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="'mine' needs 'pixels'; it may need features, ") as error:
        make("mine", needs={"scores", "pixels"})
    assert all(need in str(error.value) for need in INPUTS)
    with pytest.raises(ValueError, match="must be lower-case words"):
        make("Mine", needs={"scores"})


def test_needs_are_stated_in_one_way() -> None:
    with pytest.raises(ValueError, match="needs_grid is for functions without needs"):
        policy("mine", needs={"scores"}, needs_grid=True)


def test_a_users_scorer_and_selector_go_with_the_projects(own) -> None:
    own(
        """
@scorer("late")
def late(inputs):
    return torch.arange(inputs.n, device=inputs.device).float()

@selector("every-second")
def every_second(worth, inputs, budget):
    return worth.argsort(descending=True)[: 2 * budget : 2]
"""
    )
    assert policy_names() == tuple(reference_selection.POLICIES)
    assert select("late/top-k", 0.1) == list(range(54, 60))
    assert select("late/every-second", 0.1) == [49, 51, 53, 55, 57, 59]
    best = np.argsort(-SCORES)[:12:2]
    assert select("attention/every-second", 0.1) == sorted(best.tolist())
    assert select("late/every-second", 1.0) == list(range(60))
    with FakeTensorMode(), NoHostSync():
        found = select_video_tokens(
            torch.empty(N, device="cuda"), retention=0.1, top_p=0.4, policy="late/every-second"
        )
    assert found.indices.shape == (6,)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("@scorer('s')\ndef s(i): return None", "s/top-k", "scorer 's' returned NoneType"),
        (
            "@scorer('s')\ndef s(i): return torch.ones(3)",
            "s/top-k",
            r"scorer 's' returned shape \[3\], not \[60\]",
        ),
        (
            "@scorer('s')\ndef s(i): return torch.ones(i.n, dtype=torch.int64)",
            "s/top-k",
            "scorer 's' returned torch.int64, not a float32 tensor",
        ),
        (
            "@selector('s')\ndef s(w, i, b): return torch.zeros(b, dtype=torch.int64)",
            "attention/s",
            "selector 's' returned 1 distinct tokens below 60, not 12",
        ),
    ],
)
def test_a_part_that_returns_something_else_is_named(own, text, name, message) -> None:
    own(text)
    with pytest.raises(ValueError, match=message):
        select(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@scorer('change')\ndef s(i): ...", "scorer name 'change' is taken"),
        ("@selector('top-k')\ndef s(w, i, b): ...", "selector name 'top-k' is taken"),
        (
            "@scorer('s')\ndef a(i): ...\n@scorer('s')\ndef b(i): ...",
            "two scorers are named 's'",
        ),
    ],
)
def test_a_part_whose_name_is_taken_is_refused_at_start(own, text, message) -> None:
    own(text)
    with pytest.raises(ValueError, match=message):
        policy_names()
