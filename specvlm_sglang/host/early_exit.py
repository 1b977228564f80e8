"""The first layers of a language model, followed by its final norm and output layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specvlm_sglang.host import contract


def decoder_of(model: Any) -> Any:
    """The module that runs the decoder layers of SGLang's model class ``model``, one after another.

    Raises
    ------
    ValueError
        Its layers are not run as SGLang's pipeline stages are, so they cannot be cut short.
    """
    contract.require("early_exit")
    found = [module for module in model.modules() if isinstance(vars(module).get("end_layer"), int)]
    if len(found) != 1:
        raise ValueError(
            f"--specvlm-self-layers does not work with {type(model).__name__}: its layers cannot "
            "be cut short"
        )
    return found[0]


@contextmanager
def first_layers(decoder: Any, count: int) -> Iterator[None]:
    """Let ``decoder`` end after its first ``count`` layers within this context alone."""
    whole = decoder.end_layer
    decoder.end_layer = count
    try:
        yield
    finally:
        decoder.end_layer = whole
