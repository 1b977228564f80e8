"""Trains one model of the pair.

    python -m benchmarks.tinyvid.train target --out runs/target
    python -m benchmarks.tinyvid.train draft --teacher runs/target/model --out runs/draft

The target learns from exact descriptions; the draft also from the target's probabilities. A run
that was stopped goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.tinyvid.data import Batch, make_batch
from benchmarks.tinyvid.forward import EAGER, Layers, compiled, text_hidden, vision_features
from benchmarks.tinyvid.labels import PROPERTIES
from benchmarks.tinyvid.model import SIZES, new_model, save
from benchmarks.tinyvid.muon import Muon
from benchmarks.tinyvid.schedule import batch_shape, learning_rate
from specvlm_sglang.tools.demo.world.language import KINDS

COLUMNS = (
    "step",
    "seconds",
    "loss",
    "seeing",
    "tokens_right",
    *(f"{k}_right" for k in KINDS),
    "distance",
)
_AUXILIARY_WEIGHT = 2.0
_EXACT_WEIGHT = 0.2
"""Weight of the exact answers beside the teacher's probabilities."""
_LOG_EVERY = 25


class Trainer:
    """A model, its optimisers and its place in the run.

    Parameters
    ----------
    size : str
        Key of `SIZES`.
    steps, seed : int
        Length of the run; seed of weights and clips.
    rate : float
        Peak learning rate.
    start : Path, optional
        Checkpoint directory whose weights the run begins with, instead of random ones.
    teacher : model, optional
        Whose probabilities the model learns, beside the exact answers.
    layers : Layers
        How the blocks of both run.
    """

    def __init__(
        self,
        size: str,
        *,
        steps: int,
        seed: int,
        rate: float,
        start: Path | None = None,
        teacher: Qwen2_5_VLForConditionalGeneration | None = None,
        layers: Layers = EAGER,
    ) -> None:
        self.steps, self.seed, self.rate, self.step = steps, seed, rate, 0
        self.fresh = start is None
        self.model = new_model(SIZES[size], seed) if start is None else _trained(start)
        self.teacher, self.layers = teacher, layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.seeing = nn.Linear(SIZES[size].hidden, sum(PROPERTIES.values()))
        self.optimisers = list(_optimisers(self.model, self.seeing))

    def advance(self) -> dict[str, float]:
        """Take one step; its losses and shares of right tokens (NaN where none was due)."""
        shape = batch_shape(self.seed, self.step, self.steps, fresh=self.fresh)
        batch = make_batch(shape, self.seed, self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate * learning_rate(self.step, self.steps)
            optimiser.zero_grad(set_to_none=True)
        loss, numbers = self._loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        return numbers

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features, logits = answer_logits(self.model, batch, self.layers)
            seen = F.linear(features, self.seeing.weight, self.seeing.bias)
        goals = batch.goals[batch.goals >= 0]
        logits = logits.float()
        answer = F.cross_entropy(logits, goals)
        seeing = _seeing_loss(seen.float(), batch.labels)
        loss, distance = answer, torch.tensor(float("nan"))
        if self.teacher is not None:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                taught = answer_logits(self.teacher, batch, self.layers)[1].float()
            distance = F.kl_div(
                logits.log_softmax(-1), taught.log_softmax(-1), log_target=True, reduction="none"
            )
            distance = distance.sum(-1).mean()
            loss = _EXACT_WEIGHT * answer + distance
        right = (logits.argmax(-1) == goals).float()
        kinds = batch.kinds[batch.goals >= 0]
        numbers = {
            "loss": answer.item(),
            "seeing": seeing.item(),
            "tokens_right": right.mean().item(),
            "distance": distance.item(),
            **{f"{kind}_right": right[kinds == i].mean().item() for i, kind in enumerate(KINDS)},
        }
        return loss + _AUXILIARY_WEIGHT * seeing, numbers

    def write(self, path: Path) -> None:
        """Write a checkpoint; a crash leaves the old one."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "seeing": self.seeing.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def read(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.seeing.load_state_dict(state["seeing"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def answer_logits(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, layers: Layers = EAGER
) -> tuple[Tensor, Tensor]:
    """Video features, and logits at the rows of `batch.goals` that are due, in row order."""
    features = vision_features(model, batch.patches, layers)
    # Autocast leaves embeddings in float32; the residual stream takes the features' dtype, as it
    # does where the pair is served.
    embeddings = model.model.language_model.embed_tokens(batch.ids).to(features.dtype)
    embeddings = torch.cat(
        [
            embeddings[:, : batch.video.start],
            features,
            embeddings[:, batch.video.stop :],
        ],
        dim=1,
    )
    hidden = text_hidden(model, embeddings, batch.positions, batch.mask, layers)
    return features, F.linear(hidden[batch.goals >= 0], model.lm_head.weight)


def _seeing_loss(seen: Tensor, labels: Tensor) -> Tensor:
    losses = [
        F.cross_entropy(part.flatten(0, 1), labels[..., index].flatten(), ignore_index=-1)
        for index, part in enumerate(seen.split(list(PROPERTIES.values()), dim=-1))
    ]
    return torch.stack(losses).mean()


def _optimisers(model: nn.Module, seeing: nn.Module) -> Iterator[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    inside = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and ("layers." in name or "blocks." in name or "merger." in name)
    ]
    chosen = {id(parameter) for parameter in inside}
    rest = [p for p in [*model.parameters(), *seeing.parameters()] if id(p) not in chosen]
    yield Muon(inside, weight_decay=0.02)
    yield torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.98), fused=True)


def _trained(directory: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)


def _wait_while(path: Path | None, console: Console) -> None:
    if path is not None and path.exists():
        console.print(f"paused while {path} exists")
        while path.exists():
            time.sleep(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tinyvid.train",
        description="Train a model of the tiny pair; resumes from OUT/checkpoint.pt if it exists.",
    )
    parser.add_argument("size", choices=SIZES, help="which model of the pair")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--start", type=Path, help="checkpoint directory to begin with")
    parser.add_argument("--teacher", type=Path, help="checkpoint directory to distil from")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--compile", action="store_true", help="fuse the blocks: about twice as fast"
    )
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument(
        "--pause-file",
        type=Path,
        default=os.environ.get("TINYVID_PAUSE_FILE"),
        help="wait between steps while this file exists (environment: TINYVID_PAUSE_FILE)",
    )
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    return arguments


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    console = Console()
    teacher = None if arguments.teacher is None else _trained(arguments.teacher).eval()
    trainer = Trainer(
        arguments.size,
        steps=arguments.steps,
        seed=arguments.seed,
        rate=arguments.rate,
        start=arguments.start,
        teacher=teacher,
        layers=compiled() if arguments.compile else EAGER,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = arguments.out / "checkpoint.pt", arguments.out / "log.csv"
    if checkpoint.exists():
        trainer.read(checkpoint)
        console.print(f"goes on from step {trainer.step}")
    _forget_later_rows(log, trainer.step)
    started = written = time.monotonic()
    first, recent = trainer.step, list[dict[str, float]]()
    while trainer.step < trainer.steps:
        _wait_while(arguments.pause_file, console)
        recent.append(trainer.advance())
        if trainer.step % _LOG_EVERY == 0 or trainer.step == trainer.steps:
            elapsed = time.monotonic() - started
            mean = {key: _mean([numbers[key] for numbers in recent]) for key in recent[0]}
            row = {"step": trainer.step, "seconds": round(elapsed, 1), **mean}
            with log.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)
            left = elapsed / (trainer.step - first) * (trainer.steps - trainer.step) / 60
            facts = " ".join(f"{kind} {mean[f'{kind}_right']:.2f}" for kind in KINDS)
            console.print(
                f"{trainer.step}/{trainer.steps} {elapsed:.0f}s left {left:.0f}min "
                f"loss {mean['loss']:.3f} seeing {mean['seeing']:.3f} {facts}",
                soft_wrap=True,
            )
            recent.clear()
        if time.monotonic() - written > 60 * arguments.checkpoint_minutes:
            trainer.write(checkpoint)
            written = time.monotonic()
    trainer.write(checkpoint)
    save(arguments.out / "model", trainer.model.to(torch.bfloat16))
    console.print(f"wrote {arguments.out / 'model'}")


def _forget_later_rows(log: Path, step: int) -> None:
    """Keep a log's rows up to a step, or start a log."""
    rows = log.read_text().splitlines()[1:] if log.exists() else []
    kept = [row for row in rows if int(row.split(",")[0]) <= step]
    log.write_text("\n".join([",".join(COLUMNS), *kept]) + "\n")


def _mean(values: list[float]) -> float:
    known = [value for value in values if value == value]
    return round(sum(known) / len(known), 5) if known else float("nan")


if __name__ == "__main__":
    main()
