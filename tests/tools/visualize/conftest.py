"""A browser, and pages to open with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.chromium import Chromium, find_chromium
from tests.tools.visualize.browsing import LONG_GRID
from tests.tools.visualize.example import make_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no chromium on this machine to open the page with")
    with Chromium(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(clip_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short page, a long one with fine grids and unbroken words, one without scores, and one
    of a policy that the page cannot compute."""
    folder = tmp_path_factory.mktemp("pages")
    long_scores = np.random.default_rng(3).random(int(np.prod(LONG_GRID))) ** 8
    made = {
        "short": make_page(clip_paths[0]),
        "long": make_page(
            clip_paths[1],
            grid=LONG_GRID,
            scores=[float(f"{score:.3g}") for score in long_scores],
            question="What-happens-" * 40,
            tokens=["Unbroken" * 20, " words", "\n\nand", " a", " new", " line"],
            numbers=[("draft KV of the prompt", "19% of full"), ("no draft", "pool_full_" * 12)],
        ),
        "unscored": make_page(clip_paths[2], scores=None, policy="uniform"),
        "own-policy": make_page(
            clip_paths[3],
            policy="frame-peaks",
            stage_one=[0, 17],
            stage_two=[59],
        ),
    }
    files = {}
    for name, text in made.items():
        files[name] = folder / f"{name}.html"
        files[name].write_text(text, encoding="utf-8")
    return files
