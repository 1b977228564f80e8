"""What the draft is prefilled with: the kept part of the prompt and the target's first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from specvlm_sglang.copies import to_device
from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.models import ModelFamily
from specvlm_sglang.pruning.layout import VideoLayout


@dataclass(frozen=True, eq=False)
class DraftPrompt:
    """One request's draft prompt, on the device.

    Attributes
    ----------
    embeddings
        ``[tokens, hidden]``: kept prompt tokens in order, then the newest token.
    input_ids
        int64 ``[tokens]``; placeholders of images and videos read 0.
    mrope_positions
        int64 ``[3, tokens]`` of the full prompt's numbering; None for 1-D positions.
    positions
        int64 ``[tokens]`` of the full prompt's numbering; None where they are contiguous or
        M-RoPE ids.
    """

    embeddings: torch.Tensor
    input_ids: torch.Tensor
    mrope_positions: torch.Tensor | None
    positions: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Length of the draft prompt."""
        return self.input_ids.shape[0]


@dataclass(frozen=True, eq=False)
class PromptPart:
    """What one forward pass sees of a draft prompt; all before it is in the draft's cache.

    Attributes
    ----------
    index
        The request's place in the batch.
    prompt
        Its whole draft prompt.
    start, stop
        The tokens of this part, as a half-open range.
    """

    index: int
    prompt: DraftPrompt
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt is complete after this part."""
        return self.stop == self.prompt.tokens

    def of(self, per_token: torch.Tensor) -> torch.Tensor:
        """Return this part of ``[tokens, ...]``."""
        return per_token[self.start : self.stop]


def split_into_passes(
    prompts: Sequence[tuple[int, DraftPrompt]], pass_tokens: int, page_size: int
) -> list[list[PromptPart]]:
    """Lay draft prompts into forward passes, in order, each as full as it gets.

    Parameters
    ----------
    prompts
        ``(index in the batch, prompt)``.
    pass_tokens
        At most so many tokens in a pass; taken as one page where it is less.
    page_size
        Prompts are cut between pages.
    """
    pass_tokens = max(pass_tokens, page_size)
    passes: list[list[PromptPart]] = []
    room = 0
    for index, prompt in prompts:
        start = 0
        while start < prompt.tokens:
            stop = min(prompt.tokens, start + room)
            if stop < prompt.tokens:
                stop -= stop % page_size
            if stop <= start:
                passes.append([])
                room = pass_tokens
                continue
            passes[-1].append(PromptPart(index, prompt, start, stop))
            room -= stop - start
            start = stop
    return passes


def draft_length(prompt: VideoLayout, filled: int, kept_video_tokens: int) -> int:
    """Tokens of the draft prompt, known before anything is computed.

    Parameters
    ----------
    prompt
        The request's prompt.
    filled
        Tokens that the target has prefilled: the prompt, and what was generated before a
        retraction.
    kept_video_tokens
        K.
    """
    return filled - prompt.video_tokens + kept_video_tokens + 1


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """What the draft's vision tower makes of a prompt's images and videos.

    Attributes
    ----------
    features
        ``[rows, hidden]`` of all of them; None without any.
    rows
        int64 ``[filled]`` on the host: each token's row of ``features``, -1 for text.
    """

    features: torch.Tensor | None
    rows: np.ndarray[Any, np.dtype[np.int64]]

    def of_videos(self, prompt: VideoLayout) -> torch.Tensor:
        """Features of the video tokens, ``[N, hidden]``."""
        assert self.features is not None
        rows = torch.from_numpy(self.rows[prompt.video_positions])
        return self.features[to_device(rows, self.features.device)]


def encode_prompt(req: Any, features: DraftFeatures) -> EncodedPrompt:
    """Encode the images and videos of SGLang's ``Req``, or take them from the cache.

    Raises
    ------
    ValueError
        See `DraftFeatures.of`.
    """
    feature_row = np.full(len(req.full_untruncated_fill_ids), -1, dtype=np.int64)
    encoded: list[torch.Tensor] = []
    rows = 0
    for item in [] if req.multimodal_inputs is None else req.multimodal_inputs.mm_items:
        encoded.append(features.of(item))
        for first, last in item.offsets:
            count = last - first + 1
            feature_row[first : last + 1] = np.arange(rows, rows + count)
            rows += count
    return EncodedPrompt(torch.cat(encoded) if encoded else None, feature_row)


def build_draft_prompt(
    req: Any,
    prompt: VideoLayout,
    kept_video_indices: torch.Tensor | None,
    newest_token: torch.Tensor,
    *,
    family: ModelFamily,
    features: DraftFeatures,
    embed_tokens: Any,
    original_positions: bool = False,
    encoded: EncodedPrompt | None = None,
    kept_features: torch.Tensor | None = None,
) -> DraftPrompt:
    """Gather the kept tokens of one request; no host sync.

    Parameters
    ----------
    req
        SGLang's ``Req`` whose target prefill is complete.
    prompt
        Its video positions.
    kept_video_indices
        int64 ``[K]`` ascending into the video tokens, on the device; None keeps all.
    newest_token
        ``[1]``, the token that the target sampled.
    family, features, embed_tokens
        The draft's adapter, its vision features, its token embedding.
    original_positions
        Number 1-D positions as in the full prompt instead of contiguously.
    encoded
        By default the prompt is encoded here.
    kept_features
        ``[K, hidden]``, read in place of the kept video tokens' own.
    """
    device = newest_token.device
    filled = len(req.full_untruncated_fill_ids)
    kept = _kept_positions(prompt, filled, kept_video_indices, device)
    ids = torch.from_numpy(np.array(req.full_untruncated_fill_ids, dtype=np.int64))
    encoded = encode_prompt(req, features) if encoded is None else encoded
    ids[torch.from_numpy(encoded.rows) >= 0] = 0
    kept_ids = torch.cat([to_device(ids, device)[kept], newest_token.long()])
    embeddings = embed_tokens(kept_ids)
    if encoded.features is not None:
        source = to_device(torch.from_numpy(encoded.rows), device)[kept]
        visual = encoded.features.to(embeddings.dtype)[source.clamp(min=0)]
        embeddings[:-1] = torch.where((source >= 0)[:, None], visual, embeddings[:-1])
    if kept_features is not None:
        video = to_device(torch.from_numpy(prompt.video_positions), device)[kept_video_indices]
        places = torch.searchsorted(kept, video)
        embeddings.index_copy_(0, places, kept_features.to(embeddings.dtype))
    positions = family.prompt_positions(req.multimodal_inputs, filled + 1, device)
    if positions is not None:
        positions = torch.cat([positions[:, :-1][:, kept], positions[:, -1:]], dim=1)
    elif original_positions:
        places = torch.cat([kept, kept.new_full((1,), filled)])
        return DraftPrompt(embeddings, kept_ids, None, places)
    return DraftPrompt(embeddings, kept_ids, positions)


def _kept_positions(
    prompt: VideoLayout,
    filled: int,
    kept_video_indices: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    if kept_video_indices is None:
        return torch.arange(filled, device=device)
    text = to_device(torch.from_numpy(prompt.text_positions(filled)), device)
    video = to_device(torch.from_numpy(prompt.video_positions), device)[kept_video_indices]
    return torch.cat([text, video]).sort().values
