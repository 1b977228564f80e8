"""SPECVLM beside plain decoding by the same server software: the same as ``specvlm bench``.

python -m benchmarks.serving --out benchmarks/results/serving --bars
"""

from __future__ import annotations

import argparse
import signal
import sys

from specvlm_sglang.tools.bench.arguments import add_arguments
from specvlm_sglang.tools.bench.run import run


def main() -> int:
    """Run the benchmark; returns the exit status."""
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="specvlm bench", description="Measured side by side.")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
