"""MLVU, development set (``MLVU/MVLU``; the authors write "MVLU").

Layout: ``MLVU/json/TASK.json`` and ``MLVU/video/TASK/NAME.mp4``, for any of the nine tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from specvlm_sglang.tools.bench.datasets.sample import (
    DESCRIBE,
    Sample,
    alternating,
    existing_video,
    json_rows,
)
from specvlm_sglang.tools.errors import ToolError

TASKS = (
    "1_plotQA",
    "2_needle",
    "3_ego",
    "4_count",
    "5_order",
    "6_anomaly_reco",
    "7_topic_reasoning",
    "8_sub_scene",
    "9_summary",
)


def samples(folder: Path) -> Iterator[Sample]:
    """Yield a request to describe each video, the tasks that are there in turn.

    The set is large, so some of its tasks are enough. A video that several questions of a task
    share comes once: asking the same again would measure the prefix cache.

    Raises
    ------
    ToolError
        There is no task, or a file of one is missing or is not what it should be.
    """
    root = folder / "MLVU" if (folder / "MLVU").is_dir() else folder
    present = [task for task in TASKS if (root / "json" / f"{task}.json").is_file()]
    if not present:
        raise ToolError(
            f"--data is missing {folder / 'MLVU' / 'json' / '1_plotQA.json'}: MLVU needs the JSON "
            f"file of at least one task out of {', '.join(TASKS)}"
        )
    for task, name in alternating(_task_videos(root, task) for task in present):
        sample_id = f"{task}/{name}"
        video = existing_video((root / "video" / task / name,), sample_id)
        yield Sample(sample_id, video, DESCRIBE)


def _task_videos(root: Path, task: str) -> list[tuple[str, str]]:
    rows = json_rows(root / "json" / f"{task}.json", ("video",))
    return [(task, name) for name in dict.fromkeys(row["video"] for row in rows)]
