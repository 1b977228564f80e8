"""Compares the rounds of a real server with those that the NumPy path counts.

    python -m benchmarks.tinyvid.served --target T --draft D --out benchmarks/results/tinyvid

Both run in float32 on the same mp4 files: the same answer and the same number of verify rounds is
the same accept length. `random` is left out, because the server seeds it by request.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.tinyvid.acceptance import CHAIN, Setting, measure
from benchmarks.tinyvid.clips import HELD_OUT, LENGTHS, Prompt, held_out
from benchmarks.tinyvid.reader import Reader
from specvlm_sglang.tools.chat import chat, messages_of
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from specvlm_sglang.tools.server import Server, wait_until_ready

_SEEDS = HELD_OUT + 3_000_000
_POLICIES = ("specvlm", "attention", "uniform", "window-front")


def chosen_settings(top_p: float) -> list[Setting]:
    """The unpruned draft, and policies of each kind at two retentions."""
    pruned = [Setting(p, r, top_p=top_p) for r in (0.25, 0.1) for p in _POLICIES]
    return [Setting("none", 1.0, top_p=top_p), *pruned]


def served_rounds(url: str, prompt: Prompt, setting: Setting) -> tuple[str, int]:
    """The server's answer, and its number of verify rounds."""
    options = {"retention": setting.retention, "policy": setting.policy}
    messages = messages_of(prompt.clip, prompt.question)
    answer = chat(url, messages, 300, custom_params={"specvlm": options})
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["meta_info"]["spec_verify_ct"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tinyvid.served",
        description="Compare a server's verify rounds with the NumPy path's.",
    )
    parser.add_argument("--target", type=Path, required=True, help="target's directory")
    parser.add_argument("--draft", type=Path, required=True, help="draft's directory")
    parser.add_argument("--out", type=Path, required=True, help="folder for served.json")
    parser.add_argument("--clips", type=int, default=12, help="held-out clips")
    parser.add_argument("--top-p", type=float, default=0.2, help="mass that Stage I retains")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    console = Console()
    target, draft = Reader(arguments.target), Reader(arguments.draft)
    settings = chosen_settings(arguments.top_p)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch = (
            *common_arguments("float32", exact_vision=True),
            *specvlm_arguments(arguments.draft, steps=CHAIN, top_p=arguments.top_p),
        )
        with Server(arguments.target, launch, log=folder / "server.log") as server:
            with console.status("starting the server"):
                wait_until_ready([server])
            prompts = held_out(LENGTHS["training"], arguments.clips, folder, first=_SEEDS)
            for prompt in track(prompts, "prompts", total=arguments.clips):
                answer = target.text(target.greedy(target.question(prompt)))
                counted, _ = measure(target, draft, prompt, settings)
                for setting in settings:
                    text, rounds = served_rounds(server.url, prompt, setting)
                    rows.append(
                        {
                            "policy": setting.policy,
                            "retention": setting.retention,
                            "tokens": counted[setting].tokens,
                            "rounds_counted": counted[setting].rounds,
                            "rounds_served": rounds,
                            "same_answer": text == answer,
                        }
                    )
    summary = [_summary(setting, rows) for setting in settings]
    report = {"clips": arguments.clips, "top_p": arguments.top_p, "settings": summary}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "served.json").write_text(json.dumps(report, indent=2) + "\n")
    for line in summary:
        console.print(line)


def _summary(setting: Setting, rows: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [
        row
        for row in rows
        if (row["policy"], row["retention"]) == (setting.policy, setting.retention)
    ]
    tokens = sum(row["tokens"] for row in mine)
    return {
        "policy": setting.policy,
        "retention": setting.retention,
        "accept_length_served": round(tokens / sum(row["rounds_served"] for row in mine), 4),
        "accept_length_counted": round(tokens / sum(row["rounds_counted"] for row in mine), 4),
        "same_answers": sum(row["same_answer"] for row in mine),
        "same_rounds": sum(row["rounds_served"] == row["rounds_counted"] for row in mine),
        "prompts": len(mine),
    }


if __name__ == "__main__":
    main()
