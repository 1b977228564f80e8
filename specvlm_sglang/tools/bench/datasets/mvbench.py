"""MVBench (``OpenGVLab/MVBench``): the two tasks that the authors describe, as they do.

Layout: ``json/TASK.json`` and, from ``video/star.zip``, ``video/star/Charades_v1_480/NAME.mp4``; on
the branch ``video`` of the same repository ``star/`` lies at the top.
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

TASKS = ("action_sequence", "action_prediction")
_VIDEOS = Path("star") / "Charades_v1_480"


def samples(folder: Path) -> Iterator[Sample]:
    """Yield a request to describe each video, the tasks in turn.

    A video that several questions of the benchmark share comes once: asking the same again would
    measure the prefix cache.

    Raises
    ------
    ToolError
        A file of the layout is missing or is not what it should be.
    """
    rows = (_task_videos(folder, task) for task in TASKS)
    seen = set()
    for sample_id, name in alternating(rows):
        if name not in seen:
            seen.add(name)
            paths = (folder / "video" / _VIDEOS / name, folder / _VIDEOS / name)
            yield Sample(sample_id, existing_video(paths, sample_id), DESCRIBE)


def _task_videos(folder: Path, task: str) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(json_rows(folder / "json" / f"{task}.json", ("video",))):
        yield f"{task}-{number}", row["video"]
