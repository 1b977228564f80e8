"""Our flags beside SGLang's own: `--help` shows them, and parsing hands them over."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install(
    add_flags: Callable[[argparse.ArgumentParser], None],
    after_parsing: Callable[[argparse.Namespace], None],
) -> None:
    """Extend SGLang's parser in this process; idempotent: the first two functions stay.

    Parameters
    ----------
    add_flags
        Adds ours to SGLang's parser.
    after_parsing
        Gets what was parsed, before SGLang makes its own record of it.
    """
    contract.require("flags")

    def with_our_flags(original: Callable[..., None]) -> Callable[..., None]:
        def add_cli_args(parser: argparse.ArgumentParser) -> None:
            original(parser)
            add_flags(parser)

        return add_cli_args

    def handing_over(original: Callable[..., Any]) -> Callable[..., Any]:
        def from_cli_args(cls: Any, args: argparse.Namespace) -> Any:
            after_parsing(args)
            return original(cls, args)

        return from_cli_args

    module = "sglang.srt.server_args"
    replace_function(module, "ServerArgs.add_cli_args", with_our_flags)
    replace_function(module, "ServerArgs.from_cli_args", handing_over)
