"""Images and videos of a batch, and of a prompt that gets several answers.

SGLang 0.5.23 takes the media of one prompt with ``n`` above 1 for those of a batch, drops what
exceeds the prompts of a batch without a word, fails where there is too little, and forgets
``video_config`` when it takes a batch apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_REQUEST = "sglang.srt.managers.io_struct"
MEDIA = ("image_data", "video_data", "audio_data")
_PER_IMAGE = ("mm_hashes", "mm_content_hashes")


def install() -> None:
    """Deal media to the prompts in this process; idempotent."""
    contract.require("batches")
    replace_function(_REQUEST, "GenerateReqInput._handle_parallel_sampling", _keep_together)
    replace_function(_REQUEST, "GenerateReqInput._normalize_batch_inputs", _count)
    replace_function(_REQUEST, "GenerateReqInput.__getitem__", _keep_video_config)


def _keep_together(original: Callable[..., None]) -> Callable[..., None]:
    """All media of a single prompt are that prompt's, however many answers it gets."""

    def _handle_parallel_sampling(self: Any) -> None:
        was_single = self.is_single
        original(self)
        if not was_single or self.is_single:
            return
        for name in (*MEDIA, *_PER_IMAGE):
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, [held if isinstance(held, list) else [held]])

    return _handle_parallel_sampling


def _count(original: Callable[..., None]) -> Callable[..., None]:
    """As many entries as prompts; each entry is one file or the list of a prompt's files."""

    def _normalize_batch_inputs(self: Any) -> None:
        for name in MEDIA:
            held = getattr(self, name)
            if not isinstance(held, list) or not held:
                continue
            if len(held) != self.batch_size:
                raise ValueError(
                    f"{name} has {len(held)} entries for {self.batch_size} prompts: a batch needs "
                    "one for each, null where a prompt has none"
                )
            if any(entry is None or isinstance(entry, list) for entry in held):
                setattr(self, name, [_as_list(entry) for entry in held])
        if not self.video_data:
            self.video_data = None
        original(self)

    return _normalize_batch_inputs


def _keep_video_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def __getitem__(self: Any, i: int) -> Any:
        one = original(self, i)
        one.video_config = self.video_config
        return one

    return __getitem__


def _as_list(entry: Any) -> list[Any]:
    if entry is None:
        return []
    return entry if isinstance(entry, list) else [entry]
