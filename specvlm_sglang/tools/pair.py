"""The pair that a tool serves: the user's, or the shipped one, whose models can be enlarged."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.errors import ToolError

_SPARE_BYTES = 2 << 30
"""Left free on the disk beside an enlarged model."""


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


def choose_pair(
    target: str | None,
    draft: str | None,
    parameters: int,
    console: Console,
    *,
    draft_parameters: int = 0,
    draft_kv_heads: int | None = None,
) -> Pair:
    """The user's pair, or the shipped one, enlarged where a size is given (0: as it is).

    Parameters
    ----------
    target, draft
        ``--target`` and ``--draft``; None for both: the shipped pair.
    parameters, draft_parameters
        About how many the shipped target and draft are to have. Enlarged once, a model is kept in
        a cache.
    draft_kv_heads
        KV heads of a layer of the enlarged draft; None: the shipped draft's.
    console
        Says so while one is being enlarged.

    Raises
    ------
    ToolError
        Only one of the two models is given, one is no directory though it looks like one, a size
        is given for a draft that is not the shipped one, or the disk is too full.
    ValueError
        A size is too small, or the KV heads cannot be had.
    """
    if draft_kv_heads is not None and not draft_parameters:
        raise ToolError(f"--draft-kv-heads {draft_kv_heads} needs --draft-parameters")
    if target is not None and draft is not None:
        if draft_parameters:
            raise ToolError(
                f"--draft-parameters {draft_parameters} enlarges the shipped draft only"
            )
        return _own_pair(target, draft)
    if target is not None or draft is not None:
        raise ToolError("--target and --draft go together")
    large, small = demo.target_path(), demo.draft_path()
    made = []
    if parameters:
        large = _enlarged(large, parameters, None, console)
        made.append(f"target enlarged to about {parameters / 1e6:.0f}M parameters")
    if draft_parameters:
        small = _enlarged(small, draft_parameters, draft_kv_heads, console)
        heads = f" and {draft_kv_heads} KV heads" if draft_kv_heads else ""
        made.append(f"draft enlarged to about {draft_parameters / 1e6:g}M parameters{heads}")
    note = (
        f"the shipped pair, its {', its '.join(made)} that "
        "change no answer: acceptance of the trained pair, cost of the enlarged weights"
        if made
        else "the shipped pair as it is"
    )
    return Pair(str(large), str(small), shipped=True, note=note)


def _own_pair(target: str, draft: str) -> Pair:
    for flag, name in (("--target", target), ("--draft", draft)):
        if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise ToolError(f"{flag} {name}: no such directory")
    large, small = os.path.expanduser(target), os.path.expanduser(draft)
    return Pair(large, small, shipped=False, note=f"target {target}, draft {draft}")


def _enlarged(source: Path, parameters: int, kv_heads: int | None, console: Console) -> Path:
    from transformers.utils.logging import disable_progress_bar

    from specvlm_sglang.tools.demo import enlarge

    name = source.name
    folder = enlarge.cache_folder(source, parameters, kv_heads)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed = 2 * parameters + _SPARE_BYTES
        if shutil.disk_usage(folder.parent).free < needed:
            raise ToolError(
                f"{folder.parent} has less than {needed / 1e9:.1f} GB free for the enlarged {name}"
            )
        disable_progress_bar()
        layers = enlarge.LAYERS if source == demo.target_path() else enlarge.DRAFT_LAYERS
        flag = "--parameters" if source == demo.target_path() else "--draft-parameters"
        with console.status(f"enlarging the {name} (once)"):
            try:
                enlarge.write(source, folder, parameters, layers=layers, kv_heads=kv_heads)
            except ValueError as error:
                raise ValueError(f"{flag} {parameters}: {error}") from None
    return folder
