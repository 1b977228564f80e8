"""``specvlm doctor --video-tokens``: what a pair would need and gain, figure by figure."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specvlm_sglang.config import DEFAULT_NUM_STEPS, SpecVLMConfig
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.sizing.checkpoint import model_of
from specvlm_sglang.tools.sizing.cost import (
    HARDWARE,
    Hardware,
    SelfDraftReport,
    what_would_pruning_buy,
    what_would_self_drafting_buy,
)
from specvlm_sglang.tools.sizing.dimensions import ModelDimensions
from specvlm_sglang.tools.sizing.memory import (
    GIB,
    MAX_RUNNING_REQUESTS,
    MIB,
    NEW_TOKENS,
    TEXT_TOKENS,
    Model,
    Sizes,
    sizes,
)

ANSWER_LENGTHS = (32, 64, 128, 256, 512)
MEMORY_GIB = {"A100": 80.0, "H100": 80.0, "H200": 141.0, "L40S": 48.0}
_WIDTH = 20


@dataclass(frozen=True)
class Figure:
    """One line: its name, its value, and how it was computed."""

    name: str
    value: str
    how: str


@dataclass(frozen=True)
class Setting:
    """What is sized for.

    Attributes
    ----------
    video_tokens
        Of a request.
    tp
        GPUs that share the pair.
    gpu
        A name of `HARDWARE`.
    gpu_gib
        Memory of one.
    accept_length
        Tokens of a verify round, bonus included, assumed.
    batch
        Requests at once; None: one, and as many as fit.
    """

    video_tokens: int
    tp: int
    gpu: str
    gpu_gib: float
    accept_length: float
    batch: int | None = None

    @property
    def rates(self) -> Hardware:
        """Of all GPUs together."""
        one, tp = HARDWARE[self.gpu], self.tp
        return Hardware(one.bytes_per_second * tp, one.flops_per_second * tp, f"{tp} x {one.name}")

    def batches(self, largest: int) -> list[int]:
        """Requests at once that are looked at, of so many that fit."""
        if self.batch is not None:
            return [self.batch]
        return sorted({1, min(largest, MAX_RUNNING_REQUESTS)} - {0})

    @classmethod
    def of(cls, options: argparse.Namespace) -> Setting:
        """From the flags; raises `ToolError` for a value out of range."""
        gpu = options.gpu or "H100"
        given = {
            "--video-tokens": options.video_tokens,
            "--tp": _given(options.tp, 1),
            "--gpu-memory": _given(options.gpu_memory, MEMORY_GIB[gpu]),
            "--accept-length": _given(options.accept_length, 3.0),
            "--batch": _given(options.batch, 1),
        }
        for flag, (least, most) in _RANGES.items():
            if not least <= given[flag] <= most:
                raise ToolError(f"{flag} {given[flag]} must be {least} to {most:,}")
        video, tp, memory, accepted, _ = given.values()
        return cls(video, tp, gpu, memory, accepted, options.batch)


_RANGES = {
    "--video-tokens": (1, 10_000_000),
    "--tp": (1, 1024),
    "--gpu-memory": (4, 4096),
    "--accept-length": (1, DEFAULT_NUM_STEPS + 1),
    "--batch": (1, 100_000),
}


def _given(value: float | None, default: float) -> Any:
    return default if value is None else value


def size_pair(options: argparse.Namespace, console: Console) -> int:
    """Print the figures; returns 0 where one request fits, else 1.

    Without a draft model they are those of a target that drafts for itself.

    Raises
    ------
    ToolError
        A model that is not known, or a value out of range.
    """
    setting = Setting.of(options)
    target = model_of(options.target, "--target")
    draft = None if options.draft is None else model_of(options.draft, "--draft")
    models = [target] if draft is None else [target, draft]
    for model in models:
        heads = model.dimensions.q_heads
        if heads % setting.tp:
            raise ToolError(f"--tp {setting.tp} must divide the {heads} heads of {model.name}")
    config = SpecVLMConfig.from_environment()
    found = sizes(
        target,
        draft,
        config,
        tp=setting.tp,
        gpu_gib=setting.gpu_gib,
        video=setting.video_tokens,
    )
    speed = (
        _speed_alone(target, found, config, setting)
        if draft is None
        else _speed(target, draft, found, config, setting)
    )
    for figure in (*_memory(models, found, config, setting), *speed):
        _show(console, figure)
    console.print("Fits." if found.batch else "Does not fit: more GPUs (--tp), or a smaller pair.")
    return 0 if found.batch else 1


def _memory(
    models: Sequence[Model], found: Sizes, config: SpecVLMConfig, setting: Setting
) -> Iterator[Figure]:
    tp, memory, video = setting.tp, setting.gpu_gib, setting.video_tokens
    alone = len(models) == 1
    # The draft is the second, where there is one.
    both = list(zip(("target", "draft"), models, strict=False))
    for role, model in both:
        yield Figure(role, model.name, model.source)
    parts = "" if tp == 1 else f", / {tp} GPUs"
    each = [found.target_weights, found.draft_weights]
    sizes_of = [f"{role} {_size(size)}" for (role, _), size in zip(both, each, strict=False)]
    yield Figure(
        "weights",
        f"{', '.join(sizes_of)} a GPU",
        f"{' and '.join(_size(model.weight_bytes) for model in models)}{parts}",
    )
    kv = [
        (found.target_kv, found.target_request_kv, f"{video:,} video"),
        (found.draft_kv, found.draft_request_kv, f"{found.kept:,} kept"),
    ]
    for (role, model), (token, request, tokens) in zip(both, kv, strict=False):
        size = model.dimensions
        heads = max(1, size.kv_heads // tp)
        held = f"{heads} KV head{_s(heads)} a GPU"
        kept = f" (retention {config.retention:g})" if role == "draft" else ""
        yield Figure(
            f"{role} KV",
            f"{token / 1024:,.1f} KiB a token, {_size(request)} a request, a GPU",
            f"2 x {size.layers} layers x {held} x {size.head_dim} x 2 bytes; "
            f"{tokens}{kept} + {TEXT_TOKENS} text + {NEW_TOKENS} answer tokens",
        )
    yield Figure(
        "scoring",
        f"{_size(found.scoring)} a request, a GPU",
        "sums by video token and by KV head, normalisers by head, row and 1,024 keys (float32), "
        "and the copied queries of one layer; no attention map and no layer is kept",
    )
    yield Figure(
        "vision tower's peak",
        f"{_size(found.vision_peak)} a GPU",
        "an estimate: one block's activations over all patches of one video, its pixels beside "
        "them" + ("" if alone else "; the larger of both towers, which run one after the other"),
    )
    if not alone:
        yield Figure(
            "draft's features",
            f"{_size(found.features)} a GPU",
            "cache of the draft's vision features: 1/128 of the memory, at least 256 MiB",
        )
    yield Figure(
        "for KV caches",
        f"{_size(found.room)} a GPU",
        f"{memory:g} GiB x {found.static_fraction:.3f} (SGLang's --mem-fraction-static where it is "
        "not given) - weights",
    )
    beside = f"{_size(found.beside)} a GPU"
    if found.beside < 0:
        share = found.static_fraction + found.beside / (memory * GIB)
        beside += f": too little, give --mem-fraction-static {max(0.0, share - 0.01):.2f}"
    yield Figure(
        "room left",
        beside,
        "the rest of the memory - vision tower's peak - scoring - features; for activations of "
        "the language models, CUDA graphs and CUDA itself",
    )
    charged = "target KV" if alone else f"(target KV + {config.draft_kv_share:g} x draft KV)"
    yield Figure(
        "largest batch",
        f"{found.batch:,} requests at once ({found.tokens:,} tokens)",
        f"KV room / {charged}, / tokens of a request; the server admits "
        f"{MAX_RUNNING_REQUESTS} (--max-running-requests)",
    )


def _speed(
    target: Model, draft: Model, found: Sizes, config: SpecVLMConfig, setting: Setting
) -> Iterator[Figure]:
    rates, accepted = setting.rates, setting.accept_length
    large, small = _as_stored(target), _as_stored(draft)
    retention = found.kept / setting.video_tokens
    for batch in setting.batches(found.batch):
        reports = [
            what_would_pruning_buy(
                large,
                small,
                rates,
                setting.video_tokens,
                TEXT_TOKENS,
                retention,
                accepted,
                DEFAULT_NUM_STEPS,
                DEFAULT_NUM_STEPS + 1,
                batch,
                length,
                query_rows=config.max_query_rows,
            )
            for length in ANSWER_LENGTHS
        ]
        at = f"{batch} request{_s(batch)}"
        decode = [report.pruned.decode_speedup for report in reports]
        least = accepted / decode[0]
        yield Figure(
            f"decoding, {at}",
            _by_length(decode),
            f"roofline of {rates.name}: bytes and operations of a round of "
            f"{DEFAULT_NUM_STEPS} draft steps at the data sheet's rates, an accept length of "
            f"{accepted:g} assumed; gains above {least:.2f}",
        )
        first = reports[0]
        yield Figure(
            f"end to end, {at}",
            _by_length([report.pruned.end_to_end_speedup for report in reports]),
            f"with the first token after {first.pruned.time_to_first_token:.2f} s (vision, prefill "
            f"and scores) and {first.pruned.draft_start_seconds:.2f} s for the draft's vision and "
            "prefill; times are lower bounds: no launches, host work or communication",
        )


def _speed_alone(
    target: Model, found: Sizes, config: SpecVLMConfig, setting: Setting
) -> Iterator[Figure]:
    rates, accepted = setting.rates, setting.accept_length
    model, steps = _as_stored(target), DEFAULT_NUM_STEPS

    def report(batch: int) -> SelfDraftReport:
        retention = found.kept / setting.video_tokens
        video = setting.video_tokens
        return what_would_self_drafting_buy(
            model,
            rates,
            video,
            TEXT_TOKENS,
            retention,
            steps,
            batch,
            NEW_TOKENS,
            layers=config.self_layers,
        )

    whole = model.layers
    if config.self_layers is not None and config.self_layers >= whole:
        raise ToolError(f"--specvlm-self-layers {config.self_layers} must be 1 to {whole - 1}")
    cut = "" if config.self_layers is None else f" of {config.self_layers} of {whole} layers"
    for batch in setting.batches(found.batch):
        one = report(batch)
        yield Figure(
            f"for itself, {batch} request{_s(batch)}",
            f"{one.speedup(accepted):.2f}x, at most {one.highest_speedup:.2f}x; gains above "
            f"{one.break_even_accept_length:.2f} tokens a round",
            f"roofline of {rates.name}: KV is {one.kv_share:.0%} of a step's bytes; a draft step"
            f"{cut} takes {one.draft_over_plain:.0%} of a plain step, of which a round has {steps} "
            f"and a verification; an accept length of {accepted:g} assumed, {steps + 1} at most",
        )
    most = max(1, min(found.batch, MAX_RUNNING_REQUESTS))
    least = next((n for n in range(1, most + 1) if report(n).speedup(accepted) > 1), None)
    assumed = f"smallest batch whose roofline gains at an accept length of {accepted:g}"
    if least is None:
        yield Figure(
            "pays",
            f"at no batch up to {most}: serve plainly, or name a draft model",
            f"{assumed}; the weights, which a draft step reads too, outweigh what it leaves out",
        )
    else:
        yield Figure("pays", f"from {least} request{_s(least)} at once on", assumed)


def _as_stored(model: Model) -> ModelDimensions:
    """Weights of 8 or 4 bits are read as such."""
    size = model.weight_bytes / model.dimensions.parameters
    return replace(model.dimensions, bytes_per_parameter=size)


def _by_length(values: list[float]) -> str:
    pairs = zip(ANSWER_LENGTHS, values, strict=True)
    return ", ".join(f"{length} tokens {value:.2f}x" for length, value in pairs)


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _size(count: float) -> str:
    if abs(count) >= GIB / 10:
        return f"{count / GIB:.2f} GiB"
    return f"{count / MIB:.2f} MiB"


def _show(console: Console, figure: Figure) -> None:
    if not console.is_terminal:
        for label, text in ((figure.name, figure.value), ("", figure.how)):
            console.print(Text(f"{label:<{_WIDTH}}  {text}"), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    for width in (_WIDTH, None):
        grid.add_column(width=width)
    grid.add_row(figure.name, Text(figure.value))
    grid.add_row("", Text(figure.how, style="dim"))
    console.print(grid)
