"""Scores of one request's video tokens: which rows are captured, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel

from specvlm_sglang.copies import to_device
from specvlm_sglang.pruning.layout import VideoLayout
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores, mean_scores
from specvlm_sglang.scoring.capture import CapturedRows, QueryCapture


class Scorer:
    """The target's attention to the video, from captured queries and the keys in its KV pool.

    Parameters
    ----------
    runner
        SGLang's ``ModelRunner`` of the target.
    device
        Where it computes.

    Attributes
    ----------
    capture
        The rows that the next forward pass keeps.
    """

    def __init__(self, runner: Any, device: torch.device | str) -> None:
        self._runner = runner
        self._device = device
        self.capture = QueryCapture()

    def watch(self) -> None:
        """Wrap the target's attention backend, before its graphs are captured."""
        self.capture.watch(self._runner.attn_backend)

    def arm(self, passes: Iterable[tuple[CapturedRows, range, int]]) -> None:
        """Keep query rows of the next forward pass.

        Parameters
        ----------
        passes
            For each request: what takes its rows, their positions in the prompt, and the place in
            the pass of the request's position 0.
        """
        self.capture.arm(
            [
                (rows, start + wanted.start, start + wanted.stop)
                for rows, wanted, start in passes
                if wanted
            ]
        )

    def add_up(
        self, total: torch.Tensor, rows: CapturedRows, row: int, layout: VideoLayout
    ) -> None:
        """Add this rank's attention of the query rows to each video token, float32 ``[N]``.

        Parameters
        ----------
        total
            Added to in place.
        rows
            Captured of the request.
        row
            Its ``req_pool_idx``.
        layout
            Its prompt's.

        Raises
        ------
        RuntimeError
            Rows are missing.
        """
        if rows.rows() != layout.query_rows:
            raise RuntimeError(f"captured {rows.rows()} of {layout.query_rows} query rows")
        runner = self._runner
        slots = runner.req_to_token_pool.req_to_token[row, : layout.length].long()
        query_positions = torch.arange(layout.query_start, layout.query_stop, device=self._device)
        video_positions = to_device(torch.from_numpy(layout.video_positions), self._device)
        for layer_id, chunks in rows.queries.items():
            facts = self.capture.layers[layer_id]
            accumulate_layer_scores(
                total,
                torch.cat(chunks),
                runner.token_to_kv_pool.get_key_buffer(layer_id),
                slots,
                query_positions,
                video_positions,
                facts.scaling,
                logit_cap=facts.logit_cap or None,
                key_scale=facts.key_scale,
            )

    def mean(self, total: torch.Tensor, rows: CapturedRows, layout: VideoLayout) -> torch.Tensor:
        """Mean attention over layers, rows and the heads of all ranks, float32 ``[N]``."""
        parallel = get_parallel()
        return mean_scores(
            total,
            layers=len(rows.queries),
            rows=layout.query_rows,
            heads=rows.heads() * parallel.tp_size,
            all_reduce=parallel.tp_group.all_reduce if parallel.tp_size > 1 else None,
        )
