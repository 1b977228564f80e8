"""Draft decode: one attention backend per drafting step, planned together before the first."""

from __future__ import annotations

from typing import Any, NoReturn

from sglang.srt.speculative.spec_utils import resolve_draft_decode_window

from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from specvlm_sglang.cpu.attention.registration import BACKEND_NAME
from specvlm_sglang.cpu.attention.requests import DraftStep


class SpecVLMTorchMultiStepDraftBackend:
    """Per-step backends for SGLang's ``draft_forward``, as ``TritonMultiStepDraftBackend`` is.

    Step ``i`` sees the committed tokens of a request and ``i + 1`` tokens of its own branch.

    Parameters
    ----------
    model_runner
        The draft's ``ModelRunner``.
    topk
        Branches per request (``--speculative-eagle-topk``).
    speculative_num_steps
        Draft tokens per branch. The last step only picks tokens, so one forward fewer is run.

    Attributes
    ----------
    attn_backends
        The backend of each forward.

    Raises
    ------
    ValueError
        If ``--speculative-draft-window-size`` restricts what the draft reads.
    """

    needs_cpu_seq_lens = True

    def __init__(self, model_runner: Any, topk: int, speculative_num_steps: int) -> None:
        window, _ = resolve_draft_decode_window(model_runner)
        if window > 0:
            raise ValueError(
                f"--speculative-draft-window-size {window} is not supported by {BACKEND_NAME}; "
                "leave it unset"
            )
        self.topk = topk
        self.speculative_num_steps = speculative_num_steps
        self.attn_backends = [
            SpecVLMTorchAttnBackend(
                model_runner,
                draft_step=DraftStep(i, topk, speculative_num_steps, model_runner.page_size),
            )
            for i in range(speculative_num_steps - 1)
        ]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan every step from the batch's committed ``seq_lens``."""
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> NoReturn:
        """Refuse graph capture."""
        raise NotImplementedError(f"{BACKEND_NAME} runs eagerly; pass --disable-cuda-graph")
