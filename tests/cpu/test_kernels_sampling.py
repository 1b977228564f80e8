"""Sampling verification: coin for coin the reference's, and distributed as the target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.trees import DraftTree
from reference.verification import verify_by_sampling
from specvlm_sglang.cpu.kernels.sampling import tree_speculative_sampling_target_only
from tests.support.draft_trees import TREE_SHAPES, DraftedTrees, draft

VOCABULARY = 13
GRAIN = 4096
"""Probabilities and coins are multiples of its inverse: float32 and float64 sums are exact."""


def exact_distributions(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Float32 ``[*shape, VOCABULARY]``, about a third of it zeros."""
    weights = torch.randint(-400, 800, (*shape, VOCABULARY), generator=generator).clamp(min=0)
    weights = weights * (GRAIN - 1) // weights.sum(-1, keepdim=True).clamp(min=1)
    weights[..., 5] += GRAIN - weights.sum(-1)
    return weights.float() / GRAIN


def exact_coins(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(0, GRAIN, shape, generator=generator).float() / GRAIN


def target_of(tree: DraftTree, probabilities: torch.Tensor):
    """The target's next-token function on the tree's paths, from its rows per node."""
    rows = {tree.path(node): row.double().numpy() for node, row in enumerate(probabilities)}
    return rows.__getitem__


@pytest.mark.parametrize("thresholds", [(1.0, 1.0), (0.25, 1.0), (1.0, 0.5), (0.0, 1.0)], ids=str)
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("shape", TREE_SHAPES, ids=str)
def test_paths_and_tokens_equal_the_references_coin_for_coin(
    shape: tuple[int, int, int], batch: int, thresholds: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(batch)
    for seed in range(8):
        trees = draft(batch, shape, vocabulary=VOCABULARY, seed=seed)
        target = exact_distributions(generator, batch, trees.nodes)
        coins = exact_coins(generator, batch, trees.nodes)
        final_coins = exact_coins(generator, batch)
        predicts, accept_index, accepted = trees.outputs()
        tree_speculative_sampling_target_only(
            predicts,
            accept_index,
            accepted,
            trees.tokens,
            *trees.links,
            coins,
            final_coins,
            target,
            torch.zeros_like(target),
            *thresholds,
        )
        for request in range(batch):
            tree = trees.reference(request)
            expected = verify_by_sampling(
                tree,
                target_of(tree, target[request]),
                coins=coins[request].double().numpy(),
                final_coin=float(final_coins[request]),
                threshold_single=thresholds[0],
                threshold_acc=thresholds[1],
            )
            path = accept_index[request, : int(accepted[request]) + 1].long()
            assert (path - request * trees.nodes).tolist() == list(expected.nodes)
            assert predicts[path].tolist() == list(expected.tokens)
            assert (accept_index[request, len(path) :] == -1).all()


SAMPLES = 40_000
CRITICAL = 1e-4
"""Chance that a correct sampler fails; the seed is fixed, so it either always does or never."""


def sample_one_tree(threshold_acc: float) -> tuple[DraftedTrees, torch.Tensor, list[list[int]]]:
    """The same tree verified `SAMPLES` times with fresh coins: target rows and emitted tokens."""
    trees = draft(1, (2, 3, 6), vocabulary=VOCABULARY, seed=3)
    generator = torch.Generator().manual_seed(7)
    target = torch.randn(trees.nodes, VOCABULARY, generator=generator).softmax(1)
    # Children as likely as a good draft makes them, so that most paths are long.
    for node, parent in enumerate(trees.parents(0).tolist()):
        if node:
            target[parent, trees.tokens[0, node]] += 0.3
    target /= target.sum(1, keepdim=True)
    many = DraftedTrees(
        trees.topk,
        trees.steps,
        trees.nodes,
        *(
            tensor.repeat(SAMPLES, 1)
            for tensor in (trees.parent_list, trees.selected, trees.tokens)
        ),
    )
    predicts, accept_index, accepted = many.outputs()
    probabilities = target.repeat(SAMPLES, 1, 1)
    tree_speculative_sampling_target_only(
        predicts,
        accept_index,
        accepted,
        many.tokens,
        *many.links,
        torch.rand(SAMPLES, trees.nodes, generator=generator),
        torch.rand(SAMPLES, generator=generator),
        probabilities,
        torch.zeros_like(probabilities),
        threshold_acc=threshold_acc,
    )
    emitted = [[int(predicts[row]) for row in rows if row >= 0] for rows in accept_index.tolist()]
    return trees, target, emitted


def chi_square_p_value(observed: np.ndarray, probabilities: np.ndarray) -> float:
    """By simulation: no assumption about small expected counts."""
    count = int(observed.sum())
    expected = count * probabilities
    simulated = np.random.default_rng(0).multinomial(count, probabilities, size=20_000)
    statistic, null = (
        (((counts - expected) ** 2) / expected).sum(axis=-1) for counts in (observed, simulated)
    )
    return float((null >= statistic).mean())


def p_values(threshold_acc: float) -> list[float]:
    """Of each emitted position, given the tokens before it that lie on the tree."""
    trees, target, emitted = sample_one_tree(threshold_acc)
    tree = trees.reference(0)
    values = []
    for node in range(trees.nodes):
        before = list(tree.path(node)[1:])
        following = [
            tokens[len(before)]
            for tokens in emitted
            if len(tokens) > len(before) and tokens[: len(before)] == before
        ]
        if len(following) >= 500:
            row = target[node].double().numpy()
            counts = np.bincount(following, minlength=VOCABULARY)
            values.append(chi_square_p_value(counts, row / row.sum()))
    return values


def test_every_emitted_position_is_distributed_as_the_target() -> None:
    values = p_values(threshold_acc=1.0)
    assert len(values) >= 4
    assert min(values) > CRITICAL


def test_the_distribution_test_notices_a_sampler_that_accepts_too_much() -> None:
    assert min(p_values(threshold_acc=0.8)) <= CRITICAL


def test_a_child_without_target_mass_is_never_accepted() -> None:
    trees = draft(1, (3, 2, 10), vocabulary=VOCABULARY)
    target = torch.full((1, 10, VOCABULARY), 1.0)
    target[0, :, trees.tokens[0, 1:]] = 0
    target /= target.sum(-1, keepdim=True)
    predicts, accept_index, accepted = trees.outputs()
    tree_speculative_sampling_target_only(
        predicts,
        accept_index,
        accepted,
        trees.tokens,
        *trees.links,
        torch.zeros(1, 10),
        torch.zeros(1),
        target,
        torch.zeros_like(target),
        threshold_single=0.0,
    )
    assert accepted.tolist() == [0]
    assert target[0, 0, int(predicts[0])] > 0


@pytest.mark.parametrize("final_coin", [0.0, 1 - 2**-24, 1.0])
def test_the_last_token_always_has_target_mass(final_coin: float) -> None:
    trees = draft(1, (1, 1, 2), vocabulary=VOCABULARY)
    target = torch.zeros(1, 2, VOCABULARY)
    target[..., 3], target[..., 8] = 0.25, 0.75
    predicts, accept_index, accepted = trees.outputs()
    tree_speculative_sampling_target_only(
        predicts,
        accept_index,
        accepted,
        torch.zeros(1, 2, dtype=torch.int64),
        *trees.links,
        torch.zeros(1, 2),
        torch.tensor([final_coin]),
        target,
        torch.zeros_like(target),
    )
    assert int(predicts[0]) == (3 if final_coin == 0 else 8)


def test_where_rounding_refuses_all_of_the_mass_the_token_is_the_targets() -> None:
    trees = draft(1, (1, 1, 2), vocabulary=VOCABULARY)
    token = int(trees.tokens[0, 1])
    target = torch.zeros(1, 2, VOCABULARY)
    target[..., token] = 1 - 2**-20
    predicts, accept_index, accepted = trees.outputs()
    tree_speculative_sampling_target_only(
        predicts,
        accept_index,
        accepted,
        trees.tokens,
        *trees.links,
        torch.full((1, 2), 1 - 2**-24),
        torch.tensor([0.5]),
        target,
        torch.zeros_like(target),
    )
    assert accepted.tolist() == [0]
    assert int(predicts[0]) == token
