"""LongVideoBench, test split (``longvideobench/LongVideoBench``).

Layout: ``lvb_test_wo_gt.json`` and, from ``videos.tar.part.*``, ``videos/NAME.mp4``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from specvlm_sglang.tools.bench.datasets.sample import DESCRIBE, Sample, existing_video, json_rows


def samples(folder: Path) -> Iterator[Sample]:
    """Yield a request to describe each video, in the order of the file.

    A video that several questions of the benchmark share comes once: asking the same again would
    measure the prefix cache.

    Raises
    ------
    ToolError
        A file of the layout is missing or is not what it should be.
    """
    rows = json_rows(folder / "lvb_test_wo_gt.json", ("video_path",))
    for name in dict.fromkeys(row["video_path"] for row in rows):
        sample_id = Path(name).stem
        yield Sample(sample_id, existing_video((folder / "videos" / name,), sample_id), DESCRIBE)
