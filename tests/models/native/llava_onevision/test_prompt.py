"""Placeholders and the tokens that they stand for."""

from __future__ import annotations

import pytest

from specvlm_sglang.models.native.llava_onevision.prompt import expand_placeholders

IMAGE, VIDEO = 90, 91
NAMES = {IMAGE: "image", VIDEO: "video"}


def test_every_picture_gets_a_span_of_its_own_even_side_by_side() -> None:
    ids, spans = expand_placeholders(
        [1, IMAGE, IMAGE, VIDEO, 2, VIDEO], {IMAGE: [2, 1], VIDEO: [3, 1]}, NAMES
    )
    assert ids == [1, IMAGE, IMAGE, IMAGE, VIDEO, VIDEO, VIDEO, 2, VIDEO]
    assert spans == {IMAGE: [(1, 2), (3, 3)], VIDEO: [(4, 6), (8, 8)]}


def test_text_stays_as_it_is() -> None:
    assert expand_placeholders([5, 6, 7], {IMAGE: [], VIDEO: []}, NAMES)[0] == [5, 6, 7]


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        ([IMAGE], {IMAGE: [2, 2], VIDEO: []}, "1 image placeholders for 2 images"),
        ([IMAGE, VIDEO], {IMAGE: [2], VIDEO: []}, "1 video placeholders for 0 videos"),
    ],
)
def test_a_wrong_number_of_placeholders_is_refused(
    ids: list[int], lengths: dict[int, list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        expand_placeholders(ids, lengths, NAMES)
