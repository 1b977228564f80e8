"""A draft for a target with more token ids: published sizes of a family are padded differently."""

from __future__ import annotations

from typing import Any

import torch


def limit_drafts(processor: Any, target_size: int) -> None:
    """Let the draft propose only tokens that the target has.

    Parameters
    ----------
    processor
        SGLang's ``LogitsProcessor`` of the draft.
    target_size
        Token ids of the target.
    """
    processor.vocab_size = min(processor.vocab_size, target_size)


def widen_embedding(embedding: Any, target_size: int) -> None:
    """Give the draft an embedding, of zeros, for every token of the target.

    The target may emit an id of its padding (``logit_bias`` can ask for it), and the draft is fed
    what the target emits: an id beyond its table would end the process on CUDA.

    Parameters
    ----------
    embedding
        SGLang's ``VocabParallelEmbedding`` of the draft. Several ranks mask foreign ids themselves.
    target_size
        Token ids of the target.
    """
    weight = embedding.weight
    missing = target_size - weight.shape[0]
    if missing > 0 and embedding.tp_size == 1:
        # In place: an output layer may share the parameter.
        weight.data = torch.cat([weight.data, weight.new_zeros((missing, weight.shape[1]))])
