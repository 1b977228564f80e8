"""The source files themselves, as the running Python reads them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("specvlm_sglang", "reference", "tests", "benchmarks", "examples")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_compiles_without_a_warning(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    # Python warns of escapes and comparisons that a later one refuses, once, when it compiles.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in files:
            compile(file.read_text(encoding="utf-8"), str(file), "exec", dont_inherit=True)
