"""Forward passes that take as long as given functions of their rows say: simulated costs.

On a CPU with tiny models verification costs next to nothing, so no choice of steps can lose. With
this plugin a server waits after each decode and verify pass of the target, and each pass of the
draft, until it has taken

    fixed + per_row * max(rows, free_rows)   milliseconds,

rows being the tokens that the pass computes. Prefills of the target are left alone. Every figure
measured so is simulated, but for the acceptance of drafts and for what our own code and SGLang's
scheduler cost.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "SPECVLM_BENCHMARK_COSTS"


@dataclass(frozen=True)
class PassCost:
    """Milliseconds of a pass.

    Attributes
    ----------
    fixed
        Of any pass: weights that are read once.
    per_row
        Of each row.
    free_rows
        Fewer rows than these cost as many: a GPU that waits for its memory computes them on the
        side.
    """

    fixed: float
    per_row: float
    free_rows: int = 0

    def of(self, rows: int) -> float:
        """Seconds of a pass of ``rows``."""
        return (self.fixed + self.per_row * max(rows, self.free_rows)) / 1e3


@dataclass(frozen=True)
class Costs:
    """Of the target's passes and of the draft's."""

    target: PassCost
    draft: PassCost

    def __str__(self) -> str:
        parts = (self.target, self.draft)
        return ";".join(f"{one.fixed},{one.per_row},{one.free_rows}" for one in parts)

    @classmethod
    def parse(cls, text: str) -> Costs:
        """The inverse of ``str``.

        Raises
        ------
        ValueError
            Not two times three numbers.
        """
        try:
            target, draft = (
                PassCost(float(fixed), float(per_row), int(free))
                for fixed, per_row, free in (part.split(",") for part in text.split(";"))
            )
        except ValueError as error:
            raise ValueError(
                f"{VARIABLE}={text!r} must be FIXED,PER_ROW,FREE_ROWS;FIXED,PER_ROW,FREE_ROWS "
                "(milliseconds, of target and draft)"
            ) from error
        return cls(target, draft)


def install(directory: Path, costs: Costs) -> dict[str, str]:
    """Write what looks like an installed SGLang plugin; the environment of a server with it."""
    metadata = directory / "specvlm_benchmark_costs-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: specvlm-benchmark-costs\n")
    (metadata / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nspecvlm_benchmark_costs = benchmarks.pacing.injected:register\n"
    )
    repository = Path(__file__).resolve().parents[2]
    return {"PYTHONPATH": f"{directory}{os.pathsep}{repository}", VARIABLE: str(costs)}


def register() -> None:
    """Entry point: make the passes of this process's models as slow as the variable says."""
    from sglang.srt.model_executor.model_runner import ModelRunner

    costs = Costs.parse(os.environ[VARIABLE])
    forward = ModelRunner.forward

    def slowed(self: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        found = forward(self, forward_batch, *args, **kwargs)
        if self.is_draft_worker or is_round(forward_batch.forward_mode):
            cost = costs.draft if self.is_draft_worker else costs.target
            left = cost.of(len(forward_batch.input_ids)) - (time.perf_counter() - started)
            time.sleep(max(0.0, left))
        return found

    ModelRunner.forward = slowed


def is_round(mode: Any) -> bool:
    """Whether a pass of the target, by SGLang's ``ForwardMode``, decodes or verifies."""
    return bool(mode.is_decode() or mode.is_target_verify())
