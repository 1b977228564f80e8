"""The adaptive server beside plain decoding and fixed numbers of steps, one load after another.

    python -m benchmarks.pacing --out benchmarks/results/pacing [--draft useless]
        [--costs "40,0.4,32;3,0.05,32"] [--parameters 200M] [--at-once 1 4 16 32]
        [--tokens 4 16 64 256] [--rounds 2]

The shipped pair in float32, its target enlarged by ``--parameters``. With ``--costs`` passes take
simulated times (`injected`); without, what this machine needs. So many clients ask at once, each
one request after another: of short answers three, of long ones one. A gain is plain decoding's
seconds over a server's, until the last answer is there: the geometric mean over rounds, each of
clips of its own; of the latency, a median request's. The best of the others is known only
afterwards, from the same rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pacing import injected
from benchmarks.pacing.run import (
    ADAPTIVE,
    PLAIN,
    Clients,
    Load,
    measure,
    measure_trace,
    mixed,
    servers,
    useless,
)
from specvlm_sglang.tools import demo
from specvlm_sglang.tools.bench.environment import commit, cpu_name
from specvlm_sglang.tools.bench.intervals import Interval
from specvlm_sglang.tools.demo.enlarge import parse_count
from specvlm_sglang.tools.pair import choose_pair


def main() -> None:
    options = _parser().parse_args()
    loads = [
        Load(at_once, tokens, _each(tokens))
        for at_once, tokens in product(options.at_once, options.tokens)
    ]
    trace = mixed(loads, options.repeats, seed=0)
    with tempfile.TemporaryDirectory(prefix="specvlm-pacing-") as name:
        folder = Path(name)
        environment = {}
        if options.costs:
            costs = injected.Costs.parse(options.costs)
            environment = injected.install(folder / "plugin", costs)
        pair = choose_pair(None, None, options.parameters, Console())
        draft = demo.draft_path()
        if options.draft == "useless":
            draft = useless(draft, folder / "draft")
        with servers(pair.target, draft, options.steps, folder, environment) as urls:
            clients = Clients(folder)
            clients.fill_caches(urls)
            mix = measure_trace(clients, urls, trace) if options.repeats else {}
            print("mixed:", {name: round(seconds, 1) for name, seconds in mix.items()}, flush=True)
            rows: list[dict[str, Any]] = []
            for load, index, name, found, pace in measure(clients, urls, loads, options.rounds):
                times = {"seconds": found.seconds, "latency": found.latency}
                rows.append({**vars(load), "round": index, "server": name, **times})
                if pace is not None:
                    rows[-1]["pace"] = pace
                shown = f"{found.seconds:.2f} s, a request {found.latency:.2f} s"
                print(f"{load}, round {index}, {name}: {shown}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "draft": options.draft,
        "costs": options.costs,
        "pair": pair.note,
        "commit": commit(Path(__file__).parent),
        "machine": cpu_name(),
        "mixed_seconds": mix,
        "trace": [vars(load) for load in trace] if mix else [],
        "measured": rows,
    }
    stem = options.draft + ("-simulated-costs" if options.costs else "")
    (options.out / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(record)
    (options.out / f"{stem}.md").write_text(text)
    print(text)


def table(record: dict[str, Any]) -> str:
    """Gains over plain decoding as Markdown, and how far the adaptive one is from the best.

    Parameters
    ----------
    record
        As it is written: ``measured``, a row for each load, round and server, and
        ``mixed_seconds`` of the servers.
    """
    rows = record["measured"]
    names = list(dict.fromkeys(row["server"] for row in rows))
    others = [name for name in names if name != PLAIN]
    lines = [
        "| at once | tokens | " + " | ".join(others) + " | adaptive / best | latency | its steps |",
        "|---" * (len(others) + 5) + "|",
    ]
    for load in dict.fromkeys((row["at_once"], row["tokens"]) for row in rows):
        here = [row for row in rows if (row["at_once"], row["tokens"]) == load]
        gains = {name: _gain(here, name, PLAIN) for name in others}
        to_best = {what: _to_best(here, names, what) for what in ("seconds", "latency")}
        steps = [str(row["pace"]["steps"]) for row in here if "pace" in row]
        lines.append(
            f"| {load[0]} | {load[1]} | "
            + " | ".join(f"{gain.ratio:.2f}x" for gain in gains.values())
            + f" | {to_best['seconds']} | {to_best['latency']} | {', '.join(steps)} |"
        )
    mix = record["mixed_seconds"]
    if mix:
        least = min(found for name, found in mix.items() if name != ADAPTIVE)
        shown = [f"{mix[PLAIN] / mix[name]:.2f}x" for name in others]
        lines.append(f"| mixed | mixed | {' | '.join(shown)} | {least / mix[ADAPTIVE]:.2f} | | |")
    return "\n".join(lines) + "\n"


def _to_best(rows: Sequence[dict[str, Any]], names: Sequence[str], what: str) -> Interval:
    """How the adaptive server compares with the one of the others that is best here."""
    gains = {name: _gain(rows, name, PLAIN, what).ratio for name in names if name != ADAPTIVE}
    return _gain(rows, ADAPTIVE, max(gains, key=lambda name: gains[name]), what)


def _gain(rows: Sequence[dict[str, Any]], name: str, other: str, what: str = "seconds") -> Interval:
    """What ``other`` takes over what ``name`` does, round by round.

    Raises
    ------
    ValueError
        No rounds.
    """
    mine, its = ([row[what] for row in rows if row["server"] == who] for who in (name, other))
    found = Interval.of(b / a for a, b in zip(mine, its, strict=True))
    if found is None:
        raise ValueError(f"{name} and {other} have no rounds")
    return found


def _each(tokens: int) -> int:
    """Requests of a client, so that short answers come and go while others run."""
    return min(3, max(1, 128 // tokens))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pacing", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for data and table")
    add("--draft", choices=("trained", "useless"), default="trained")
    add("--costs", default="", help=f"of a pass, as {injected.VARIABLE} has them")
    add(
        "--parameters", type=parse_count, default=0, help="of the target, such as 200M; 0: as it is"
    )
    add("--at-once", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    add("--tokens", type=int, nargs="+", default=[4, 16, 64, 256])
    add("--steps", type=int, nargs="+", default=[1, 3, 5], help="fixed numbers of steps")
    add("--rounds", type=int, default=2, help="measured rounds of a load; short answers have more")
    add("--repeats", type=int, default=2, help="how often each load comes in the mixed trace")
    return parser


if __name__ == "__main__":
    main()
