"""``specvlm doctor``: what this machine has, what is wrong, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    what
        What was looked at.
    found
        What is there.
    advice
        What to do about it; empty where nothing is wrong.
    blocks
        Whether the server would not start, or not serve video.
    """

    what: str
    found: str
    advice: str = ""
    blocks: bool = False


def examine(target: str | None = None, draft: str | None = None) -> int:
    """Print the report; returns 0 where the server would serve, else 1.

    Parameters
    ----------
    target, draft
        A pair of models to check too.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [_sglang, _device, _memory, _video, _settings]
    if target is not None and draft is not None:
        checks.append(lambda: _pair(target, draft))
    table = Table("", "", "", show_header=False, box=None, pad_edge=False)
    blocked = False
    for check in checks:
        for finding in check():
            mark = "[red]no[/]" if finding.blocks else "[yellow]![/]" if finding.advice else "ok"
            advice = f"\n[dim]{finding.advice}[/]" if finding.advice else ""
            table.add_row(mark, finding.what, finding.found + advice)
            blocked |= finding.blocks
    console = Console()
    if not console.is_terminal:
        # A log or a pipe wants whole lines.
        console = Console(width=400)
    console.print(table)
    console.print("Would not serve." if blocked else "Would serve.")
    return int(blocked)


def _sglang() -> Iterator[Finding]:
    from specvlm_sglang.host import contract

    found = contract.installed_version()
    if found != contract.SGLANG_VERSION:
        advice = f"pip install 'sglang=={contract.SGLANG_VERSION}'"
        yield Finding("SGLang", found or "not installed", advice, blocks=True)
        return
    yield Finding("SGLang", found)
    from sglang.srt.plugins import load_plugins

    load_plugins()
    wrong = contract.mismatches()
    rooms = contract.rooms()
    symbols = sum(len(table) for table in rooms.values())
    if wrong:
        advice = "reinstall SGLang; it was changed after it was installed"
        yield Finding("contract", "; ".join(wrong), advice, blocks=True)
    else:
        yield Finding("contract", f"{symbols} symbols in {len(rooms)} rooms are as expected")


def _device() -> Iterator[Finding]:
    import torch
    from sglang.srt.platforms import current_platform

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        yield Finding("device", f"{name}, {torch.cuda.device_count()} of them")
        try:
            import flashinfer

            yield Finding("FlashInfer", flashinfer.__version__)
        except ImportError:
            yield Finding("FlashInfer", "missing", "pip install flashinfer-python")
        yield Finding("verified", "nothing of this project has been run on a GPU yet")
        return
    platform = type(current_platform).__name__
    if platform == "TorchCpuPlatform":
        yield Finding("device", f"CPU ({os.cpu_count()} cores), served by this plugin")
    else:
        advice = "unset SGLANG_PLATFORM, SGLANG_PLUGINS and SGLANG_USE_CPU_ENGINE"
        yield Finding("device", f"no GPU, and SGLang uses {platform}", advice, blocks=True)


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    small = memory.available < 4 * GIB
    yield Finding("memory", found, "a server takes some 3 GiB before its weights" if small else "")


def _video() -> Iterator[Finding]:
    from specvlm_sglang.host.video import torchcodec_works

    if torchcodec_works():
        yield Finding("video", "torchcodec with the system's FFmpeg")
    else:
        import av

        yield Finding("video", f"PyAV {av.__version__} with its own FFmpeg (torchcodec finds none)")


def _settings() -> Iterator[Finding]:
    from specvlm_sglang.config import SpecVLMConfig

    try:
        config = SpecVLMConfig.from_environment()
    except ValueError as error:
        yield Finding("settings", str(error), "correct or unset the variable", blocks=True)
        return
    yield Finding("settings", str(config))
    if not config.exact_vision:
        yield Finding(
            "Qwen2.5-VL videos",
            "as SGLang 0.5.23 computes them",
            "--specvlm-exact-vision computes them as transformers does",
        )


def _pair(target: str, draft: str) -> Iterator[Finding]:
    from specvlm_sglang.pair import check_pair

    try:
        check_pair(target, draft)
    except (OSError, ValueError) as error:
        advice = "choose a draft of the target's family with the same tokenizer"
        yield Finding("pair", str(error), advice, blocks=True)
    else:
        yield Finding("pair", f"{draft} can draft for {target}")
