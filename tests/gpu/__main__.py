"""``python -m tests.gpu``: run what needs a GPU, and write a report to attach to an issue."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specvlm_sglang.tools.bench.environment import environment


class Recorder:
    """Collects what pytest says of each test."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a test's outcome: of its call, or of a set-up that skipped or failed."""
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            reason = "" if report.passed else _last_line(report)
            self.rows.append((report.nodeid, report.outcome, report.duration, reason))


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return lines[0][1:].strip() if lines else report.longreprtext[-200:]


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
    options.out.mkdir(parents=True, exist_ok=True)
    recorder, started = Recorder(), time.monotonic()
    # The CPU's twins of these tests are marked slow, or run in `make test`.
    wanted = ["tests/gpu", "-m", "gpu", "-p", "no:cacheprovider"]
    status = int(pytest.main(wanted, plugins=[recorder]))
    text = markdown(environment(), recorder, time.monotonic() - started)
    file = options.out / "report.md"
    file.write_text(text)
    skipped = all(outcome == "skipped" for _, outcome, _, _ in recorder.rows)
    if not options.no_bench and not skipped:
        bench = ("bench", "--workloads", "512", "--rounds", "2", "--out", str(options.out))
        command = [sys.executable, "-m", "specvlm_sglang.tools.cli", *bench]
        status = subprocess.run(command, check=False).returncode or status
    print(f"\n{text}\nwritten to {options.out}: attach its files to an issue")
    if skipped:
        print("Nothing ran: there is no CUDA device.")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
