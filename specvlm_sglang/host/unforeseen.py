"""What nobody foresaw in a request is a 400 of this request, not an error of the server.

SGLang's handlers make a 400 of a ``ValueError`` alone; a field of another type than its code
expects fails as something else, which is a 500, or the sudden end of a stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.host.refusals import reason_of

_FROM_A_REQUEST = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RecursionError, TypeError),
)
"""What reading a request raises where one of its fields is not what SGLang takes it for."""


def install_in_tokenizer() -> None:
    """Refuse such requests in this process, the tokenizer manager's; idempotent."""
    contract.require("unforeseen")
    replace_function(
        "sglang.srt.managers.tokenizer_manager", "TokenizerManager.generate_request", _refusing
    )


def _refusing(original: Callable[..., Any]) -> Callable[..., Any]:
    async def generate_request(self: Any, obj: Any, request: Any = None) -> AsyncIterator[Any]:
        has_begun = False
        try:
            async with aclosing(original(self, obj, request)) as answers:
                async for answer in answers:
                    has_begun = True
                    yield answer
        except Exception as error:
            if not hasattr(obj, "is_single"):
                # Not even read: the end of its stream aborts what these two name.
                obj.is_single, obj.rid = True, None
            if has_begun or not isinstance(error, _FROM_A_REQUEST):
                raise
            raise ValueError(
                f"a field of the request has a type or value that cannot be read: "
                f"{reason_of(error)}"
            ) from error

    return generate_request
