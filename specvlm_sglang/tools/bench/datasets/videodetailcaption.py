"""VideoDetailCaption (``lmms-lab/VideoDetailCaption``): every video with its own request.

Layout: ``data/test-*.parquet`` and, from ``videos.zip``, ``Test_Videos/NAME.mp4``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from specvlm_sglang.tools.bench.datasets.sample import Sample, existing_video, parquet_rows
from specvlm_sglang.tools.errors import ToolError

_ENDINGS = ("mp4", "MP4", "mkv")


def samples(folder: Path) -> Iterator[Sample]:
    """Yield the samples in the order of the file.

    Raises
    ------
    ToolError
        A file of the layout is missing or is not what it should be.
    """
    files = sorted((folder / "data").glob("test-*.parquet"))
    if not files:
        raise ToolError(
            f"--data is missing {folder / 'data' / 'test-00000-of-00001.parquet'}, the samples of "
            "VideoDetailCaption with video_name and question"
        )
    for file in files:
        for row in parquet_rows(file, ("video_name", "question")):
            name = row["video_name"]
            paths = (folder / "Test_Videos" / f"{name}.{ending}" for ending in _ENDINGS)
            yield Sample(name, existing_video(paths, name), row["question"])
