"""Arguments of ``sglang.launch_server`` that the tools use, each flag in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def common_arguments(
    dtype: str,
    *,
    exact_vision: bool = False,
    kv_tokens: int | None = None,
    mm_config: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Launch arguments of every server of a comparison, plain decoding's too.

    Parameters
    ----------
    dtype
        Of the models. On a GPU only Triton's kernels compute float32.
    exact_vision
        Whether Qwen2.5-VL videos are computed as transformers does.
    kv_tokens
        Size of the target's KV cache; None: SGLang takes what is free.
    mm_config
        SGLang's ``--mm-process-config``.
    """
    triton = dtype == "float32" and on_gpu()
    flags = {
        "--dtype": dtype,
        "--attention-backend": "triton" if triton else None,
        "--mm-attention-backend": "triton_attn" if triton else None,
        "--max-total-tokens": kv_tokens,
        "--mm-process-config": None if mm_config is None else json.dumps(mm_config),
    }
    return (*_words(flags), *(("--specvlm-exact-vision",) if exact_vision else ()))


def specvlm_arguments(
    draft: str | Path | None,
    *,
    steps: int | None = None,
    branches: int | None = None,
    verified: int | None = None,
    retention: float | None = None,
    top_p: float | None = None,
    policy_file: str | Path | None = None,
    self_layers: int | None = None,
) -> tuple[str, ...]:
    """Launch arguments that make a server a SPECVLM server; what is None keeps its default.

    Parameters
    ----------
    draft
        Draft model; None: the target drafts for itself.
    steps
        Draft tokens of a chain, or depth of a tree.
    branches, verified
        Branches per node and verified tokens of a tree.
    retention
        Share of the video tokens that the draft keeps; also the size of its KV cache.
    top_p
        Share of the attention mass that Stage I retains.
    policy_file
        Python file with policies of the user's own.
    self_layers
        How many layers of the target draft, where it drafts for itself.
    """
    return _words(
        {
            "--speculative-algorithm": "SPECVLM",
            "--speculative-draft-model-path": draft,
            "--specvlm-draft": "self" if draft is None else None,
            "--speculative-num-steps": steps,
            "--speculative-eagle-topk": branches,
            "--speculative-num-draft-tokens": verified,
            "--specvlm-retention": retention,
            "--specvlm-top-p": top_p,
            "--specvlm-policy-file": policy_file,
            "--specvlm-self-layers": self_layers,
        }
    )


def _words(flags: Mapping[str, object]) -> tuple[str, ...]:
    given = [(flag, str(value)) for flag, value in flags.items() if value is not None]
    return tuple(word for pair in given for word in pair)


def on_gpu() -> bool:
    """Whether SGLang will serve on CUDA."""
    import torch

    return torch.cuda.is_available()
