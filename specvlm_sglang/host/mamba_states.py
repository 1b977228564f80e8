"""States of linear attention after a verification: asked for once, not in every round.

SGLang 0.5.23 finds out from a target's configuration, after every verification anew, that it has no
such states: 4 % of a round of a tiny model on a CPU, by a profile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install() -> None:
    """Let verifications in this process remember which targets have no such states; idempotent."""
    contract.require("mamba states")
    replace_function(
        "sglang.srt.speculative.spec_utils", "commit_mamba_states_after_verify", _where_there_are
    )


def _where_there_are(original: Callable[..., None]) -> Callable[..., None]:
    without: WeakSet[Any] = WeakSet()

    def commit_mamba_states_after_verify(target_worker: Any, *args: Any, **kwargs: Any) -> None:
        from sglang.srt.configs.hybrid_arch import mambaish_config

        config = target_worker.model_runner.model_config
        if config in without:
            return
        if mambaish_config(config) is None:
            without.add(config)
        original(target_worker, *args, **kwargs)

    return commit_mamba_states_after_verify
