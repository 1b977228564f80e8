"""The draft's own visual features, cached by content: SGLang's hash of it, and a sample of pixels.

SGLang's feature cache is one per process and keyed by content alone, so it holds the target's
features: of another width, or of the same width and wrong. The draft has its own.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch

from specvlm_sglang.host import pixels
from specvlm_sglang.models import ModelFamily
from specvlm_sglang.report.phases import PhaseClock

LEAST_CACHE_BYTES = 256 << 20
CACHE_SHARE = 1 / 128
"""Of the device's memory: on 80 GB, features of 90,000 tokens of a 7B draft."""
_SAMPLED = 4096
"""Pixel values of each cached item that are compared before its features are given to another."""
_TOWER_WIDTH = 8
"""What a tower holds for a while, in sizes of its pixels; a guess on the safe side."""


def default_cache_bytes(device: torch.device | str) -> int:
    """Bytes of features that a draft on ``device`` keeps: a share of a GPU's memory."""
    if torch.device(device).type != "cuda":
        return LEAST_CACHE_BYTES
    _, total = torch.cuda.mem_get_info(device)
    return max(LEAST_CACHE_BYTES, int(total * CACHE_SHARE))


class DraftFeatures:
    """Encodes images and videos with the draft's vision tower, least recently used out first.

    Parameters
    ----------
    model
        SGLang's model class of the draft.
    family
        The adapter that knows how it encodes.
    device
        Where the model is.
    cache_bytes
        Bytes of features to keep; a larger item is encoded each time. None takes `CACHE_SHARE`.
    phases
        Counts the time of the encoder.
    width
        Hidden size of the layers that read the features, which are as wide, or several times
        (deepstack); None: not compared.
    """

    def __init__(
        self,
        model: Any,
        family: ModelFamily,
        *,
        device: torch.device | str = "cpu",
        cache_bytes: int | None = None,
        phases: PhaseClock | None = None,
        width: int | None = None,
    ) -> None:
        self._device = torch.device(device)
        self._model = model
        self._family = family
        self._cache_bytes = default_cache_bytes(device) if cache_bytes is None else cache_bytes
        self._cache: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._samples: dict[int, torch.Tensor | None] = {}
        self._phases = phases
        self._width = width
        self.bytes_in_use = 0
        self.hits = 0
        self.misses = 0

    def has(self, item: Any) -> bool:
        """Whether the features of one ``MultimodalDataItem`` are here."""
        return self._cached(item) is not None

    def bytes_to_encode(self, mm_inputs: Any, begin: int = 0) -> int:
        """What encoding these ``MultimodalInputs`` takes for a while, estimated from their pixels.

        A tower is several times as wide as its input for as long as it runs; items are encoded one
        after another. Those that end before token ``begin`` are not needed.
        """
        items = [] if mm_inputs is None else mm_inputs.mm_items
        pixels_ = [item.feature for item in items if not self._is_here(item, begin)]
        sizes = [one.nbytes for one in pixels_ if isinstance(one, torch.Tensor)]
        return _TOWER_WIDTH * max(sizes, default=0)

    def _is_here(self, item: Any, begin: int) -> bool:
        return self.has(item) or item.offsets[-1][1] < begin

    def _cached(self, item: Any) -> torch.Tensor | None:
        cached = self._cache.get(item.hash) if item.hash is not None else None
        if cached is None:
            return None
        # 64 bits may be another item's too, the more so where somebody looks for such a pair.
        same = agree_on_pixels(self._samples[item.hash], sample_of(item))
        return cached if same and cached.shape[0] == _placeholders(item) else None

    def of(self, item: Any) -> torch.Tensor:
        """Return the features of one ``MultimodalDataItem``, ``[tokens, hidden]``.

        Raises
        ------
        ValueError
            The item came with precomputed embeddings (the target's), or the encoder returned
            another number of tokens than the prompt has placeholders, or of another width than the
            draft reads.
        """
        placeholders = _placeholders(item)
        cached = self._cached(item)
        if cached is not None:
            self._cache.move_to_end(item.hash)
            self.hits += 1
            return cached
        self.misses += 1
        sample = sample_of(item)
        if item.feature is None:
            raise ValueError("the item has no pixels, only embeddings of the target")
        timed = nullcontext() if self._phases is None else self._phases("draft_vision")
        encode = self._family.encode
        with torch.no_grad(), timed, pixels.on_device(item, self._device, encode):
            features = encode(self._model, item)
        if features.shape[0] != placeholders:
            raise ValueError(
                f"the draft encodes {features.shape[0]} tokens where the prompt has {placeholders}"
            )
        if self._width is not None and features.shape[1] % self._width:
            raise ValueError(
                f"the draft encodes {features.shape[1]} values a token where its layers read "
                f"{self._width}"
            )
        self._remember(item.hash, features, sample)
        return features

    def _remember(
        self, key: int | None, features: torch.Tensor, sample: torch.Tensor | None
    ) -> None:
        size = features.numel() * features.element_size()
        if key is None or size > self._cache_bytes:
            return
        replaced = self._cache.pop(key, None)
        if replaced is not None:
            self.bytes_in_use -= replaced.numel() * replaced.element_size()
        self._cache[key], self._samples[key] = features, sample
        self.bytes_in_use += size
        while self.bytes_in_use > self._cache_bytes:
            gone, oldest = self._cache.popitem(last=False)
            del self._samples[gone]
            self.bytes_in_use -= oldest.numel() * oldest.element_size()

    def clear(self) -> None:
        """Forget everything."""
        self._cache.clear()
        self._samples.clear()
        self.bytes_in_use = 0


def _placeholders(item: Any) -> int:
    return sum(last - first + 1 for first, last in item.offsets)


def sample_of(item: Any) -> torch.Tensor | None:
    """Some of an item's pixels, evenly spaced, a copy; None where they are gone or on a device.

    A look at a device's memory would wait for it.
    """
    pixels = item.feature
    if not isinstance(pixels, torch.Tensor) or pixels.device.type != "cpu":
        return None
    flat = pixels.reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLED)].clone()


def agree_on_pixels(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two samples can be of the same pixels; those that are gone can."""
    return one is None or other is None or torch.equal(one, other)
