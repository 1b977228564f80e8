"""What a user can set: `--specvlm-*` flags, `SPECVLM_*` environment variables.

SGLang's server arguments cannot be extended from outside. A flag is therefore written to its
environment variable as soon as the command line is parsed; every process of the server inherits it,
and `sglang.Engine` users set the variable themselves. A flag wins over the variable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


@dataclass(frozen=True)
class SpecVLMConfig:
    """Every setting of this plugin, validated.

    Attributes
    ----------
    exact_vision
        Compute Qwen2.5-VL videos as its authors' and transformers' code does: the vision tower's
        full-attention blocks attend within each temporal grid, and M-RoPE gets the clip's true
        seconds per grid. SGLang 0.5.23 does neither; off by default, because installing a plugin
        must not change anybody's answers.
    """

    exact_vision: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> SpecVLMConfig:
        """Read ``SPECVLM_*`` variables (of this process by default).

        Raises
        ------
        ValueError
            A value that cannot be used; the message names variable, value and range.
        """
        environment = os.environ if environment is None else environment
        return cls(exact_vision=_read_switch(environment, "SPECVLM_EXACT_VISION"))


def _read_switch(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "").strip().lower()
    if value not in _TRUE + _FALSE:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(_TRUE + _FALSE[:-1])}")
    return value in _TRUE


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the ``--specvlm-*`` flags to SGLang's argument parser."""
    group = parser.add_argument_group("SpecVLM", "speculative decoding for video LLMs")
    group.add_argument(
        "--specvlm-exact-vision",
        action="store_true",
        default=None,
        help="Compute Qwen2.5-VL video features and M-RoPE times as transformers does (SGLang "
        "0.5.23 differs when a video has several temporal grids). Also SPECVLM_EXACT_VISION=1.",
    )


def export_flags(arguments: argparse.Namespace) -> None:
    """Write the flags that were given to the environment, for this and all child processes."""
    if getattr(arguments, "specvlm_exact_vision", None):
        os.environ["SPECVLM_EXACT_VISION"] = "1"
