"""``specvlm demo``: a real server answers a question about a video, beside plain decoding."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.chat import Timed, chat, messages_of, stream
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.launch import common_arguments, on_gpu, specvlm_arguments
from specvlm_sglang.tools.needs import model_needs
from specvlm_sglang.tools.pair import Pair, choose_pair
from specvlm_sglang.tools.server import Server, free_port, wait_until_ready

CLIP_SEED = 3_000_000_007
CLIP_SECONDS = 16
CLIP_SIDE = 224
PAGE = Path("demo/index.html")
KV_TOKENS = 65_536


def run(options: argparse.Namespace, console: Console | None = None) -> None:
    """Run the demo. Nothing it started survives it.

    Raises
    ------
    ToolError, ValueError, OSError
        It cannot run; the message is one sentence.
    """
    with tempfile.TemporaryDirectory(prefix="specvlm-demo-") as folder:
        _run(options, console or Console(), Path(folder))


def _run(options: argparse.Namespace, console: Console, folder: Path) -> None:
    _check_numbers(options)
    pair = choose_pair(options.target, options.draft, options.parameters, console)
    if pair.shipped:
        console.print(Text(f"Pair: {pair.note}.", style="dim"))
    video, question, truth = _clip(options, folder)
    with ExitStack() as stack:
        fast, plain = map(stack.enter_context, _servers(options, pair, folder))
        with console.status("") as status:
            wait_until_ready(
                (fast, plain),
                progress=lambda seconds: status.update(
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
            meta = chat(fast.url, messages, options.max_tokens)["choices"][0]["meta_info"]
        console.print(_table(options, pair.draft, meta, rounds))
        _write_page(options, console, fast.url, video, question, rounds)
        exact = all(pair[1].text == shown.text == pair[0].text for pair in rounds)
        console.print(
            "[green]Both servers gave the same answer.[/]"
            if exact
            else f"[red]The answers differ[/] ({options.dtype} logits can tie; try --dtype float32)"
        )
        # A GPU's kernels may round float32 products to TF32, in verifying as in decoding.
        if not exact and options.dtype == "float32" and not on_gpu():
            raise ToolError("in float32 the answers of both servers must be the same")


def _servers(options: argparse.Namespace, pair: Pair, folder: Path) -> tuple[Server, Server]:
    """The SPECVLM server and the plain one."""
    # Both servers may share one GPU: neither may take what is free for its KV cache.
    common = common_arguments(options.dtype, kv_tokens=KV_TOKENS)
    specvlm = specvlm_arguments(pair.draft, steps=options.steps, retention=options.retention)
    port = free_port(options.port)
    return (
        Server(pair.target, (*common, *specvlm), port=port, log=folder / "specvlm.log"),
        Server(pair.target, common, log=folder / "plain.log"),
    )


def _write_page(
    options: argparse.Namespace,
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


def _check_numbers(options: argparse.Namespace) -> None:
    if not 0 < options.retention <= 1:
        raise ToolError(f"--retention {options.retention} must lie in (0, 1]")
    least = {"steps": 1, "max_tokens": 2, "repeats": 1, "parameters": 0}
    for name, bound in least.items():
        value = getattr(options, name)
        if value < bound:
            flag = name.replace("_", "-")
            raise ToolError(f"--{flag} {value} must be at least {bound}")


def _clip(options: argparse.Namespace, folder: Path) -> tuple[Path, str, str]:
    if options.video is not None:
        if not options.video.is_file():
            raise ToolError(f"--video {options.video}: no such file")
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
    options: argparse.Namespace,
    draft: str,
    meta: dict[str, Any],
    rounds: list[tuple[Timed, Timed]],
) -> Table:
    report = meta["specvlm"]
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
    slot = model_needs(draft, options.dtype).kv_bytes_per_token
    rows = [
        (
            "video tokens the draft reads",
            str(report["kept_video_tokens"]),
            f"{report['video_tokens']}",
        ),
        (
            "draft KV of the prompt",
            f"{slot * (meta['prompt_tokens'] - dropped) / 1024:.0f} KiB",
            f"{slot * meta['prompt_tokens'] / 1024:.0f} KiB",
        ),
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
