"""Asks a server about every job; an error is its job's, never the run's."""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specvlm_sglang.policies import check_retention
from specvlm_sglang.pruning.registry import check_policy
from specvlm_sglang.tools.batch.jobs import Job, answered_before, read_jobs
from specvlm_sglang.tools.chat import chat, messages_of
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from specvlm_sglang.tools.pair import choose_pair
from specvlm_sglang.tools.server import Server, start_showing


@dataclass
class Figures:
    """What a run came to.

    Attributes
    ----------
    answered, failed, before
        Jobs, of which ``before`` had their answer when the run began.
    tokens, rounds
        Of the answers: tokens after the first, and verify rounds; of plain decoding, passes.
    video_tokens, kept_video_tokens
        Of the prompts, as SPECVLM reports them.
    seconds
        Of asking, without the server's start.
    """

    answered: int = 0
    failed: int = 0
    before: int = 0
    tokens: int = 0
    rounds: int = 0
    video_tokens: int = 0
    kept_video_tokens: int = 0
    seconds: float = 0.0
    cold: dict[str, int] = field(default_factory=dict)

    def add(self, entry: dict[str, Any]) -> None:
        """Count one line of the answers."""
        if "answer" not in entry:
            self.failed += 1
            return
        self.answered += 1
        self.tokens += max(entry["tokens"] - 1, 0)
        self.rounds += entry["verify_rounds"] or max(entry["tokens"] - 1, 0)
        report = entry["specvlm"] or {}
        self.video_tokens += report.get("video_tokens", 0)
        self.kept_video_tokens += report.get("kept_video_tokens", 0)
        if report.get("cold"):
            self.cold[report["cold"]] = self.cold.get(report["cold"], 0) + 1

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.answered} answered, {self.failed} failed, {self.before} answered before"
        if self.answered:
            rate = self.tokens / self.seconds if self.seconds else 0.0
            accepted = self.tokens / max(self.rounds, 1)
            yield (
                f"{self.seconds:.1f} s, {rate:.1f} tokens/s together, "
                f"{accepted:.2f} tokens per round"
            )
        if self.video_tokens:
            share = self.kept_video_tokens / self.video_tokens
            yield f"{self.video_tokens} video tokens, of which drafts kept {share:.1%}"
        for why, count in self.cold.items():
            yield f"{count} without a draft: {why}"


def run(options: argparse.Namespace, console: Console | None = None) -> int:
    """Answer what is not answered yet; returns 1 where anything failed, else 0.

    Raises
    ------
    ToolError, ValueError, OSError
        Nothing was asked; the message is one sentence.
    """
    console = console or Console(stderr=True)
    chosen = {"retention": options.retention, "policy": options.policy}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    _check(options)
    jobs = read_jobs(options.source, options.question, options.max_tokens, chosen)
    done = answered_before(options.out, jobs)
    open_jobs = [job for job in jobs if job.name not in done]
    figures = Figures(before=len(done))
    if open_jobs:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="specvlm-batch-") as folder, ExitStack() as stack:
            url = options.url or _start(options, Path(folder), stack, console)
            _ask_all(url.rstrip("/"), open_jobs, options, figures, console)
    for line in figures.lines():
        console.print(line, soft_wrap=True)
    return int(figures.failed > 0)


def _check(options: argparse.Namespace) -> None:
    for flag, value in (
        ("--concurrency", options.concurrency),
        ("--steps", options.steps),
        ("--max-tokens", options.max_tokens),
    ):
        if value < 1:
            raise ToolError(f"{flag} {value} must be at least 1")
    if options.retention is not None:
        check_retention(options.retention, "--retention")
    if options.policy is not None and not options.url:
        check_policy(options.policy, "--policy")
    if options.url and (options.target or options.draft or options.launch):
        raise ToolError("--url names a running server: leave out --target, --draft and --launch")
    if options.api_key and not options.url:
        raise ToolError("--api-key is that of a running server: name it with --url")


def _start(options: argparse.Namespace, folder: Path, stack: ExitStack, console: Console) -> str:
    pair = choose_pair(options.target, options.draft, 0, console)
    arguments = (
        *common_arguments(options.dtype),
        *specvlm_arguments(pair.draft, steps=options.steps, retention=options.retention),
        *shlex.split(options.launch),
    )
    server = Server(pair.target, arguments, log=folder / "server.log")
    return start_showing(server, stack, console)


def _ask_all(
    url: str,
    jobs: Sequence[Job],
    options: argparse.Namespace,
    figures: Figures,
    console: Console,
) -> None:
    began = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        options.out.open("a", encoding="utf-8") as file,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
        ThreadPoolExecutor(options.concurrency) as pool,
    ):
        task = progress.add_task("asking", total=len(jobs))
        asked = [pool.submit(_ask, url, job, options.api_key) for job in jobs]
        try:
            for answer in as_completed(asked):
                entry = answer.result()
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
                figures.add(entry)
                if "error" in entry:
                    progress.console.print(f"{entry['id']}: {entry['error']}", soft_wrap=True)
                progress.advance(task)
        except BaseException:
            _give_up(asked)
            raise
        finally:
            figures.seconds = time.perf_counter() - began


def _give_up(asked: Sequence[Future[Any]]) -> None:
    for future in asked:
        future.cancel()


def _ask(url: str, job: Job, api_key: str | None) -> dict[str, Any]:
    """One line of the answers: with ``answer``, or with ``error``."""
    entry: dict[str, Any] = {"id": job.name, "video": str(job.video), "question": job.question}
    began = time.perf_counter()
    try:
        more = {"custom_params": {"specvlm": job.specvlm}} if job.specvlm else {}
        messages = messages_of(job.video, job.question)
        answer = chat(url, messages, job.max_tokens, api_key=api_key, **more)
    except (ToolError, OSError, ValueError) as error:
        return {**entry, "error": str(error)}
    (choice,) = answer["choices"]
    meta = choice["meta_info"]
    return {
        **entry,
        "answer": choice["message"]["content"] or "",
        "finish_reason": choice["finish_reason"],
        "tokens": meta["completion_tokens"],
        "verify_rounds": meta.get("spec_verify_ct"),
        "seconds": round(time.perf_counter() - began, 3),
        "specvlm": meta.get("specvlm"),
    }
