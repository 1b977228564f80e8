"""``python -m tests.pythons VERSION ...``: the quick tests on each Python.

Each version has an environment of its own, ``.venvs/VERSION``, with the locked packages. Quick are
the tests that start no server and are not marked slow. The exit status is 0 only if every version
was found and passed; PYTEST_ADDOPTS is pytest's own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

from tests.support.interpreters import ROOT, find_interpreter, outside_environment, uv_command

QUICK = "not slow and not serving"


def run(version: str) -> str | None:
    """Test on one Python; returns what went wrong, or None.

    Parameters
    ----------
    version : str
        Such as "3.12".
    """
    try:
        interpreter = find_interpreter(version, fetch=True)
    except LookupError as error:
        return f"not tested: {error}"
    environment = {
        **outside_environment(),
        "UV_PROJECT_ENVIRONMENT": str(ROOT / ".venvs" / version),
        "UV_PYTHON": str(interpreter),
        "UV_HTTP_TIMEOUT": "300",
    }
    uv = uv_command()
    print(f"\n== Python {version} ({interpreter})", flush=True)
    if _status([uv, "sync", "--frozen", "--quiet"], environment):
        return f"not tested: the packages could not be installed into .venvs/{version} (see above)"
    tests = ["pytest", "-m", QUICK, "-p", "no:cacheprovider"]
    if _status([uv, "run", "--frozen", "--no-sync", *tests], environment):
        return "failed (see above)"
    return None


def _status(command: Sequence[str], environment: dict[str, str]) -> int:
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="such as 3.12")
    outcomes = {version: run(version) for version in parser.parse_args().versions}
    print()
    for version, problem in outcomes.items():
        print(f"Python {version}: {problem or 'passed'}")
    return int(any(outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
