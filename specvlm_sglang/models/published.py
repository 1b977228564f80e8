"""Published checkpoints by what they can draft for; sizes are those that their names say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """One checkpoint.

    Attributes
    ----------
    name
        On the Hugging Face hub.
    line
        Checkpoints of one line share tokenizer and vision geometry.
    billions
        Parameters that are read for one token: of a mixture of experts the active ones.
    """

    name: str
    line: str
    billions: float


def _line(line: str, pattern: str, sizes: Mapping[str, float]) -> list[Published]:
    return [Published(pattern.format(size), line, read) for size, read in sizes.items()]


_QWEN3_VL = {"2B": 2, "4B": 4, "8B": 8, "32B": 32, "30B-A3B": 3, "235B-A22B": 22}
PUBLISHED: tuple[Published, ...] = (
    *_line("Qwen3-VL", "Qwen/Qwen3-VL-{}-Instruct", _QWEN3_VL),
    *_line("Qwen3-VL", "Qwen/Qwen3-VL-{}-Thinking", _QWEN3_VL),
    *_line("Qwen2.5-VL", "Qwen/Qwen2.5-VL-{}-Instruct", {"3B": 3, "7B": 7, "32B": 32, "72B": 72}),
    *_line("Qwen2-VL", "Qwen/Qwen2-VL-{}-Instruct", {"2B": 2, "7B": 7, "72B": 72}),
    *_line("Qwen2-VL", "Qwen/{}-Preview", {"QVQ-72B": 72}),
    *_line(
        "InternVL 3",
        "OpenGVLab/InternVL3-{}",
        {"1B": 1, "2B": 2, "8B": 8, "14B": 14, "38B": 38, "78B": 78},
    ),
    *_line(
        "InternVL 3.5",
        "OpenGVLab/InternVL3_5-{}",
        {
            "1B": 1,
            "2B": 2,
            "4B": 4,
            "8B": 8,
            "14B": 14,
            "38B": 38,
            "30B-A3B": 3,
            "241B-A28B": 28,
        },
    ),
    *_line(
        "LLaVA-OneVision",
        "llava-hf/llava-onevision-qwen2-{}-ov-hf",
        {"0.5b": 0.5, "7b": 7, "72b": 72},
    ),
    *_line("GLM-V", "zai-org/GLM-{}", {"4.1V-9B-Thinking": 9, "4.5V": 12}),
)


def find_published(target: str) -> Published | None:
    """Return the entry of a hub name, or of a folder that bears it; None for any other."""
    own = target.rstrip("/").rpartition("/")[2].lower()
    for one in PUBLISHED:
        if one.name.rpartition("/")[2].lower() == own:
            return one
    return None


def drafts_for(target: Published) -> list[Published]:
    """Return what would draft for ``target`` and reads less a token, smallest first."""
    found = [one for one in PUBLISHED if one.line == target.line and one.billions < target.billions]
    return sorted(found, key=lambda one: one.billions)


def break_even(draft_read: float, target_read: float, steps: int) -> float:
    """Return the accept length above which drafting gains, where weights are all that costs.

    A round reads the target once and the draft ``steps`` times (`tools.sizing.cost` has the model
    with KV caches and prefill).

    Parameters
    ----------
    draft_read, target_read
        What is read of each for one token, in one unit.
    steps
        Drafted tokens of a chain.
    """
    return 1 + steps * draft_read / target_read
