"""Making SGLang find the backend: by name, and for both kinds of draft forwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

BACKEND_NAME = "specvlm_torch"


def register() -> None:
    """Register the backend for ``--attention-backend`` and its draft variants; idempotent.

    Writes ``attention_registry.ATTENTION_BACKENDS``, extends the flags' choices
    (``arg_groups.choices``), and adds our builders to the two maps inside
    ``speculative.draft_utils.DraftBackendFactory``, which has no registry of its own. It must run
    before SGLang parses its arguments, in every process that builds a model runner.
    """
    contract.require("attention")
    from sglang.srt.arg_groups import choices
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    register_attention_backend(BACKEND_NAME)(_create_backend)
    for known, add in (
        (choices.ATTENTION_BACKEND_CHOICES, choices.add_attention_backend_choices),
        (choices.DRAFT_ATTENTION_BACKEND_CHOICES, choices.add_draft_attention_backend_choices),
    ):
        if BACKEND_NAME not in known:
            add([BACKEND_NAME])
    replace_function(
        "sglang.srt.speculative.draft_utils",
        "DraftBackendFactory._create_backend",
        _with_our_draft_backends,
    )


def _create_backend(runner: Any) -> Any:
    from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend

    return SpecVLMTorchAttnBackend(runner)


def _with_our_draft_backends(original: Callable[..., Any]) -> Callable[..., Any]:
    def create(
        self: Any,
        backend_name: str,
        backend_map: dict[str, Callable[[], tuple[str, Any]]],
        error_template: str,
        stamps_children: bool = False,
    ) -> Any:
        def build() -> tuple[str, Any]:
            # Only the container of per-step draft backends has children to stamp.
            if not stamps_children:
                return BACKEND_NAME, _create_backend(self.draft_model_runner)
            from specvlm_sglang.cpu.attention.draft import SpecVLMTorchMultiStepDraftBackend

            return BACKEND_NAME, SpecVLMTorchMultiStepDraftBackend(
                self.draft_model_runner, self.topk, self.speculative_num_steps
            )

        return original(
            self,
            backend_name,
            {**backend_map, BACKEND_NAME: build},
            error_template,
            stamps_children=stamps_children,
        )

    return create
