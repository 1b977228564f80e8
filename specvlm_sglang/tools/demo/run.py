"""``specvlm demo``: a real server answers a question about a video, beside plain decoding."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table
from rich.text import Text

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.demo.ask import Timed, messages_of, meta_info, stream
from specvlm_sglang.tools.server import (
    DemoError,
    DemoServer,
    dtype_arguments,
    free_port,
    on_gpu,
    wait_until_ready,
)

CLIP_SEED = 3_000_000_007
CLIP_SECONDS = 16
CLIP_SIDE = 224
START_SECONDS = 900.0
PAGE = Path("demo/index.html")
KV_TOKENS = 65_536
_ENLARGED_BYTES = 3 << 30
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class DemoOptions:
    """What the demo shows.

    Attributes
    ----------
    video, question
        The user's clip and question; None: a procedural clip, "describe it".
    target, draft
        Models; None for both: the shipped pair.
    retention
        Share of the video tokens that the draft keeps.
    steps
        Draft tokens per verify round.
    max_tokens
        Length limit of the answer.
    dtype
        Of both models.
    parameters
        Size to which the shipped target is enlarged, so that it costs what a real one does
        relative to its draft; 0 leaves it as it is.
    repeats
        Timed answers per server; medians are shown.
    port
        Port of the SPECVLM server; None: any free one.
    """

    video: Path | None = None
    question: str | None = None
    target: str | None = None
    draft: str | None = None
    retention: float = 0.1
    steps: int = 5
    max_tokens: int = 160
    dtype: str = "bfloat16"
    parameters: int = 200_000_000
    repeats: int = 3
    port: int | None = None


def run(options: DemoOptions, console: Console | None = None) -> int:
    """Run the demo; returns the exit status. Nothing it started survives it."""
    console = console or Console()
    try:
        with tempfile.TemporaryDirectory(prefix="specvlm-demo-") as folder:
            _run(options, console, Path(folder))
    except (DemoError, ValueError, OSError, openai.APIError) as error:
        console.print(Text(f"specvlm demo: {error}", style="red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    return 0


def _run(options: DemoOptions, console: Console, folder: Path) -> None:
    _check_numbers(options)
    target, draft = _models(options, console)
    video, question, truth = _clip(options, folder)
    # Both servers may share one GPU: neither may take what is free for its KV cache.
    plain_arguments = (*dtype_arguments(options.dtype), "--max-total-tokens", str(KV_TOKENS))
    arguments = (
        *plain_arguments,
        *("--speculative-algorithm", "SPECVLM", "--speculative-draft-model-path", draft),
        *("--speculative-num-steps", str(options.steps)),
        *("--specvlm-retention", str(options.retention)),
    )
    with ExitStack() as stack:
        fast = stack.enter_context(
            DemoServer(target, arguments, port=free_port(options.port), log=folder / "specvlm.log")
        )
        plain = stack.enter_context(
            DemoServer(target, plain_arguments, port=free_port(), log=folder / "plain.log")
        )
        with console.status("") as status:
            wait_until_ready(
                (fast, plain),
                START_SECONDS,
                lambda seconds: status.update(
                    f"starting two SGLang servers, with SPECVLM and plain: {seconds:.0f} s"
                ),
            )
        messages = messages_of(video, question)
        with console.status("warming up"):
            for server in (fast, plain):
                stream(server.url, messages, 8)
        console.print(Text(f"\n> {question}\n", style="bold"))
        painter = _Painter(console)
        shown = stream(fast.url, messages, options.max_tokens, on_piece=painter.piece)
        console.print("\n\n[green]accepted from the draft[/], [bold]the target's own[/]")
        if truth:
            console.print(f"[dim]what the clip really shows: {truth}[/]")
        with console.status("timing both servers in turn"):
            rounds = [
                (
                    stream(fast.url, messages, options.max_tokens),
                    stream(plain.url, messages, options.max_tokens),
                )
                for _ in range(options.repeats)
            ]
            meta = meta_info(fast.url, messages, options.max_tokens)
        console.print(_table(options, draft, meta, rounds))
        _write_page(options, console, fast.url, video, question, rounds)
        exact = all(pair[1].text == shown.text == pair[0].text for pair in rounds)
        console.print(
            "[green]Both servers gave the same answer.[/]"
            if exact
            else f"[red]The answers differ[/] ({options.dtype} logits can tie; try --dtype float32)"
        )
        # A GPU's kernels may round float32 products to TF32, in verifying as in decoding.
        if not exact and options.dtype == "float32" and not on_gpu():
            raise DemoError("in float32 the answers of both servers must be the same")


def _write_page(
    options: DemoOptions,
    console: Console,
    url: str,
    video: Path,
    question: str,
    rounds: list[tuple[Timed, Timed]],
) -> None:
    from specvlm_sglang.tools.visualize.run import ask_for_page

    fast, plain = _speeds(rounds)
    try:
        page = ask_for_page(
            url,
            video,
            question,
            retention=options.retention,
            policy="specvlm",
            max_tokens=options.max_tokens,
            more_numbers=[("decoding", f"{fast:.1f} tokens/s"), ("plain", f"{plain:.1f} tokens/s")],
        )
    except ValueError as error:
        console.print(f"no page: {error}", soft_wrap=True)
        return
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    console.print(f"What the draft saw and wrote, to look at in a browser: [bold]{PAGE}[/]")
    if options.video is None:
        console.print(f"The clip: [bold]{PAGE.with_name(video.name)}[/]")


def _check_numbers(options: DemoOptions) -> None:
    if not 0 < options.retention <= 1:
        raise DemoError(f"--retention {options.retention} must lie in (0, 1]")
    least = {"steps": 1, "max_tokens": 2, "repeats": 1, "parameters": 0}
    for name, bound in least.items():
        value = getattr(options, name)
        if value < bound:
            flag = name.replace("_", "-")
            raise DemoError(f"--{flag} {value} must be at least {bound}")


def _models(options: DemoOptions, console: Console) -> tuple[str, str]:
    if (options.target is None) != (options.draft is None):
        raise DemoError("--target and --draft go together")
    if options.target is not None and options.draft is not None:
        for flag, name in (("--target", options.target), ("--draft", options.draft)):
            if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
                raise DemoError(f"{flag} {name}: no such directory")
        return options.target, options.draft
    target = demo.target_path()
    if options.parameters:
        from transformers.utils.logging import disable_progress_bar

        from specvlm_sglang.tools.demo import enlarge

        cache = enlarge.cache_folder(options.parameters)
        if not cache.is_dir():
            cache.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(cache.parent).free < _ENLARGED_BYTES:
                raise DemoError(f"{cache.parent} has less than 3 GB free for the enlarged target")
            disable_progress_bar()
            with console.status("enlarging the target (once)"):
                enlarge.write(target, cache, options.parameters)
        console.print(
            f"[dim]The shipped target is enlarged to about {options.parameters / 1e6:.0f}M "
            "parameters that change no answer: acceptance is the trained pair's, "
            "cost that of the larger model.[/]"
        )
        target = cache
    return str(target), str(demo.draft_path())


def _clip(options: DemoOptions, folder: Path) -> tuple[Path, str, str]:
    if options.video is not None:
        if not options.video.is_file():
            raise DemoError(f"--video {options.video}: no such file")
        return options.video, options.question or "Describe the video.", ""
    path = PAGE.with_name("clip.mp4").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    scene = demo.make_clip(path, CLIP_SEED, seconds=CLIP_SECONDS, side=CLIP_SIDE)
    question, truth = demo.description(scene)
    return path, options.question or question, "" if options.question else truth


class _Painter:
    """Prints pieces: the last token of a verify round is the target's own, the others were drafted.

    The first piece is the target's prefill token.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def piece(self, piece: str, tokens: Sequence[str]) -> None:
        drafted, own = split_own(piece, tokens)
        self._console.print(Text(drafted, style="green"), end="", soft_wrap=True)
        self._console.print(Text(own, style="bold"), end="", soft_wrap=True)


def split_own(piece: str, tokens: Sequence[str]) -> tuple[str, str]:
    """Divide one round's text before its last token.

    An end token has no text: then all of it was drafted. Where the tokens do not add up to the
    text (a character of several tokens), all of it counts as the target's own.
    """
    for shown in (tokens, tokens[:-1]):
        if tokens and "".join(shown) == piece:
            cut = len("".join(tokens[:-1]))
            return piece[:cut], piece[cut:]
    return "", piece


def _table(
    options: DemoOptions, draft: str, meta: dict[str, Any], rounds: list[tuple[Timed, Timed]]
) -> Table:
    report = meta["specvlm"][0]
    fast, plain = _speeds(rounds)
    ratio = statistics.median(
        pair[0].tokens_per_second / pair[1].tokens_per_second for pair in rounds
    )
    waits = [
        statistics.median(pair[index].first_token_seconds for pair in rounds) for index in (0, 1)
    ]
    emitted, verified = meta["completion_tokens"], meta["spec_verify_ct"]
    dropped = report["video_tokens"] - report["kept_video_tokens"]
    table = Table("", "SPECVLM", "plain / full", box=None)
    rows: list[tuple[str, str, str]] = [
        (
            "video tokens the draft reads",
            str(report["kept_video_tokens"]),
            f"{report['video_tokens']}",
        ),
    ]
    size = _kv_bytes(Path(draft), options.dtype)
    if size:
        rows.append(
            (
                "draft KV of the prompt",
                f"{size * (meta['prompt_tokens'] - dropped) / 1024:.0f} KiB",
                f"{size * meta['prompt_tokens'] / 1024:.0f} KiB",
            )
        )
    rows += [
        ("tokens per target pass", f"{(emitted - 1) / max(1, verified):.2f}", "1"),
        ("target passes", str(verified), str(emitted - 1)),
        ("time to first token (cached video)", f"{waits[0]:.2f} s", f"{waits[1]:.2f} s"),
        ("decoding", f"{fast:.1f} tokens/s", f"{plain:.1f} tokens/s"),
        ("speedup", f"{ratio:.2f}x", ""),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _speeds(rounds: list[tuple[Timed, Timed]]) -> tuple[float, float]:
    """Median tokens per second of the SPECVLM server and of the plain one."""
    fast, plain = (
        statistics.median(pair[index].tokens_per_second for pair in rounds) for index in (0, 1)
    )
    return fast, plain


def _kv_bytes(draft: Path, dtype: str) -> int:
    """Bytes of draft KV per token; 0 where the configuration is not on this disk."""
    file = draft / "config.json"
    if not file.is_file():
        return 0
    config = json.loads(file.read_text())
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    per_layer = 2 * config.get("num_key_value_heads", heads) * head_dim * _BYTES.get(dtype, 2)
    return int(config["num_hidden_layers"] * per_layer)
