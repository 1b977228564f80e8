"""Greedy verification of draft trees."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def verify_tree_greedy(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
    topk: int = -1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Follow the target's argmax from the root of each tree as far as the drafts agree.

    Parameters
    ----------
    predicts
        Int32 ``[batch * n]``; written at the accepted nodes: the token that follows each.
    accept_index
        Int32 ``[batch, depth]``; the accepted path is written from the left, root first.
    accept_token_num
        Int32 ``[batch]``; written: accepted drafts, without root and bonus.
    candidates
        Int64 ``[batch, n]``: the nodes' tokens.
    retrieve_index, retrieve_next_token, retrieve_next_sibling
        Int64 ``[batch, n]``: row in the verified batch, first child, next sibling, -1 for none.
    target_predict
        Int64 ``[batch, n]``: the target's argmax after each node.
    topk
        Not used; SGLang passes it.

    Returns
    -------
    tuple of torch.Tensor
        ``predicts``, ``accept_index`` and ``accept_token_num``.

    Notes
    -----
    Source: ``kernels.ops.speculative.spec_tree.verify_tree_greedy_func``.
    """
    tokens, rows = candidates.tolist(), retrieve_index.tolist()
    predicted = target_predict.view(-1).tolist()
    paths, bonus = [], []
    for request, (children, siblings) in enumerate(
        zip(retrieve_next_token.tolist(), retrieve_next_sibling.tolist(), strict=True)
    ):
        path = [0]
        while len(path) < accept_index.shape[1]:
            wanted = predicted[rows[request][path[-1]]]
            child = children[path[-1]]
            while child != -1 and tokens[request][child] != wanted:
                child = siblings[child]
            if child == -1:
                break
            path.append(child)
        paths.append(path)
        bonus.append(predicted[rows[request][path[-1]]])
    store_paths(paths, bonus, tokens, rows, predicts, accept_index, accept_token_num)
    return predicts, accept_index, accept_token_num


def store_paths(
    paths: Sequence[Sequence[int]],
    bonus: Sequence[int],
    tokens: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
) -> None:
    """Write accepted paths in the layout of SGLang's verify kernels.

    Parameters
    ----------
    paths
        Per request, the accepted nodes, root first.
    bonus
        Per request, the token after the last accepted node.
    tokens, rows
        Per request and node: its token, its row in the verified batch.
    predicts, accept_index, accept_token_num
        As in `verify_tree_greedy`; written.
    """
    out_tokens, out_rows = predicts.numpy(), accept_index.numpy()
    for request, path in enumerate(paths):
        path_rows = [rows[request][node] for node in path]
        out_rows[request, : len(path)] = path_rows
        out_tokens[path_rows] = [*(tokens[request][node] for node in path[1:]), bonus[request]]
    accept_token_num.copy_(torch.tensor([len(path) - 1 for path in paths]))
