"""Our flags beside SGLang's own: `--help` shows them, parsing exports them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from specvlm_sglang import config
from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install(after_parsing: Callable[[], None]) -> None:
    """Extend SGLang's parser; ``after_parsing`` runs once the flags are in the environment.

    Idempotent: the first ``after_parsing`` stays.
    """
    contract.require("flags")

    def with_our_flags(original: Callable[..., None]) -> Callable[..., None]:
        def add_cli_args(parser: argparse.ArgumentParser) -> None:
            original(parser)
            config.add_flags(parser)

        return add_cli_args

    def exporting(original: Callable[..., Any]) -> Callable[..., Any]:
        def from_cli_args(cls: Any, args: argparse.Namespace) -> Any:
            config.export_flags(args)
            after_parsing()
            return original(cls, args)

        return from_cli_args

    module = "sglang.srt.server_args"
    replace_function(module, "ServerArgs.add_cli_args", with_our_flags)
    replace_function(module, "ServerArgs.from_cli_args", exporting)
