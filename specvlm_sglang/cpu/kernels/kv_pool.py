"""Moving KV rows after a tree was verified."""

from __future__ import annotations

from typing import Any


def init_kv_copy(self: Any) -> None:
    """Have a KV pool in host memory move its rows with torch indexing.

    Speculative decoding makes SGLang prepare, and run once for warm-up, a Triton kernel that copies
    rows of all layers by raw address; its own plain-torch move does the same and is selected here.

    Notes
    -----
    Source: ``MHATokenToKVPool._init_kv_copy_and_warmup`` in ``sglang.srt.mem_cache.memory_pool``;
    ``use_native_move_kv_cache`` is what ``SGLANG_NATIVE_MOVE_KV_CACHE=1`` sets.
    """
    self.use_native_move_kv_cache = True
    self._kv_copy_config = None
