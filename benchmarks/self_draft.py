"""Accept length of a target that drafts for itself, beside a draft model, in real servers.

    python -m benchmarks.self_draft --out benchmarks/results/self_draft

The shipped pair answers about held-out clips, greedily in float32. With ``--layers`` more servers
draft with the first layers of the target alone, which has four. Each server is asked the same
questions under every setting; an answer that differs from plain decoding's is counted. Accept
length is tokens per verify round, bonus included: it says nothing of time.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.tinyvid.clips import HELD_OUT, LENGTHS, Prompt, held_out
from specvlm_sglang.tools.chat import chat, messages_of
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from specvlm_sglang.tools.server import Server, wait_until_ready

MODELS = Path(__file__).parents[1] / "specvlm_sglang" / "demo" / "models"
SEEDS = HELD_OUT + 27_000_000
POLICIES = ("specvlm", "uniform", "specvlm-spread")
RETENTIONS = (0.25, 0.1, 0.05)
STEPS = 5
LONGEST = 300
"""Tokens of an answer at most."""


class Setting(NamedTuple):
    """A policy, and the share of the video tokens that the draft reads."""

    policy: str
    retention: float


def settings(policies: Sequence[str], retentions: Sequence[float]) -> list[Setting]:
    """The whole video, and every policy at every retention."""
    pruned = [Setting(policy, share) for share in retentions for policy in policies]
    return [Setting("none", 1.0), *pruned]


class Answer(NamedTuple):
    """What a server said, in how many rounds; 0 rounds without speculation."""

    text: str
    tokens: int
    rounds: int


def ask(url: str, prompt: Prompt, setting: Setting | None) -> Answer:
    """One answer about a clip; without a setting, of a plain server."""
    fields: dict[str, Any] = {}
    if setting is not None:
        fields["custom_params"] = {"specvlm": setting._asdict()}
    answer = chat(url, messages_of(prompt.clip, prompt.question), LONGEST, **fields)
    choice = answer["choices"][0]
    rounds = choice["meta_info"].get("spec_verify_ct", 0)
    return Answer(choice["message"]["content"], answer["usage"]["completion_tokens"], rounds)


def ask_all(
    launch: Sequence[str], prompts: Sequence[Prompt], chosen: Sequence[Setting | None], at_once: int
) -> dict[Setting | None, list[Answer]]:
    """Answers of one server by setting, in the order of the prompts."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(MODELS / "target", launch, log=Path(folder) / "server.log") as server,
        ThreadPoolExecutor(at_once) as pool,
    ):
        wait_until_ready([server])
        jobs = [(prompt, setting) for setting in chosen for prompt in prompts]
        answers = list(pool.map(lambda job: ask(server.url, *job), jobs))
    found: dict[Setting | None, list[Answer]] = {setting: [] for setting in chosen}
    for (_, setting), answer in zip(jobs, answers, strict=True):
        found[setting].append(answer)
    return found


def summary(
    setting: Setting,
    mine: Sequence[Answer],
    model: Sequence[Answer],
    plain: Sequence[Answer],
    cut: Mapping[int, Sequence[Answer]] = MappingProxyType({}),
) -> dict[str, Any]:
    """One line of the table, JSON-ready; ``cut`` has the answers by the layers that drafted."""

    def accept_length(answers: Sequence[Answer]) -> float:
        # The first token of an answer comes from its prefill.
        tokens = sum(answer.tokens - 1 for answer in answers)
        return round(tokens / max(1, sum(answer.rounds for answer in answers)), 3)

    wrong = sum(
        one.text != right.text
        for answers in (mine, model, *cut.values())
        for one, right in zip(answers, plain, strict=True)
    )
    return {
        **setting._asdict(),
        "accept_length_self": accept_length(mine),
        "accept_length_model": accept_length(model),
        **{f"accept_length_{k}_layers": accept_length(answers) for k, answers in cut.items()},
        "answers_unlike_plain": wrong,
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The summary as Markdown."""
    cut = [name for name in lines[0] if name.endswith("_layers")]
    heads = ["policy", "retention", "drafts for itself", "draft model"]
    heads += [f"{name.split('_')[2]} layers" for name in cut]
    heads.append("answers unlike plain's")
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for line in lines:
        lengths = [line[name] for name in ("accept_length_self", "accept_length_model", *cut)]
        cells = [line["policy"], f"{line['retention']:g}", *(f"{one:.2f}" for one in lengths)]
        rows.append(f"| {' | '.join([*cells, str(line['answers_unlike_plain'])])} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``results.json`` and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.self_draft", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--clips", type=int, default=20, help="held-out clips")
    parser.add_argument("--length", choices=LENGTHS, default="training", help="of the clips")
    parser.add_argument("--at-once", type=int, default=4, help="requests at once")
    parser.add_argument("--layers", type=int, nargs="+", default=[], help="that draft, at most 3")
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--retentions", type=float, nargs="+", default=RETENTIONS)
    chosen = parser.parse_args(arguments)
    asked = settings(chosen.policies, chosen.retentions)
    common = common_arguments("float32", exact_vision=True)
    forms = {
        "self": (*common, *specvlm_arguments(None, steps=STEPS)),
        "model": (*common, *specvlm_arguments(MODELS / "draft", steps=STEPS)),
        **{
            str(k): (*common, *specvlm_arguments(None, steps=STEPS, self_layers=k))
            for k in chosen.layers
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        prompts = list(held_out(LENGTHS[chosen.length], chosen.clips, Path(folder), first=SEEDS))
        plain = ask_all(common, prompts, [None], chosen.at_once)[None]
        found = {
            name: ask_all(launch, prompts, asked, chosen.at_once) for name, launch in forms.items()
        }
    lines = [
        summary(
            setting,
            found["self"][setting],
            found["model"][setting],
            plain,
            {k: found[str(k)][setting] for k in chosen.layers},
        )
        for setting in asked
    ]
    record = {
        "kind": "accept length, measured in served answers; no times",
        "clips": chosen.clips,
        "length": chosen.length,
        "tokens": sum(answer.tokens for answer in plain),
        "steps": STEPS,
        "dtype": "float32",
        "machine": platform.processor() or platform.machine(),
        "settings": lines,
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    Console().print(table(lines), markup=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
