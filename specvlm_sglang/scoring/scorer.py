"""Scores of one request's video tokens: which rows are scored, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel

from specvlm_sglang.copies import to_device
from specvlm_sglang.pruning.layout import VideoLayout
from specvlm_sglang.report.phases import PhaseClock
from specvlm_sglang.scoring.attention_scores import mean_scores
from specvlm_sglang.scoring.running import RowsOfPass, RunningScorer, RunningScores


class Scorer:
    """The target's attention to the video, summed while the target prefills.

    Parameters
    ----------
    runner
        SGLang's ``ModelRunner`` of the target.
    phases
        Counts the time.
    device
        Where it computes.

    Attributes
    ----------
    running
        Scores the rows of the next forward pass.
    """

    def __init__(self, runner: Any, phases: PhaseClock, device: torch.device | str) -> None:
        self._runner = runner
        self._device = device
        self.running = RunningScorer(self._keys_of, partial(phases.aside, "scoring"))

    def _keys_of(self, layer_id: int) -> torch.Tensor:
        keys: torch.Tensor = self._runner.token_to_kv_pool.get_key_buffer(layer_id)
        return keys

    def watch(self) -> None:
        """Wrap the target's attention backend, before its graphs are captured."""
        self.running.watch(self._runner.attn_backend)

    def arm(self, passes: Iterable[tuple[RunningScores, VideoLayout, range, int, int]]) -> None:
        """Score query rows of the next forward pass.

        Parameters
        ----------
        passes
            For each request: what its scores are added to, its prompt's layout, the positions of
            the rows, its ``req_pool_idx``, and the place in the pass of its position 0.
        """
        plan = []
        for scores, layout, wanted, row, start in passes:
            if wanted:
                try:
                    plan.append(self._rows(scores, layout, wanted, row, start))
                except Exception as error:
                    scores.failure = error.with_traceback(None)
        self.running.arm(plan)

    def _rows(
        self, scores: RunningScores, layout: VideoLayout, wanted: range, row: int, start: int
    ) -> RowsOfPass:
        table = self._runner.req_to_token_pool.req_to_token
        return RowsOfPass(
            scores,
            start + wanted.start,
            start + wanted.stop,
            slots=table[row, : wanted.stop].long(),
            query_positions=torch.arange(wanted.start, wanted.stop, device=self._device),
            video_positions=to_device(torch.from_numpy(layout.video_positions), self._device),
            has_last=wanted.stop == layout.query_stop,
        )

    def check(self, scores: RunningScores, layout: VideoLayout) -> None:
        """Raise what went wrong with a request's scores.

        Raises
        ------
        RuntimeError
            Rows are missing, or no layer could be scored.
        """
        if scores.failure is not None:
            raise scores.failure
        if not scores.layers and self.running.skipped_layers:
            skipped = len(self.running.skipped_layers)
            raise RuntimeError(
                f"none of the target's {skipped} attention layers sees the whole prompt without "
                "sinks: nothing scores the video"
            )
        if scores.rows != layout.query_rows:
            raise RuntimeError(f"scored {scores.rows} of {layout.query_rows} query rows")

    def means(self, scores: RunningScores, layout: VideoLayout) -> dict[str, torch.Tensor]:
        """Mean attention over layers, rows and the heads of all ranks.

        Returns
        -------
        dict
            ``scores``, float32 ``[N]``, and what else ``scores.kinds`` names
            (`specvlm_sglang.policies.Inputs`).
        """
        nothing = torch.zeros(layout.video_tokens, dtype=torch.float32, device=self._device)
        total, layers, rows = scores.total, len(scores.layers), layout.query_rows
        found = {}
        if "layer_scores" in scores.kinds:
            # Every layer that is scored has a row, on each rank, also where something failed.
            every = set(range(self._runner.model_config.num_hidden_layers))
            scored = sorted(every - self.running.skipped_layers)
            stacked = torch.stack([scores.by_layer.get(layer, nothing) for layer in scored])
            found["layer_scores"] = self._mean(stacked, scores, layers=1, rows=rows)
            total = stacked.sum(0)
        if "last_row_scores" in scores.kinds:
            last = nothing if scores.last_row is None else scores.last_row
            found["last_row_scores"] = self._mean(last, scores, layers=layers, rows=1)
        total = nothing if total is None else total
        return {"scores": self._mean(total, scores, layers=layers, rows=rows), **found}

    def _mean(
        self, total: torch.Tensor, scores: RunningScores, *, layers: int, rows: int
    ) -> torch.Tensor:
        parallel = get_parallel()
        return mean_scores(
            total,
            layers=layers,
            rows=rows,
            heads=scores.heads * parallel.tp_size,
            all_reduce=parallel.tp_group.all_reduce if parallel.tp_size > 1 else None,
        )
