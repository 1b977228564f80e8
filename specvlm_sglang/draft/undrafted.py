"""What stands for drafts in a round without any: no request of the batch has one."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.speculative.eagle_utils import organize_draft_results
from sglang.srt.speculative.spec_utils import select_top_k_tokens

from specvlm_sglang.copies import to_device


class Undrafted:
    """Chains or trees of token 0, of the shape that drafting would give; costs no forward pass.

    The target judges them as any other: token 0 is accepted where it is right.

    Parameters
    ----------
    topk, steps, nodes
        ``--speculative-eagle-topk``, ``--speculative-num-steps``,
        ``--speculative-num-draft-tokens``. Of 0 steps there is nothing to draft.
    device
        Where drafts lie.
    """

    def __init__(self, *, topk: int, steps: int, nodes: int, device: torch.device | str) -> None:
        self._topk = topk
        scores: Any = None
        drawn: list[Any] = []
        for step in range(steps):
            rows = 1 if step == 0 else topk
            # Falling, so that no two nodes tie.
            likely = torch.arange(topk, 0, -1, dtype=torch.float32).expand(rows, -1) / (topk + 1)
            tokens = torch.zeros((rows, topk), dtype=torch.int64)
            _, _, scores, level = select_top_k_tokens(step, likely, tokens, None, scores, topk)
            drawn.append(level)
        if steps == 0:
            self._shape: tuple[torch.Tensor, ...] = (torch.empty(0, device=device),)
            return
        shape = organize_draft_results(
            [level[0] for level in drawn],
            [level[1] for level in drawn],
            [level[2] for level in drawn],
            nodes,
        )
        self._shape = tuple(to_device(tensor, device) for tensor in shape)

    def drafts(self, batch_size: int) -> tuple[Any, Any, Any, None]:
        """What `draft_forward` returns: parents, score indices and tokens, no probabilities."""
        parents, scores, tokens = (
            tensor.expand(batch_size, -1).contiguous() for tensor in self._shape
        )
        return parents, scores, tokens, None

    def hand_on(self, draft_input: Any, batch_size: int) -> None:
        """Give SGLang's ``EagleDraftInput`` a first drafted token, which nobody will read."""
        device = self._shape[0].device
        draft_input.topk_p = torch.zeros((batch_size, self._topk), device=device)
        draft_input.topk_index = torch.zeros(
            (batch_size, self._topk), dtype=torch.int64, device=device
        )
