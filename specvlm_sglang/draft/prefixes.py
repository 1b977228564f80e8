"""Draft KV of a prompt up to the end of its last video, for further questions and turns.

Where a policy does not look at the question, the tokens that are kept belong to the video. All that
the draft computes up to the video's end is then the same for every prompt that begins alike, and
stays in the draft's KV cache, least recently used out first, until the slots are wanted.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from specvlm_sglang.copies import LateFlag
from specvlm_sglang.draft.features import agree_on_pixels, sample_of
from specvlm_sglang.draft.inputs import DraftPrompt, first_ids
from specvlm_sglang.request import RequestState

CACHED_SHARE = 0.5
"""Of the draft's KV cache, at most, for beginnings of prompts."""


@dataclass(frozen=True, eq=False)
class PrefixKey:
    """What a prefix was computed from.

    Attributes
    ----------
    digest
        Of token ids, hashes and positions of contents, and what is kept of them.
    samples
        Some pixels of each image and video (`sample_of`): a hash alone may be another content's.
    """

    digest: bytes
    samples: tuple[torch.Tensor | None, ...] = ()

    def agrees(self, other: PrefixKey) -> bool:
        """Whether both are of the same contents."""
        pairs = zip(self.samples, other.samples, strict=True)
        return self.digest == other.digest and all(agree_on_pixels(*pair) for pair in pairs)


@dataclass(eq=False)
class Prefix:
    """The beginning of a draft prompt whose KV is in the cache.

    Attributes
    ----------
    slots
        int64, whole pages of the draft's KV cache, on the device.
    tail
        The tokens after the whole pages, fewer than a page; None without any.
    filled
        Tokens of the target's prompt that it stands for.
    fallback
        Whether the policy had nothing to rank by, where the device has yet to say.
    users
        Rows that read it.
    is_forgotten
        Whether its slots are to be returned when the last row has gone.
    """

    slots: torch.Tensor
    tail: DraftPrompt | None
    filled: int
    fallback: LateFlag | None = None
    users: int = 0
    is_forgotten: bool = False

    @property
    def held(self) -> int:
        """Slots of the cache."""
        return self.slots.shape[0]


class Prefixes:
    """Prefixes by what they were computed from.

    Parameters
    ----------
    capacity
        Slots that all of them may hold together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._known: OrderedDict[bytes, Prefix] = OrderedDict()
        self._keys: dict[bytes, PrefixKey] = {}
        self.hits = 0

    @property
    def held(self) -> int:
        """Slots of all that are known."""
        return sum(prefix.held for prefix in self._known.values())

    @property
    def unused(self) -> int:
        """Slots of those that no row reads."""
        return sum(prefix.held for prefix in self._known.values() if not prefix.users)

    def get(self, key: PrefixKey | None) -> Prefix | None:
        """The prefix of that key, the most recently used now."""
        if key is None or not self.knows(key) or not key.agrees(self._keys[key.digest]):
            return None
        self.hits += 1
        self._known.move_to_end(key.digest)
        return self._known[key.digest]

    def knows(self, key: PrefixKey) -> bool:
        """Whether there is one of that digest; counts as no use."""
        return key.digest in self._known

    def add(self, key: PrefixKey, prefix: Prefix) -> list[torch.Tensor]:
        """Remember ``prefix``; slots of those that had to go for it."""
        self._known[key.digest], self._keys[key.digest] = prefix, key
        return self.make_room(self.held - self.capacity)

    def make_room(self, slots: int) -> list[torch.Tensor]:
        """Forget the least recently used that no row reads; so many slots, or all there are."""
        freed: list[torch.Tensor] = []
        for digest, prefix in list(self._known.items()):
            if slots <= 0:
                break
            if not prefix.users:
                freed.append(self._known.pop(digest).slots)
                del self._keys[digest]
                slots -= prefix.held
        return freed

    def clear(self) -> list[torch.Tensor]:
        """Forget all; slots of those that no row reads. The others follow their last row."""
        freed = self.make_room(self.held)
        for prefix in self._known.values():
            prefix.is_forgotten = True
        self._known.clear()
        self._keys.clear()
        return freed


def end_of_videos(state: RequestState) -> int:
    """Tokens of a prompt up to the end of its last video; 0 without any."""
    places = state.layout.video_positions
    return int(places[-1]) + 1 if len(places) else 0


def key_of(req: Any, state: RequestState) -> PrefixKey | None:
    """What a request's prefix is computed from; None where the question matters.

    Parameters
    ----------
    req
        SGLang's ``Req``: token ids, contents and positions of its images and videos.
    state
        Ours: what is kept of them, and how.
    """
    stop = end_of_videos(state)
    options = state.options
    if not stop or options.detail or (state.prunes and options.chosen.needs_scores):
        return None
    digest = hashlib.sha256(first_ids(req, stop).tobytes())
    inputs, samples = req.multimodal_inputs, []
    for item in inputs.mm_items:
        if item.hash is None:
            return None
        if item.offsets[0][0] < stop:
            digest.update(f"{item.modality} {item.hash} {item.offsets}".encode())
            samples.append(sample_of(item))
    positions = getattr(inputs, "mrope_positions", None)
    if positions is not None:
        # Times of frames move these, and nothing else that is compared here.
        digest.update(np.ascontiguousarray(positions[:, :stop].cpu().numpy()).tobytes())
    # Several videos share one budget by how it came about.
    budget = (state.kept_video_tokens, options.retention, options.draft_video_tokens)
    kept = (options.policy, options.top_p, *budget) if state.prunes else "all"
    digest.update(str(kept).encode())
    return PrefixKey(digest.digest(), tuple(samples))
