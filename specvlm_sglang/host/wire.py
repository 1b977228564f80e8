"""A request that SGLang's scheduler could not read is refused before it is sent there.

Some fields of a request may have any type for the HTTP server, and one type for the scheduler,
whose receiving ends with the first message that it cannot decode.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

from sglang.srt.managers import io_struct
from sglang.srt.managers.embed_types import PositionalEmbeds

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.host.refusals import reason_of

# SGLang packs these itself; they may be large.
_OPAQUE = ("mm_inputs", "time_stats")
_PLACE = re.compile(r"\$\[(\d+)\]")


def install_in_tokenizer() -> None:
    """Check what this process, the tokenizer manager's, would send; idempotent."""
    contract.require("wire")
    replace_function(
        "sglang.srt.managers.tokenizer_manager",
        "TokenizerManager._create_tokenized_object",
        _readable,
    )


def check(message: Any) -> None:
    """Raise ``ValueError`` naming the field of ``message`` that its reader would not understand."""
    probe = copy.copy(message)
    for field in _OPAQUE:
        setattr(probe, field, None)
    if isinstance(probe.positional_embed_overrides, PositionalEmbeds):
        probe.positional_embed_overrides = None
    try:
        io_struct.msgpack_decode(io_struct.msgpack_encode(probe))
    except Exception as error:
        place = _PLACE.search(str(error))
        # The first element of a message is its type.
        number = int(place[1]) - 1 if place else -1
        names = type(message).__struct_fields__
        name = names[number] if 0 <= number < len(names) else "a field"
        raise ValueError(f"{name} has a type that cannot be read: {reason_of(error)}") from error


def _readable(original: Callable[..., Any]) -> Callable[..., Any]:
    def _create_tokenized_object(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        check(made)
        return made

    return _create_tokenized_object
