"""Where a prompt's video is, and which rows ask about it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs

from reference.scoring import language_query_rows
from specvlm_sglang.models.qwen2_5_vl import Qwen25VL
from specvlm_sglang.pruning.prompt import find_video, prompt_of

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


def family() -> Qwen25VL:
    return Qwen25VL(spatial_merge=2)


@pytest.mark.parametrize("together", [False, True])
def test_a_request_is_read_from_what_sglangs_processor_left_on_it(together: bool) -> None:
    spans = [(2, 9), (12, 17)]
    grids = torch.tensor([[2, 4, 4], [1, 4, 6]])
    groups = [(spans, grids)] if together else [([span], grids[i : i + 1]) for i, span in
                                                reversed(list(enumerate(spans)))]  # fmt: skip
    items = [item(Modality.IMAGE, [(19, 20)])]
    for offsets, grid_thw in groups:
        video = item(Modality.VIDEO, offsets)
        video.video_grid_thw = grid_thw
        items.append(video)
    req = SimpleNamespace(
        origin_input_ids=[0] * 24, multimodal_inputs=MultimodalInputs(mm_items=items)
    )
    prompt = prompt_of(req, 3, family())
    assert prompt.video_positions.tolist() == [*range(2, 10), *range(12, 18)]
    assert prompt.video_lengths == (8, 6)
    assert prompt.video_grids == ((2, 2, 2), (1, 2, 3))
    assert (prompt.query_start, prompt.query_stop) == (21, 24)


def test_a_request_is_read_once_until_its_prompt_changes() -> None:
    req = SimpleNamespace(origin_input_ids=[0] * 5, multimodal_inputs=None)
    first = prompt_of(req, 3, family())
    assert prompt_of(req, 3, family()) is first
    # As in a session: the next turn's request continues the prompt.
    req.origin_input_ids = [0] * 9
    assert prompt_of(req, 3, family()).length == 9
