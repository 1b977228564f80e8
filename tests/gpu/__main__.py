"""``python -m tests.gpu``: run what needs a GPU, and write a report to attach to an issue."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.gpu import plan

# Nothing heavier here: what will run, or is missing, is said before SGLang is imported.
ROOT = Path(__file__).parents[2]


class Recorder:
    """Collects what pytest says of each test."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float, str]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep a test's outcome: of its call, or of a set-up that skipped or failed."""
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            reason = "" if report.passed else _last_line(report)
            self.rows.append((report.nodeid, report.outcome, report.duration, reason))


def _last_line(report: Any) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    text: str = report.longreprtext
    lines = [line for line in text.splitlines() if line.startswith("E ")]
    return lines[0][1:].strip() if lines else text[-200:]


def markdown(found: dict[str, object], recorder: Recorder, seconds: float) -> str:
    """The report: where it ran, each server test, op tests in one line, what failed."""
    hardware, versions = found["hardware"], found["versions"]
    lines = ["# specvlm-sglang on a GPU", "", f"- hardware: {hardware}", f"- versions: {versions}"]
    lines += [f"- commit: {found['commit']}", f"- {seconds:.0f} s", ""]
    lines += ["| test | outcome | seconds | |", "|---|---|---|---|"]
    ops = [row for row in recorder.rows if "test_ops" in row[0] and row[1] == "passed"]
    lines.append(f"| {len(ops)} checks of scores and selection | passed | | |")
    for name, outcome, took, reason in recorder.rows:
        if (name, outcome, took, reason) in ops:
            continue
        lines.append(f"| {name.split('::')[-1]} | {outcome} | {took:.1f} | {reason[:300]} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder of the report")
    parser.add_argument("--no-bench", action="store_true", help="leave out the short benchmark")
    options = parser.parse_args()
    versions, devices, troubles = plan.look(ROOT)
    for line in plan.announcement(versions, devices, troubles, bench=not options.no_bench):
        print(line, flush=True)
    if troubles:
        return 1
    return run(options.out, bench=not options.no_bench)


def run(out: Path, *, bench: bool) -> int:
    """Run the tests and the benchmark, write the report into ``out``; returns the exit status."""
    import pytest

    from specvlm_sglang.tools.bench.environment import environment

    out.mkdir(parents=True, exist_ok=True)
    recorder, started = Recorder(), time.monotonic()
    # The CPU's twins of these tests are marked slow, or run in `make test`.
    wanted = [str(ROOT / "tests" / "gpu"), "-m", "gpu", "-p", "no:cacheprovider"]
    status = int(pytest.main(wanted, plugins=[recorder]))
    text = markdown(environment(), recorder, time.monotonic() - started)
    (out / "report.md").write_text(text)
    if bench:
        arguments = ("bench", "--workloads", "512", "--rounds", "2", "--out", str(out))
        command = [sys.executable, "-m", "specvlm_sglang.tools.cli", *arguments]
        status = subprocess.run(command, check=False).returncode or status
    print(f"\n{text}\nwritten to {out}: attach its files to an issue")
    return status


if __name__ == "__main__":
    sys.exit(main())
