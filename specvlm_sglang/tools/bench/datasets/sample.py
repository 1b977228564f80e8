"""What a dataset gives the benchmark, and the reading that the datasets share."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from specvlm_sglang.tools.errors import ToolError

FRAMES = 64
"""Frames of a video that the models see (``FRAME_NUM`` of the authors' run scripts)."""
MAX_TOKENS = 256
"""Length limit of an answer (``MAX_NEW_TOKENS`` of the authors' run scripts)."""
DESCRIBE = (
    "Please provide a detailed description of the video, focusing on the main subjects, their "
    "actions, and the background scenes."
)
"""What the authors ask about every video of MVBench, MLVU and LongVideoBench."""

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One question about one video.

    Attributes
    ----------
    sample_id
        Unique within its dataset.
    video
        An existing file.
    question
        The user's text.
    max_tokens
        Length limit of the answer.
    frames
        How many frames of the video to show, evenly from first to last.
    """

    sample_id: str
    video: Path
    question: str
    max_tokens: int = MAX_TOKENS
    frames: int = FRAMES


def existing_video(candidates: Iterable[Path], sample_id: str) -> Path:
    """Return the first of ``candidates`` that is a file.

    Raises
    ------
    ToolError
        None of them is; names the first.
    """
    paths = list(candidates)
    for path in paths:
        if path.is_file():
            return path
    raise ToolError(
        f"--data has no video for sample {sample_id!r}: expected {paths[0]}; download the videos "
        "and unpack their archives there"
    )


def json_rows(path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """Read a JSON list of objects that have ``fields``.

    Raises
    ------
    ToolError
        The file is missing, is not such a list, or a row lacks a field.
    """
    if not path.is_file():
        raise ToolError(f"--data is missing {path}, a JSON list of the dataset's samples")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ToolError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise ToolError(f"{path} holds a {type(rows).__name__}, expected a JSON list of samples")
    return _checked(rows, path, fields)


def parquet_rows(path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """Read the columns ``fields`` of a Parquet file.

    Raises
    ------
    ToolError
        The file is not Parquet, a column is missing, or pyarrow is not installed.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ToolError(
            f"reading {path} needs pyarrow, which is not installed: pip install pyarrow"
        ) from None
    names = list(fields)
    try:
        table = parquet.ParquetFile(path)
    except Exception as error:
        raise ToolError(f"{path} is not a Parquet file: {error}") from None
    missing = [name for name in names if name not in table.schema_arrow.names]
    if missing:
        raise ToolError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(table.schema_arrow.names)}"
        )
    rows: list[dict[str, Any]] = table.read(columns=names).to_pylist()
    return _checked(rows, path, names)


def _checked(rows: list[Any], path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    names = list(fields)
    for number, row in enumerate(rows):
        for name in names:
            if not (isinstance(row, dict) and isinstance(row.get(name), str) and row[name]):
                raise ToolError(
                    f"{path}: sample {number} has no text in {name!r}; expected an object with "
                    f"{', '.join(names)}"
                )
    return rows


def alternating(sequences: Iterable[Iterable[T]]) -> Iterator[T]:
    """The first of each sequence, then the second of each, until all are used up.

    Any number of samples from the front covers the tasks evenly.
    """
    nothing = object()
    for row in zip_longest(*sequences, fillvalue=nothing):
        yield from (item for item in row if item is not nothing)  # type: ignore[misc]
