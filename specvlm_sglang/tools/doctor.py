"""``specvlm doctor``: what this machine has, what is wrong, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specvlm_sglang.config import DEFAULT_NUM_STEPS
from specvlm_sglang.models.published import Published, break_even, drafts_for, find_published
from specvlm_sglang.tools.needs import ModelNeeds, model_needs

GIB = 1 << 30
FLASHINFER = "flashinfer-python"
_FLASHINFER_KERNELS = ("flashinfer-cubin", "flashinfer-jit-cache")
_LONG_VIDEO = 32_768
_PAIR_BYTES = 20 * GIB


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
        A pair of models to check too; a target alone is told what would draft for it.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "importing SGLang": _sglang,
        "looking for a GPU": _device,
        "measuring": _memory,
        "trying to decode video": _video,
        "reading settings": _settings,
    }
    if target is not None and draft is not None:
        checks["comparing the models"] = lambda: _pair(target, draft)
    elif target is not None:
        checks["looking for drafts"] = lambda: draft_findings(target)
    console = Console()
    blocked = False
    # What the libraries say while they are imported is no finding of ours.
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    try:
        for doing, check in checks.items():
            with console.status(doing):
                for finding in check():
                    show(console, finding)
                    blocked |= finding.blocks
    finally:
        logging.disable(logging.NOTSET)
    console.print("Would not serve." if blocked else "Would serve.")
    return int(blocked)


def show(console: Console, finding: Finding) -> None:
    """Print one finding: on a terminal in columns, else in whole lines."""
    mark, style = "ok", ""
    if finding.blocks:
        mark, style = "no", "red"
    elif finding.advice:
        mark, style = "!", "yellow"
    if not console.is_terminal:
        # A log or a pipe wants whole lines.
        for label, text in ((mark, finding.found), ("", finding.advice)):
            if text:
                line = f"{label:<4}{finding.what if label else '':<19}{text}"
                console.print(Text(line), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    for width in (2, 17, None):
        grid.add_column(width=width)
    grid.add_row(Text(mark, style=style), finding.what, Text(finding.found))
    if finding.advice:
        grid.add_row("", "", Text(finding.advice, style="dim"))
    console.print(grid)


def _sglang() -> Iterator[Finding]:
    from specvlm_sglang.host import contract

    found = contract.installed_version()
    if found != contract.SGLANG_VERSION:
        advice = f"pip install 'sglang=={contract.SGLANG_VERSION}'"
        yield Finding("SGLang", found or "not installed", advice, blocks=True)
        return
    yield Finding("SGLang", found)
    wrong = contract.mismatches("doctor")
    if not wrong:
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
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        cuda = f"CUDA {torch.version.cuda}"
        yield Finding("device", f"{torch.cuda.device_count()} x {name}, sm_{major}{minor}, {cuda}")
        if major < 8:
            advice = "bfloat16 and FlashInfer's kernels want compute capability 8.0 or more"
            yield Finding("compute capability", f"{major}.{minor}", advice)
        yield from flashinfer_findings(shutil.which("nvcc"))
        yield Finding("verified", "nothing of this project has been run on a GPU yet")
        return
    platform = type(current_platform).__name__
    if platform == "TorchCpuPlatform":
        yield Finding("device", f"CPU ({os.cpu_count()} cores), served by this plugin")
    else:
        advice = "unset SGLANG_PLATFORM, SGLANG_PLUGINS and SGLANG_USE_CPU_ENGINE"
        yield Finding("device", f"no GPU, and SGLang uses {platform}", advice, blocks=True)


def flashinfer_findings(nvcc: str | None) -> Iterator[Finding]:
    """Whether FlashInfer is there, and where its kernels come from.

    Parameters
    ----------
    nvcc
        Path of CUDA's compiler; None where there is none.
    """
    versions = {name: _version(name) for name in (FLASHINFER, *_FLASHINFER_KERNELS)}
    if versions[FLASHINFER] is None:
        yield Finding(
            "FlashInfer",
            "missing",
            f"pip install {FLASHINFER}, or choose another --attention-backend",
        )
        return
    yield Finding("FlashInfer", str(versions[FLASHINFER]))
    ready = [name for name in _FLASHINFER_KERNELS if versions[name]]
    if ready or nvcc:
        found = " and ".join([*ready, *([f"compiled at first use by {nvcc}"] if nvcc else [])])
        yield Finding("its kernels", found)
    else:
        advice = f"pip install {_FLASHINFER_KERNELS[-1]}, or install CUDA's compiler"
        yield Finding("its kernels", "neither packaged nor a compiler for them", advice)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    small = memory.available < 4 * GIB
    yield Finding("memory", found, "a server takes some 3 GiB before its weights" if small else "")
    folder = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    advice = "a published pair takes 20 to 180 GB: set HF_HOME to a folder on a larger disk"
    few = free < _PAIR_BYTES
    yield Finding("disk", f"{free / GIB:.1f} GiB free for models ({folder})", advice if few else "")


def _free_bytes() -> tuple[int, str]:
    """Memory for weights and KV caches, and whose it is."""
    import psutil
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        free = sum(torch.cuda.mem_get_info(index)[0] for index in range(count))
        return free, f"on {count} GPU" + ("s" if count > 1 else "")
    return psutil.virtual_memory().available, "in main memory"


def _video() -> Iterator[Finding]:
    import av

    from specvlm_sglang.host.media.install import DECODER_VARIABLE, decoder

    try:
        chosen = decoder()
    except ValueError as error:
        yield Finding("video", str(error), "correct or unset the variable", blocks=True)
        return
    if chosen == "pyav":
        yield Finding("video", f"PyAV {av.__version__} with its own FFmpeg")
    else:
        yield Finding("video", f"SGLang's own decoder ({DECODER_VARIABLE})")


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
    from specvlm_sglang.models.pair import check_pair

    try:
        check_pair(target, draft)
    except OSError as error:
        advice = (
            "name a folder with a checkpoint, or a model of the hub that can be reached from here"
        )
        yield Finding("pair", " ".join(str(error).split()), advice, blocks=True)
    except ValueError as error:
        advice = "choose a draft of the target's family with the same tokenizer"
        yield Finding("pair", str(error), advice, blocks=True)
    else:
        yield Finding("pair", f"{draft} can draft for {target}")
        yield from _stored(target, draft)
        known = find_published(target), find_published(draft)
        if known[0] is not None and known[1] is not None:
            yield cost_finding(known[1], known[0])
        yield from needs_findings(model_needs(target), model_needs(draft), *_free_bytes())


def _stored(*checkpoints: str) -> Iterator[Finding]:
    from specvlm_sglang.models.stored import check_weights

    for path in checkpoints:
        try:
            check_weights(path)
        except ValueError as error:
            yield Finding("files", str(error), "fetch or copy it again", blocks=True)


def draft_findings(target: str) -> Iterator[Finding]:
    """Which published checkpoints would draft for a target, and from where on each gains."""
    found = find_published(target)
    if found is None:
        advice = "name one with --draft: a smaller checkpoint of its family"
        yield Finding("drafts", f"{target} is not among the published checkpoints known", advice)
        return
    drafts = drafts_for(found)
    if not drafts:
        yield Finding("drafts", f"nothing published is smaller than {found.name} in its family")
    for draft in drafts:
        yield cost_finding(draft, found)


def cost_finding(draft: Published, target: Published) -> Finding:
    """From which accept length on a draft gains with the default chain."""
    share = f"reads {draft.billions / target.billions:.0%} of what the target reads for a token"
    least = break_even(draft.billions, target.billions, DEFAULT_NUM_STEPS)
    found = (
        f"{draft.name} {share}: a chain of {DEFAULT_NUM_STEPS} gains above {least:.1f} accepted "
        f"tokens a round (at most {DEFAULT_NUM_STEPS + 1})"
    )
    return Finding("draft", found, "expect no gain: the draft is too large" if least > 2.5 else "")


def needs_findings(
    target: ModelNeeds, draft: ModelNeeds, free: int, where: str
) -> Iterator[Finding]:
    """Whether a pair fits into memory, and whether the draft reads as far as the target.

    Parameters
    ----------
    target, draft
        What they need.
    free
        Bytes for weights and KV caches.
    where
        Whose memory that is, for people.
    """
    weights = [needs.weight_bytes for needs in (target, draft)]
    if weights[0] is None or weights[1] is None:
        yield Finding("weights", "not on this disk yet: whether they fit is not known")
    else:
        left = free - weights[0] - weights[1]
        sizes = f"target {weights[0] / GIB:.2f} GiB, draft {weights[1] / GIB:.2f} GiB"
        found = f"{sizes}; {free / GIB:.1f} GiB free {where}"
        if left < 0:
            advice = "take a smaller or quantized pair, more GPUs (--tp-size), or end what fills it"
            yield Finding("weights", found, advice, blocks=True)
        else:
            yield Finding("weights", found)
            tokens = left // (target.kv_bytes_per_token + draft.kv_bytes_per_token)
            short = tokens < _LONG_VIDEO
            advice = f"a long video has {_LONG_VIDEO:,}; lower --max-total-tokens" if short else ""
            yield Finding("KV cache", f"at most {tokens:,} tokens beside the weights", advice)
    contexts = f"target {target.context:,} tokens, draft {draft.context:,}"
    advice = ""
    if draft.context < target.context:
        advice = f"--context-length {draft.context}: beyond, the draft guesses badly"
    yield Finding("context", contexts, advice)
