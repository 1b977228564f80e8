"""Where a prompt's video is, and which rows ask about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem

from reference.scoring import language_query_rows
from specvlm_sglang.pruning.layout import find_video

# Pieces of a prompt: (kind, tokens); t text, v a new video, c more of the last one, i an image.
LAYOUTS = {
    "text only": [("t", 7)],
    "text, video, text": [("t", 3), ("v", 4), ("t", 5)],
    "video first": [("v", 4), ("t", 2)],
    "video last": [("t", 2), ("v", 4)],
    "nothing but video": [("v", 4)],
    "two videos": [("t", 1), ("v", 2), ("t", 1), ("v", 3), ("t", 1)],
    "two videos side by side": [("v", 2), ("v", 3), ("t", 1)],
    "image, then video": [("i", 4), ("t", 1), ("v", 2), ("t", 3)],
    "video, then image": [("v", 2), ("t", 1), ("i", 4), ("t", 3)],
    "image only": [("t", 1), ("i", 4), ("t", 3)],
    "timestamps between frames": [("v", 2), ("t", 1), ("c", 2), ("t", 1), ("c", 2), ("t", 2)],
}
Layout = list[tuple[str, int]]


def lay_out(layout: Layout) -> tuple[int, list[list[tuple[int, int]]], list[tuple[int, int]]]:
    """Length, spans of each video, spans of images; all inclusive."""
    at, videos, images = 0, [], []
    for kind, tokens in layout:
        span = (at, at + tokens - 1)
        if kind == "v":
            videos.append([span])
        elif kind == "c":
            videos[-1].append(span)
        elif kind == "i":
            images.append(span)
        at += tokens
    return at, videos, images


def item(modality: Modality, spans: list[tuple[int, int]]) -> MultimodalDataItem:
    return MultimodalDataItem(modality=modality, feature=torch.zeros(1), offsets=spans)


def check(layout: Layout, max_rows: int, order: list[int] | None = None) -> None:
    length, videos, _ = lay_out(layout)
    given_order = videos if order is None else [videos[index] for index in order]
    prompt = find_video(length, given_order, max_rows)
    expected = [
        position for spans in videos for first, last in spans for position in range(first, last + 1)
    ]
    assert prompt.video_positions.tolist() == expected
    assert prompt.video_positions.dtype == np.int64
    assert prompt.video_tokens == len(expected)
    assert prompt.video_lengths == tuple(
        sum(last - first + 1 for first, last in spans) for spans in videos
    )
    rows = language_query_rows(length, prompt.video_positions, max_rows)
    assert list(range(prompt.query_start, prompt.query_stop)) == rows.tolist()
    assert prompt.query_rows == rows.size
    text = prompt.text_positions(length + 2)
    assert sorted([*text, *expected]) == list(range(length + 2))


@pytest.mark.parametrize("max_rows", [1, 2, 256])
@pytest.mark.parametrize("name", LAYOUTS)
def test_video_and_query_rows_are_those_of_the_reference(name: str, max_rows: int) -> None:
    check(LAYOUTS[name], max_rows)


pieces = st.tuples(st.sampled_from("tvci"), st.integers(1, 6))


@given(
    layout=st.lists(pieces, min_size=1, max_size=8).filter(
        lambda layout: next((kind for kind, _ in layout if kind in "vc"), "v") == "v"
    ),
    max_rows=st.integers(1, 12),
    data=st.data(),
)
def test_any_interleaving_and_any_order_of_the_items_gives_the_same_prompt(
    layout: Layout, max_rows: int, data: st.DataObject
) -> None:
    videos = sum(kind == "v" for kind, _ in layout)
    check(layout, max_rows, data.draw(st.permutations(range(videos))))


@pytest.mark.parametrize(
    "spans",
    [
        [[(-1, 2)]],
        [[(8, 10)]],
        [[(1, 4)], [(4, 6)]],
        [[(1, 4)], [(2, 3)]],
        [[(4, 5), (1, 2)]],
        # The parts of two videos may not interleave either: a video's tokens are consecutive rows.
        [[(0, 1), (6, 7)], [(3, 4)]],
    ],
)
def test_spans_that_do_not_fit_the_prompt_are_refused(spans: list[list[tuple[int, int]]]) -> None:
    with pytest.raises(ValueError, match="must ascend within the 10 prompt tokens"):
        find_video(10, spans, 4)
