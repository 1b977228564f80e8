"""The servers of a benchmark: which live together, how each is launched, what memory it takes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from specvlm_sglang.tools.bench.configurations import NGRAM, PLAIN, SELF, TREE
from specvlm_sglang.tools.bench.environment import nvidia_smi
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from specvlm_sglang.tools.needs import weight_bytes

_OVERHEAD_BYTES = 4 << 30
"""Host memory of a server's processes beyond the weights, generously."""


def launch_arguments(
    server: str,
    *,
    draft: str,
    dtype: str,
    steps: int,
    tree: tuple[int, int, int],
    top_p: float,
    mm_config: Mapping[str, Any],
    exact_vision: bool,
    more: Sequence[str],
) -> tuple[str, ...]:
    """Arguments of the server ``plain``, ``ngram``, ``chain``, ``tree`` or ``self``.

    Parameters
    ----------
    steps
        Draft tokens of the chain.
    tree
        Depth, branches per node, verified tokens.
    mm_config
        SGLang's ``--mm-process-config``.
    more
        Given to every server.
    """
    common = common_arguments(dtype, mm_config=mm_config, exact_vision=exact_vision)
    if server == PLAIN:
        return (*common, *more)
    if server == NGRAM:
        return (*common, *more, "--speculative-algorithm", "NGRAM")
    depth, branches, verified = tree if server == TREE else (steps, 1, steps + 1)
    specvlm = specvlm_arguments(
        None if server == SELF else draft,
        steps=depth,
        branches=branches,
        verified=verified,
        # Requests choose their own retention, up to all: the draft's pool must hold that.
        retention=1.0,
        top_p=top_p,
    )
    return (*common, *more, *specvlm)


def batches(servers: Sequence[str], at_once: int) -> list[list[str]]:
    """Which servers live together: plain decoding beside as many others as fit.

    With one at a time, every server is alone.
    """
    if at_once == 1:
        return [[server] for server in servers]
    others = [server for server in servers if server != PLAIN]
    if not others:
        return [[PLAIN]]
    size = at_once - 1
    return [[PLAIN, *others[at : at + size]] for at in range(0, len(others), size)]


def servers_that_fit(target: str) -> int:
    """How many servers of ``target`` this machine can hold; 1 where there is a GPU."""
    if shutil.which("nvidia-smi") is not None:
        return 1
    weights = weight_bytes(target) or 0
    free = int(psutil.virtual_memory().available)
    return max(1, free // (2 * weights + _OVERHEAD_BYTES))


def peak_memory_bytes(processes: Sequence[psutil.Process]) -> int:
    """Largest resident memory of processes since they started, added up.

    Pages that they share are counted in each.
    """
    peak = 0
    for process in processes:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        lines = (line.split() for line in status.splitlines())
        peak += sum(int(line[1]) * 1024 for line in lines if line[:1] == ["VmHWM:"])
    return peak


def gpu_memory_bytes(processes: Sequence[psutil.Process]) -> int | None:
    """GPU memory of processes now, as the driver counts it; None without a driver."""
    rows = nvidia_smi("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    if rows is None:
        return None
    mine = {process.pid for process in processes}
    used = [row.split(",") for row in rows if row.count(",") == 1]
    return sum(int(mib) << 20 for pid, mib in used if int(pid) in mine)
