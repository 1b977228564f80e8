"""Enlarges the target for measurements of speed; the code ships with the demo, which needs it too.

python -m benchmarks.tinyvid.enlarge --parameters 500M --out DIR
"""

from __future__ import annotations

from specvlm_sglang.tools.demo.enlarge import LAYERS, enlarge, main, parse_count

__all__ = ["LAYERS", "enlarge", "main", "parse_count"]

if __name__ == "__main__":
    main()
