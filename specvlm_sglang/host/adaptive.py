"""``--speculative-adaptive`` for an algorithm that SGLang does not know by name.

SGLang 0.5.23 allows its adaptive controller for EAGLE and EAGLE3 only, by name, and takes the steps
to choose from out of a table of its own. The controller itself asks nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install(name: str, unsupported: Callable[[Any], str | None]) -> None:
    """Let ``name`` switch its steps; idempotent.

    Parameters
    ----------
    name
        Of the algorithm.
    unsupported
        Given SGLang's ``ServerArgs``, says why it cannot, or None.
    """
    contract.require("adaptive")

    def allowed(original: Callable[..., str | None]) -> Callable[..., str | None]:
        def adaptive_unsupported_reason(server_args: Any) -> str | None:
            if server_args.speculative_algorithm != name:
                return original(server_args)
            return unsupported(server_args)

        return adaptive_unsupported_reason

    def own_steps(original: Callable[..., None]) -> Callable[..., None]:
        def _init_adaptive_speculative_params(server_args: Any) -> None:
            if server_args.speculative_algorithm != name:
                original(server_args)

        return _init_adaptive_speculative_params

    replace_function(
        "sglang.srt.speculative.adaptive_spec_params", "adaptive_unsupported_reason", allowed
    )
    replace_function(
        "sglang.srt.arg_groups.speculative_hook", "_init_adaptive_speculative_params", own_steps
    )
