"""Ranks of one server share the machine's cores.

SGLang binds each rank of a CPU server to a NUMA node of its own through ``sgl_kernel``, and refuses
more ranks than nodes. Without that library nothing is bound, so the refusal would only forbid
``--tp-size 2`` on every ordinary machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

logger = logging.getLogger(__name__)


def install() -> None:
    """Divide torch's threads among the ranks of this server instead of binding them."""
    contract.require("threads")
    replace_function("sglang.srt.utils.numa_utils", "init_threads_binding", _shared)


def _shared(_: Callable[..., Any]) -> Callable[..., None]:
    def init_threads_binding(*, numa_index: int, world_size: int) -> None:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
        logger.info(
            "Rank %d of %d computes with %d threads.",
            numa_index,
            world_size,
            torch.get_num_threads(),
        )

    return init_threads_binding
