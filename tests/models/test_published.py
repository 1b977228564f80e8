"""The table of published checkpoints."""

from __future__ import annotations

import pytest

from specvlm_sglang.models.published import (
    PUBLISHED,
    break_even,
    drafts_for,
    find_published,
)
from specvlm_sglang.models.registry import FAMILIES


def test_names_are_unique_and_each_line_belongs_to_a_family() -> None:
    names = [one.name.lower() for one in PUBLISHED]
    assert len(set(names)) == len(names)
    families = tuple(family.name for family in FAMILIES)
    assert all(one.line.startswith(families) for one in PUBLISHED)


@pytest.mark.parametrize(
    "target",
    ["Qwen/Qwen3-VL-32B-Instruct", "/models/qwen3-vl-32b-instruct/", "OpenGVLab/InternVL3-8B"],
)
def test_a_target_is_known_by_its_name_wherever_it_lies(target: str) -> None:
    found = find_published(target)
    assert found is not None
    drafts = drafts_for(found)
    assert drafts
    assert all(one.line == found.line and one.billions < found.billions for one in drafts)
    assert [one.billions for one in drafts] == sorted(one.billions for one in drafts)


def test_experts_count_by_what_is_read_of_them() -> None:
    large = find_published("Qwen/Qwen3-VL-235B-A22B-Instruct")
    small = find_published("Qwen/Qwen3-VL-30B-A3B-Instruct")
    assert large is not None
    assert small is not None
    assert small in drafts_for(large)
    assert {one.billions for one in drafts_for(small)} == {2}


def test_generations_with_other_tokenizers_do_not_mix() -> None:
    target = find_published("OpenGVLab/InternVL3_5-38B")
    assert target is not None
    assert all("InternVL3_5" in one.name for one in drafts_for(target))


def test_other_models_are_not_known() -> None:
    assert find_published("somebody/some-video-llm") is None


def test_a_draft_as_large_as_its_target_pays_only_where_all_is_accepted() -> None:
    assert break_even(9, 9, 3) == 4
    assert break_even(2, 32, 3) == pytest.approx(1.1875)
