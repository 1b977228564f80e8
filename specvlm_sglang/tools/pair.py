"""The pair that a tool serves: the user's, or the shipped one, whose target can be enlarged."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.errors import ToolError

_ENLARGED_BYTES = 3 << 30


@dataclass(frozen=True)
class Pair:
    """Target and draft.

    Attributes
    ----------
    target, draft
        Directories or names.
    shipped
        Whether it is the project's own pair.
    note
        What a reader of numbers must know of it.
    """

    target: str
    draft: str
    shipped: bool
    note: str


def choose_pair(target: str | None, draft: str | None, parameters: int, console: Console) -> Pair:
    """The user's pair, or the shipped one, its target enlarged to ``parameters`` (0: as it is).

    Parameters
    ----------
    target, draft
        ``--target`` and ``--draft``; None for both: the shipped pair.
    parameters
        About how many the shipped target is to have. Enlarged once, it is kept in a cache.
    console
        Says so while it is being enlarged.

    Raises
    ------
    ToolError
        Only one of the two is given, one is no directory though it looks like one, or the disk is
        too full for the enlarged target.
    ValueError
        ``parameters`` is too small.
    """
    if target is not None and draft is not None:
        return _own_pair(target, draft)
    if target is not None or draft is not None:
        raise ToolError("--target and --draft go together")
    small = str(demo.draft_path())
    if parameters == 0:
        note = "the shipped pair as it is"
        return Pair(str(demo.target_path()), small, shipped=True, note=note)
    note = (
        f"the shipped pair, its target enlarged to about {parameters / 1e6:.0f}M parameters that "
        "change no answer: acceptance of the trained pair, cost of the enlarged weights"
    )
    return Pair(str(_enlarged_target(parameters, console)), small, shipped=True, note=note)


def _own_pair(target: str, draft: str) -> Pair:
    for flag, name in (("--target", target), ("--draft", draft)):
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise ToolError(f"{flag} {name}: no such directory")
    large, small = os.path.expanduser(target), os.path.expanduser(draft)
    return Pair(large, small, shipped=False, note=f"target {target}, draft {draft}")


def _enlarged_target(parameters: int, console: Console) -> Path:
    from transformers.utils.logging import disable_progress_bar

    from specvlm_sglang.tools.demo import enlarge

    folder = enlarge.cache_folder(parameters)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < _ENLARGED_BYTES:
            raise ToolError(f"{folder.parent} has less than 3 GB free for the enlarged target")
        disable_progress_bar()
        with console.status("enlarging the target (once)"):
            enlarge.write(demo.target_path(), folder, parameters)
    return folder
