"""``specvlm visualize VIDEO QUESTION``: ask a SPECVLM server and write the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import requests
from rich.console import Console

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.policies import check_policy, check_retention
from specvlm_sglang.tools import demo
from specvlm_sglang.tools.demo.ask import messages_of
from specvlm_sglang.tools.server import (
    DemoError,
    DemoServer,
    dtype_arguments,
    free_port,
    wait_until_ready,
)
from specvlm_sglang.tools.visualize.frames import read_frames
from specvlm_sglang.tools.visualize.page import render

_START_SECONDS = 900.0


def run(options: argparse.Namespace) -> int:
    """Write the page; returns the exit status. Nothing it started survives it."""
    try:
        _check(options)
        with (
            tempfile.TemporaryDirectory(prefix="specvlm-visualize-") as folder,
            ExitStack() as all_,
        ):
            url = options.url or _start(options, Path(folder), all_)
            page = ask_for_page(
                url.rstrip("/"),
                options.video,
                options.question,
                retention=options.retention,
                policy=options.policy,
                max_tokens=options.max_tokens,
            )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page, encoding="utf-8")
    except (DemoError, ValueError, OSError, openai.APIError) as error:
        print(f"specvlm visualize: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(f"wrote {options.out}")
    return 0


def _check(options: argparse.Namespace) -> None:
    check_retention(options.retention, "--retention")
    if not options.url:
        # A running server may know policies that this process does not; it says so itself.
        check_policy(options.policy, "--policy")
    if not options.video.is_file():
        raise DemoError(f"VIDEO {options.video}: no such file")
    for flag, value, least in (
        ("--steps", options.steps, 1),
        ("--max-tokens", options.max_tokens, 2),
    ):
        if value < least:
            raise DemoError(f"{flag} {value} must be at least {least}")
    if (options.target is None) != (options.draft is None):
        raise DemoError("--target and --draft go together")
    if options.url and options.target:
        raise DemoError("--url names a running server: leave out --target and --draft")


def _start(options: argparse.Namespace, folder: Path, stack: ExitStack) -> str:
    arguments = (
        *dtype_arguments(options.dtype),
        *("--speculative-algorithm", "SPECVLM"),
        *("--speculative-draft-model-path", options.draft or str(demo.draft_path())),
        *("--speculative-num-steps", str(options.steps)),
        *("--specvlm-retention", str(options.retention)),
    )
    target = options.target or str(demo.target_path())
    server = DemoServer(target, arguments, port=free_port(), log=folder / "server.log")
    stack.enter_context(server)
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print("starting an SGLang server")
    with console.status("") as status:
        wait_until_ready(
            (server,),
            _START_SECONDS,
            lambda seconds: status.update(f"starting an SGLang server: {seconds:.0f} s"),
        )
    return server.url


def ask_for_page(
    url: str,
    video: Path,
    question: str,
    *,
    retention: float,
    policy: str,
    max_tokens: int,
    more_numbers: Sequence[tuple[str, str]] = (),
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

    Raises
    ------
    DemoError
        The server does not run SPECVLM.
    ValueError
        The page cannot show this prompt (`page.render`).
    """
    top_p = SpecVLMConfig.top_p
    chosen = {"retention": retention, "policy": policy, "top_p": top_p, "detail": True}
    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="default",
        messages=messages_of(video, question),
        max_tokens=max_tokens,
        temperature=0,
        extra_body={
            "return_meta_info": True,
            "return_output_ids_in_sglext": True,
            "custom_params": {"specvlm": chosen},
        },
    ).model_dump()
    meta = answer["choices"][0]["meta_info"]
    if "specvlm" not in meta:
        raise DemoError(f"{url}: that server does not run SPECVLM")
    report = meta["specvlm"][0]
    detail = report["detail"]
    return render(
        question=question,
        detail=detail,
        tokens=_pieces(url, answer["sglext"]["output_ids"][0]),
        origins=meta["specvlm"],
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


def _pieces(url: str, ids: list[int]) -> list[str]:
    """Text of each token; bytes of an unfinished character count to the token that ends it."""
    from transformers import AutoTokenizer

    info = requests.get(f"{url}/model_info", timeout=60).json()
    tokenizer = AutoTokenizer.from_pretrained(info["tokenizer_path"])
    pieces = []
    shown = ""
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:stop], skip_special_tokens=True)
        whole = text.rstrip("\ufffd")
        pieces.append(whole[len(shown) :])
        shown = whole
    return pieces
