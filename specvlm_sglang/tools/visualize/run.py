"""``specvlm visualize VIDEO QUESTION``: ask a SPECVLM server and write the page."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.policies import check_retention
from specvlm_sglang.pruning.registry import check_policy
from specvlm_sglang.tools.chat import chat, messages_of
from specvlm_sglang.tools.client import get_json
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from specvlm_sglang.tools.pair import choose_pair
from specvlm_sglang.tools.server import Server, start_showing
from specvlm_sglang.tools.visualize.frames import read_frames
from specvlm_sglang.tools.visualize.page import render


def run(options: argparse.Namespace) -> None:
    """Write the page. Nothing it started survives it.

    Raises
    ------
    ToolError, ValueError, OSError
        There is no page; the message is one sentence.
    """
    _check(options)
    with tempfile.TemporaryDirectory(prefix="specvlm-visualize-") as folder, ExitStack() as stack:
        url = options.url or _start(options, Path(folder), stack)
        page = ask_for_page(
            url.rstrip("/"),
            options.video,
            options.question,
            retention=options.retention,
            policy=options.policy,
            max_tokens=options.max_tokens,
            api_key=options.api_key,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page, encoding="utf-8")
    print(f"wrote {options.out}")


def _check(options: argparse.Namespace) -> None:
    check_retention(options.retention, "--retention")
    if not options.url:
        # A running server may know policies that this process does not; it says so itself.
        check_policy(options.policy, "--policy")
    if not options.video.is_file():
        raise ToolError(f"VIDEO {options.video}: no such file")
    for flag, value, least in (
        ("--steps", options.steps, 1),
        ("--max-tokens", options.max_tokens, 2),
    ):
        if value < least:
            raise ToolError(f"{flag} {value} must be at least {least}")
    if options.url and (options.target or options.draft):
        raise ToolError("--url names a running server: leave out --target and --draft")
    if options.api_key and not options.url:
        raise ToolError("--api-key is that of a running server: name it with --url")


def _start(options: argparse.Namespace, folder: Path, stack: ExitStack) -> str:
    console = Console(stderr=True)
    pair = choose_pair(options.target, options.draft, 0, console)
    arguments = (
        *common_arguments(options.dtype),
        *specvlm_arguments(pair.draft, steps=options.steps, retention=options.retention),
    )
    server = Server(pair.target, arguments, log=folder / "server.log")
    return start_showing(server, stack, console)


def ask_for_page(
    url: str,
    video: Path,
    question: str,
    *,
    retention: float,
    policy: str,
    max_tokens: int,
    more_numbers: Sequence[tuple[str, str]] = (),
    api_key: str | None = None,
) -> str:
    """Ask a running SPECVLM server greedily; the page of its answer.

    Parameters
    ----------
    url
        Of the server, without a slash at its end.
    video, question
        What to ask about, and what.
    retention, policy
        As of a request.
    max_tokens
        Length limit of the answer.
    more_numbers
        Shown after the page's own.
    api_key
        Of a server with ``--api-key``; default: ``OPENAI_API_KEY``.

    Raises
    ------
    ToolError
        The server refused, or does not run SPECVLM.
    ValueError
        The page cannot show this prompt (`page.render`).
    """
    top_p = SpecVLMConfig.top_p
    chosen = {"retention": retention, "policy": policy, "top_p": top_p, "detail": True}
    answer = chat(
        url,
        messages_of(video, question),
        max_tokens,
        api_key=api_key,
        return_output_ids_in_sglext=True,
        custom_params={"specvlm": chosen},
    )
    meta = answer["choices"][0]["meta_info"]
    if "specvlm" not in meta:
        raise ToolError(f"{url}: that server does not run SPECVLM")
    report = meta["specvlm"]
    detail = report["detail"]
    return render(
        question=question,
        detail=detail,
        tokens=_pieces(url, answer["sglext"]["output_ids"][0], api_key),
        frames=read_frames(video, detail["grids"][0][0]) if detail["grids"][0] else [],
        numbers=[*_numbers(meta, report), *more_numbers],
        retention=retention,
        policy=policy,
        top_p=top_p,
    )


def _numbers(meta: dict[str, Any], report: dict[str, Any]) -> list[tuple[str, str]]:
    rounds = meta.get("spec_verify_ct", 0)
    tokens = meta["completion_tokens"]
    n, k = report["video_tokens"], report["kept_video_tokens"]
    numbers = [
        ("video tokens", str(n)),
        ("kept for the draft", f"{k} ({k / max(n, 1):.1%})"),
        ("answer tokens", str(tokens)),
        ("verify rounds", str(rounds)),
        ("accept length", f"{(tokens - 1) / max(rounds, 1):.2f}"),
        ("draft KV of the prompt", f"{1 - (n - k) / meta['prompt_tokens']:.0%} of full"),
    ]
    if report["cold"]:
        numbers.append(("no draft", report["cold"]))
    return numbers


def _pieces(url: str, ids: list[int], api_key: str | None) -> list[str]:
    """Text of each token; bytes of an unfinished character count to the token that ends it."""
    from transformers import AutoTokenizer

    info = get_json(url, "/model_info", api_key=api_key)
    tokenizer = AutoTokenizer.from_pretrained(info["tokenizer_path"])
    pieces = []
    shown = ""
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:stop], skip_special_tokens=True)
        whole = text.rstrip("\ufffd")
        pieces.append(whole[len(shown) :])
        shown = whole
    return pieces
