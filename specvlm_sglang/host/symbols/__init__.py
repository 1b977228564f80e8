"""The contract table, room by room. Add a line when you rely on something new in SGLang."""

from __future__ import annotations

from collections.abc import Mapping

from specvlm_sglang.host.symbol import Symbol
from specvlm_sglang.host.symbols.cpu import CPU
from specvlm_sglang.host.symbols.robustness import ROBUSTNESS
from specvlm_sglang.host.symbols.server import SERVER
from specvlm_sglang.host.symbols.speculation import SPECULATION
from specvlm_sglang.host.symbols.video import VIDEO

SYMBOLS: Mapping[str, tuple[Symbol, ...]] = {
    **SERVER,
    **ROBUSTNESS,
    **SPECULATION,
    **VIDEO,
    **CPU,
}
