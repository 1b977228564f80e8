"""Give the target's KV pool the memory that a pruned draft does not need.

SGLang sizes the target's pool as if the draft held one slot of the target's width per target token
and draft layer. It takes the draft's depth from one record, which we correct: the depth that a
draft of the target's width would have, for the bytes that the private pool really takes. A draft's
pool of a given size (``--specvlm-draft-kv-tokens``) is taken off the memory instead.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Protocol

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_RUNNER = "sglang.srt.model_executor.model_runner"


class DraftPool(Protocol):
    """The settings that a draft's pool is sized by."""

    @property
    def draft_kv_tokens(self) -> int | None:
        """Its slots; None sizes it by its share."""

    @property
    def draft_kv_share(self) -> float:
        """Its slots per slot of the target's."""


def equivalent_layers(
    draft_layers: int, draft_kv_width: int, target_kv_width: int, share: float
) -> int:
    """Layers of the target's width that take as much memory as the draft's pool, rounded up.

    Parameters
    ----------
    draft_layers
        Attention layers of the draft.
    draft_kv_width, target_kv_width
        KV heads times head dimension.
    share
        Draft slots per target slot.
    """
    return max(1, math.ceil(draft_layers * draft_kv_width / target_kv_width * share))


def install_in_scheduler(algorithm: str, settings: Callable[[], DraftPool]) -> None:
    """Correct the record in this process if it is a scheduler (the module is loaded); idempotent.

    Parameters
    ----------
    algorithm
        The speculative algorithm whose draft has a private pool.
    settings
        Asked when SGLang sizes its pools.
    """
    if _RUNNER not in sys.modules:
        return
    contract.require("memory budget")

    def correct(original: Callable[..., Any]) -> Callable[..., Any]:
        def resolve(*, model_config: Any, spec_algorithm: Any, **kwargs: Any) -> Any:
            record = original(model_config=model_config, spec_algorithm=spec_algorithm, **kwargs)
            draft = record.draft_model_config
            if getattr(spec_algorithm, "name", None) != algorithm or draft is None:
                return record
            if not _names_a_draft():
                # SGLang takes a target's own head for many tokens for the draft.
                record.eagle_draft_num_layers = 0
                return record
            pool = settings()
            if pool.draft_kv_tokens is not None:
                record.eagle_draft_num_layers = 0
                return record
            record.eagle_draft_num_layers = equivalent_layers(
                record.eagle_draft_num_layers,
                _kv_width(draft),
                _kv_width(model_config),
                pool.draft_kv_share,
            )
            return record

        return resolve

    def take_off(original: Callable[..., Any]) -> Callable[..., Any]:
        def configure(self: Any, kvc: Any) -> None:
            original(self, kvc)
            if getattr(kvc.spec_algorithm, "name", None) != algorithm or kvc.is_draft_worker:
                return
            record, tokens = kvc.spec_aux_config, settings().draft_kv_tokens
            if tokens is None or record.draft_model_config is None:
                return
            layers = equivalent_layers(
                record.draft_kv_num_layers,
                _kv_width(record.draft_model_config),
                _kv_width(kvc.model_config),
                1.0,
            )
            layer_bytes = self._cell_size / kvc.layer_info.num_effective_layers
            self._fixed_overhead_bytes += math.ceil(tokens * layers * layer_bytes)

        return configure

    replace_function(
        "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state",
        "resolve_spec_aux_hidden_state_config",
        correct,
    )
    replace_function(
        "sglang.srt.model_executor.pool_configurator", "DefaultPoolConfigurator.__init__", take_off
    )


def _names_a_draft() -> bool:
    """Whether there is a draft model; without one the target drafts for itself."""
    from sglang.srt.runtime_context import get_spec

    return get_spec().speculative_draft_model_path is not None


def _kv_width(model_config: Any) -> int:
    from sglang.srt.runtime_context import get_parallel

    # Per rank: with fewer heads than ranks each rank holds one, of the draft as of the target.
    heads = model_config.get_num_kv_heads(get_parallel().attn_tp_size)
    return int(heads * model_config.head_dim)
