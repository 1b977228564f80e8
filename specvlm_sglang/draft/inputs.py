"""What the draft is prefilled with: the kept part of the prompt and the target's first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from specvlm_sglang.copies import to_device
from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.models import ModelFamily
from specvlm_sglang.pruning.layout import VideoLayout


@dataclass(frozen=True, eq=False)
class DraftPrompt:
    """What one request's draft is prefilled with, on the device.

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
    deepstack
        ``[tokens, layers * hidden]``, what is added to the outputs of the first decoder layers;
        None where the family or the prompt has none.
    first
        Tokens that the draft's cache holds before them.
    """

    embeddings: torch.Tensor
    input_ids: torch.Tensor
    mrope_positions: torch.Tensor | None
    positions: torch.Tensor | None = None
    deepstack: torch.Tensor | None = None
    first: int = 0

    @property
    def tokens(self) -> int:
        """Tokens to prefill."""
        return self.input_ids.shape[0]

    @property
    def stop(self) -> int:
        """Length of the draft after it."""
        return self.first + self.tokens

    def part(self, start: int, stop: int) -> DraftPrompt:
        """Its tokens from ``start`` to ``stop``, counted from 0."""
        own, mrope = slice(start, stop), self.mrope_positions
        return DraftPrompt(
            self.embeddings[own],
            self.input_ids[own],
            None if mrope is None else mrope[:, own],
            None if self.positions is None else self.positions[own],
            None if self.deepstack is None else self.deepstack[own],
            self.first + start,
        )

    def copied(self) -> DraftPrompt:
        """The same in memory of its own: a part no longer holds the whole."""

        def copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.clone()

        return DraftPrompt(
            self.embeddings.clone(),
            self.input_ids.clone(),
            copy(self.mrope_positions),
            copy(self.positions),
            copy(self.deepstack),
            self.first,
        )

    def after(self, tail: DraftPrompt | None, first: int) -> DraftPrompt:
        """This prompt behind ``tail``; the draft's cache holds ``first`` tokens before both."""
        if tail is None:
            return replace(self, first=first)

        def joined(one: torch.Tensor | None, two: torch.Tensor | None) -> torch.Tensor | None:
            return None if one is None or two is None else torch.cat([one, two])

        mrope = None
        if tail.mrope_positions is not None and self.mrope_positions is not None:
            mrope = torch.cat([tail.mrope_positions, self.mrope_positions], dim=1)
        deepstack = self.deepstack
        if tail.deepstack is not None and deepstack is None:
            deepstack = tail.deepstack.new_zeros((self.tokens, tail.deepstack.shape[1]))
        return DraftPrompt(
            torch.cat([tail.embeddings, self.embeddings]),
            torch.cat([tail.input_ids, self.input_ids]),
            mrope,
            joined(tail.positions, self.positions),
            joined(tail.deepstack, deepstack),
            first,
        )


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
        The tokens of this part, as a half-open range of the draft's.
    """

    index: int
    prompt: DraftPrompt
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt is complete after this part."""
        return self.stop == self.prompt.stop

    def of(self, per_token: torch.Tensor) -> torch.Tensor:
        """Return this part of ``[tokens, ...]`` of the prompt."""
        first = self.prompt.first
        return per_token[self.start - first : self.stop - first]

    def slots(self, row: torch.Tensor) -> torch.Tensor:
        """Return this part of a row of the draft's table, int64."""
        return row[self.start : self.stop].long()

    @property
    def mrope_positions(self) -> torch.Tensor | None:
        """M-RoPE ids by the draft's index, ``[3, first + tokens]``; zeros before the prompt."""
        ids = self.prompt.mrope_positions
        if ids is None or self.prompt.first == 0:
            return ids
        return pad(ids, (self.prompt.first, 0))


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
        start = prompt.first
        while start < prompt.stop:
            stop = min(prompt.stop, start + room)
            if stop < prompt.stop:
                stop -= stop % page_size
            if stop <= start:
                passes.append([])
                room = pass_tokens
                continue
            passes[-1].append(PromptPart(index, prompt, start, stop))
            room -= stop - start
            start = stop
    return passes


def deepstack_of(parts: Sequence[PromptPart]) -> torch.Tensor | None:
    """Return the deepstack features of a pass, ``[tokens, layers * hidden]``; None without any.

    Prompts that have none get zeros.
    """
    known = [part.prompt.deepstack for part in parts if part.prompt.deepstack is not None]
    if not known:
        return None
    return torch.cat(
        [
            known[0].new_zeros((part.stop - part.start, known[0].shape[1]))
            if part.prompt.deepstack is None
            else part.of(part.prompt.deepstack)
            for part in parts
        ]
    )


def pass_bytes(parts: Sequence[PromptPart], text: Any, itemsize: int) -> int:
    """What a pass takes for a while, estimated: a layer's activations, and logits twice.

    ``text`` is the draft's text configuration, ``itemsize`` that of its dtype.
    """
    tokens = sum(part.stop - part.start for part in parts)
    width = 6 * text.hidden_size + 3 * text.intermediate_size
    logits = 2 * len(parts) * text.vocab_size * torch.float32.itemsize
    return int(tokens * width * itemsize + logits)


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


def encode_prompt(req: Any, filled: int, features: DraftFeatures, begin: int = 0) -> EncodedPrompt:
    """Encode the images and videos of SGLang's ``Req``, or take them from the cache.

    Parameters
    ----------
    req
        Its images and videos.
    filled
        Tokens that the target has processed.
    features
        The draft's.
    begin
        Items that end before this token are left out.

    Raises
    ------
    ValueError
        See `DraftFeatures.of`.
    """
    feature_row = np.full(filled, -1, dtype=np.int64)
    encoded: list[torch.Tensor] = []
    rows = 0
    for item in [] if req.multimodal_inputs is None else req.multimodal_inputs.mm_items:
        if item.offsets[-1][1] < begin:
            continue
        encoded.append(features.of(item))
        for first, last in item.offsets:
            count = last - first + 1
            feature_row[first : last + 1] = np.arange(rows, rows + count)
            rows += count
    # One video is the rule, and a tenth of it is kept: not copied to be gathered from.
    together = torch.cat(encoded) if len(encoded) > 1 else next(iter(encoded), None)
    return EncodedPrompt(together, feature_row)


def build_draft_prompt(
    req: Any,
    filled: int,
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
    begin: int = 0,
) -> DraftPrompt:
    """Gather the kept tokens of one request; no host sync.

    Parameters
    ----------
    req
        SGLang's ``Req`` whose target prefill is complete.
    filled
        Tokens that the target has processed; ``req`` may have generated more.
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
    begin
        Leave out what stands before this token of the prompt; all after it is kept then.
    """
    device = newest_token.device
    kept = kept_positions(prompt, filled, kept_video_indices, device)[begin:]
    ids = torch.from_numpy(first_ids(req, filled))
    encoded = encode_prompt(req, filled, features, begin) if encoded is None else encoded
    ids[torch.from_numpy(encoded.rows) >= 0] = 0
    kept_ids = torch.cat([to_device(ids, device)[kept], newest_token.long()])
    embeddings, deepstack = embed_tokens(kept_ids), None
    if encoded.features is not None:
        hidden = embeddings.shape[1]
        source = to_device(torch.from_numpy(encoded.rows), device)[kept]
        visual = encoded.features[source.clamp(min=0)].to(embeddings.dtype)
        if kept_features is not None:
            video = to_device(torch.from_numpy(prompt.video_positions), device)[kept_video_indices]
            places = torch.searchsorted(kept, video)
            visual.index_copy_(0, places, kept_features.to(embeddings.dtype))
        is_visual = (source >= 0)[:, None]
        embeddings[:-1] = torch.where(is_visual, visual[:, :hidden], embeddings[:-1])
        if visual.shape[1] > hidden:
            # Text and the newest token have none.
            deepstack = pad(visual[:, hidden:] * is_visual, (0, 0, 0, 1))
    positions = family.prompt_positions(req.multimodal_inputs, filled + 1, device)
    if positions is not None:
        positions = torch.cat([positions[:, :-1][:, kept], positions[:, -1:]], dim=1)
    elif original_positions:
        places = torch.cat([kept, kept.new_full((1,), filled)])
        return DraftPrompt(embeddings, kept_ids, None, places, deepstack)
    return DraftPrompt(embeddings, kept_ids, positions, deepstack=deepstack)


def build_continuation(
    req: Any,
    total: int,
    behind: int,
    first: int,
    newest_token: torch.Tensor,
    *,
    family: ModelFamily,
    embed_tokens: Any,
    original_positions: bool = False,
) -> DraftPrompt:
    """Gather what a draft has missed of the answer; no host sync.

    Parameters
    ----------
    req
        SGLang's ``Req``; it knows all tokens but the newest, or that too.
    total
        Tokens of the request, the newest included.
    behind
        Of these, how many the draft lacks, the newest included.
    first
        Tokens that the draft's cache holds.
    newest_token
        ``[1]``, on the device.
    family, embed_tokens, original_positions
        As for `build_draft_prompt`.
    """
    device = newest_token.device
    generated = total - len(req.origin_input_ids)
    missed = np.array(req.output_ids[generated - behind : generated - 1], dtype=np.int64)
    ids = torch.cat([to_device(torch.from_numpy(missed), device), newest_token.long()])
    positions = family.prompt_positions(req.multimodal_inputs, total, device)
    places = None
    if positions is not None:
        positions = positions[:, -behind:]
    elif original_positions:
        places = torch.arange(total - behind, total, device=device)
    return DraftPrompt(embed_tokens(ids), ids, positions, places, first=first)


def first_ids(req: Any, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The first ``count`` ids of a request's prompt and answer."""
    prompt = np.array(req.origin_input_ids[:count], dtype=np.int64)
    generated = np.array(req.output_ids[: count - len(prompt)], dtype=np.int64)
    return np.concatenate([prompt, generated])


def kept_positions(
    prompt: VideoLayout,
    filled: int,
    kept_video_indices: torch.Tensor | None,
    device: torch.device,
) -> torch.Tensor:
    """Places of what a draft reads of the first ``filled`` tokens, int64, ascending; no host sync.

    Parameters are those of `build_draft_prompt`.
    """
    if kept_video_indices is None:
        return torch.arange(filled, device=device)
    text = to_device(torch.from_numpy(prompt.text_positions(filled)), device)
    video = to_device(torch.from_numpy(prompt.video_positions), device)[kept_video_indices]
    return torch.cat([text, video]).sort().values
