"""Random draft trees from SGLang's own bookkeeping, and the same trees for the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from sglang.srt.speculative.eagle_utils import organize_draft_results
from sglang.srt.speculative.spec_utils import select_top_k_tokens

from reference.trees import DraftTree, parents_from_selection, retrieval_arrays

TREE_SHAPES = [(1, 1, 2), (1, 5, 6), (1, 4, 3), (2, 3, 6), (3, 2, 10), (4, 1, 4), (4, 5, 16)]
"""``(topk, steps, nodes)``: chains, a chain cut short, and trees."""


@dataclass
class DraftedTrees:
    """The trees of a batch.

    ``parent_list`` and ``selected`` describe them as SGLang's drafting does; ``tokens`` is int64
    ``[batch, nodes]``, root included.
    """

    topk: int
    steps: int
    nodes: int
    parent_list: torch.Tensor
    selected: torch.Tensor
    tokens: torch.Tensor
    links: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        arrays = [retrieval_arrays(self.parents(i)) for i in range(len(self.tokens))]
        rows, children, siblings = (
            torch.stack([torch.from_numpy(array[k]) for array in arrays]) for k in range(3)
        )
        first_row = torch.arange(len(self.tokens)).view(-1, 1) * self.nodes
        self.links = (rows + first_row, children, siblings)

    def parents(self, request: int):
        """The reference's parents of one request's tree."""
        return parents_from_selection(
            self.parent_list[request].tolist() or [-1], self.selected[request].tolist(), self.topk
        )

    def reference(self, request: int) -> DraftTree:
        """One request's tree for the reference; its prefix is the root alone."""
        tokens = self.tokens[request]
        return DraftTree((int(tokens[0]),), tokens.numpy(), self.parents(request))

    def outputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Fresh buffers as SGLang's verification allocates them."""
        batch = len(self.tokens)
        return (
            torch.zeros(batch * self.nodes, dtype=torch.int32),
            torch.full((batch, self.steps + 1), -1, dtype=torch.int32),
            torch.zeros(batch, dtype=torch.int32),
        )


def draft(
    batch: int, shape: tuple[int, int, int], *, vocabulary: int = 40, seed: int = 0
) -> DraftedTrees:
    """Draft from random distributions; siblings have different tokens."""
    topk, steps, nodes = shape
    generator = torch.Generator().manual_seed(seed)
    scores: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    parents: list[torch.Tensor] = []
    beams = None
    for step in range(steps):
        rows = batch if step == 0 else batch * topk
        logits = 2 * torch.randn(rows, vocabulary, generator=generator)
        best = logits.softmax(-1).topk(topk)
        _, _, beams, (score, token, parent) = select_top_k_tokens(
            step, best.values, best.indices, None, beams, topk
        )
        scores.append(score)
        tokens.append(token)
        parents.append(parent)
    parent_list, selected, drafted = organize_draft_results(scores, tokens, parents, nodes)
    roots = torch.randint(0, vocabulary, (batch, 1), generator=generator)
    return DraftedTrees(
        topk, steps, nodes, parent_list, selected, torch.cat((roots, drafted), dim=1)
    )
