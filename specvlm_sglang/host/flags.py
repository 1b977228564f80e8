"""Our flags beside SGLang's own: `--help` shows them, parsing exports them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from specvlm_sglang import config
from specvlm_sglang.host import contract


def install(after_parsing: Callable[[], None]) -> None:
    """Extend SGLang's parser; ``after_parsing`` runs once the flags are in the environment."""
    from sglang.srt.server_args import ServerArgs

    contract.require("flags")
    add_original = ServerArgs.add_cli_args
    from_original = ServerArgs.from_cli_args.__func__

    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        add_original(parser)
        config.add_flags(parser)

    def from_cli_args(cls: Any, args: argparse.Namespace) -> Any:
        config.export_flags(args)
        after_parsing()
        return from_original(cls, args)

    ServerArgs.add_cli_args = staticmethod(add_cli_args)
    ServerArgs.from_cli_args = classmethod(from_cli_args)
