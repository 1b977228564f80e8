"""The four benchmarks of the SpecVLM paper, from a local folder in their published layout.

`docs/datasets.md` says how to fetch each and where its layout is known from. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from specvlm_sglang.tools.bench.datasets import longvideobench, mlvu, mvbench, videodetailcaption
from specvlm_sglang.tools.bench.datasets.sample import DESCRIBE, FRAMES, MAX_TOKENS, Sample
from specvlm_sglang.tools.errors import ToolError

__all__ = ["DATASETS", "DESCRIBE", "FRAMES", "MAX_TOKENS", "Sample", "load"]

DATASETS: dict[str, Callable[[Path], Iterator[Sample]]] = {
    "videodetailcaption": videodetailcaption.samples,
    "mvbench": mvbench.samples,
    "mlvu": mlvu.samples,
    "longvideobench": longvideobench.samples,
}
"""What yields the samples of a folder, by the dataset's name."""


def load(name: str, folder: Path, limit: int | None = None) -> list[Sample]:
    """Read the samples of a dataset; always the same ones in the same order.

    Parameters
    ----------
    name
        One of `DATASETS`.
    folder
        The dataset's folder, as its repository lays it out, archives unpacked.
    limit
        Only so many, at least 1, from the front. Videos behind them may be missing.

    Raises
    ------
    ToolError
        An unknown name, a limit below 1, or a file that is missing or not what it should be.
    """
    if name not in DATASETS:
        raise ToolError(f"--dataset {name!r} must be one of {', '.join(DATASETS)}")
    if limit is not None and limit < 1:
        raise ToolError(f"--limit {limit} must be at least 1")
    if not folder.is_dir():
        raise ToolError(f"--data {folder} must be an existing folder with the files of {name}")
    return list(islice(DATASETS[name](folder), limit))
