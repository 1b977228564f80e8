"""Positions of a pruned prompt, against hand-computed cases, SGLang and transformers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.layers.rotary_embedding.mrope_rope_index import get_rope_index
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from reference.positions import (
    VisionSpan,
    generated_positions,
    kept_prompt_indices,
    mrope_positions,
    pruned_positions,
    rope_delta,
)

TEXT, IMAGE, VIDEO, VISION_START = 5, 100, 101, 102
MERGE, TOKENS_PER_SECOND = 2, 2


def image(rows: int, columns: int) -> tuple[str, tuple[int, int, int], float]:
    return ("image", (1, rows, columns), 0.0)


def video(
    frames: int, rows: int, columns: int, seconds: float
) -> tuple[str, tuple[int, int, int], float]:
    return ("video", (frames, rows, columns), seconds)


# Grids are in patches: 14 x 10 patches are 7 x 5 tokens.
SHORT = {
    "text": [4],
    "empty": [],
    "image": [3, image(4, 6), 2],
    "video": [3, video(4, 14, 10, 1.0), 5],
    "video of one token": [1, video(1, 2, 2, 1.0), 1],
    "video ends the prompt": [2, video(3, 6, 6, 0.5)],
    "two videos": [2, video(2, 6, 4, 1.0), 3, video(3, 10, 14, 0.7), 4],
    "video then image": [2, video(2, 6, 4, 1.0), 1, image(10, 2), 4],
    "image then video": [2, image(6, 18), 3, video(3, 10, 6, 0.9), 1],
    "image, video, image": [1, image(2, 2), 1, video(2, 6, 6, 1.1), 2, image(4, 4), 3],
    "odd grids": [1, video(5, 18, 22, 0.9), 7],
}
# Here time outruns the frame: SGLang and newer transformers releases continue differently.
LONG = {
    "long video": [2, video(8, 4, 4, 1.0), 3],
    "two long videos": [1, video(9, 4, 6, 0.33), 2, video(16, 2, 2, 1.7), 2],
    "slow frames": [1, video(6, 4, 4, 4.1), 2, image(4, 4), 1],
}


def spans_of(parts: list) -> tuple[int, list[VisionSpan]]:
    """Prompt length and spans; a vision start token precedes every span."""
    index, spans = 0, []
    for part in parts:
        if isinstance(part, int):
            index += part
        else:
            _, grid, seconds = part
            spans.append(VisionSpan(index + 1, grid, seconds))
            index += 1 + int(np.prod(grid)) // MERGE**2
    return index, spans


def torch_inputs(parts: list) -> SimpleNamespace:
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += [TEXT] * part
        else:
            pad = IMAGE if part[0] == "image" else VIDEO
            ids += [VISION_START] + [pad] * (int(np.prod(part[1])) // MERGE**2)
    visions = [part for part in parts if not isinstance(part, int)]
    grids = {
        kind: [grid for other, grid, _ in visions if other == kind] for kind in ("image", "video")
    }
    seconds = [s for kind, _, s in visions if kind == "video"]
    return SimpleNamespace(
        ids=torch.tensor([ids], dtype=torch.long),
        image=torch.tensor(grids["image"]) if grids["image"] else None,
        video=torch.tensor(grids["video"]) if grids["video"] else None,
        seconds=torch.tensor(seconds) if seconds else None,
    )


def by_transformers(parts: list) -> tuple[np.ndarray, int]:
    inputs = torch_inputs(parts)
    vision_config = SimpleNamespace(spatial_merge_size=MERGE, tokens_per_second=TOKENS_PER_SECOND)
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=vision_config),
        get_vision_position_ids=lambda *args, **kwargs: Qwen2_5_VLModel.get_vision_position_ids(
            None, *args, **kwargs
        ),
    )
    kinds = (inputs.ids == IMAGE).int() + 2 * (inputs.ids == VIDEO).int()
    positions, delta = Qwen2_5_VLModel.get_rope_index(
        model, inputs.ids, kinds, inputs.image, inputs.video, inputs.seconds
    )
    return positions[:, 0].numpy(), int(delta)


def by_sglang(parts: list) -> tuple[np.ndarray, int]:
    inputs = torch_inputs(parts)
    positions, delta = get_rope_index(
        spatial_merge_size=MERGE,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        model_type="qwen2_5_vl",
        tokens_per_second=TOKENS_PER_SECOND,
        input_ids=inputs.ids,
        image_grid_thw=inputs.image,
        video_grid_thw=inputs.video,
        second_per_grid_ts=inputs.seconds,
    )
    return positions[:, 0].numpy(), int(delta)


def ours(parts: list) -> tuple[np.ndarray, int]:
    length, spans = spans_of(parts)
    ids = mrope_positions(
        length, spans, spatial_merge_size=MERGE, tokens_per_second=TOKENS_PER_SECOND
    )
    return ids, rope_delta(ids)


@pytest.mark.parametrize("name", [name for name in SHORT if name != "empty"])
def test_mrope_ids_equal_those_of_transformers(name: str) -> None:
    expected, delta = by_transformers(SHORT[name])
    ids, our_delta = ours(SHORT[name])
    np.testing.assert_array_equal(ids, expected)
    assert our_delta == delta


@pytest.mark.parametrize("name", [name for name in SHORT | LONG if name != "empty"])
def test_mrope_ids_equal_those_of_sglang(name: str) -> None:
    parts = (SHORT | LONG)[name]
    expected, delta = by_sglang(parts)
    ids, our_delta = ours(parts)
    np.testing.assert_array_equal(ids, expected)
    assert our_delta == delta


vision_parts = st.one_of(
    st.builds(lambda h, w: image(2 * h, 2 * w), st.integers(1, 5), st.integers(1, 5)),
    st.builds(
        lambda t, h, w, s: video(t, 2 * h, 2 * w, s),
        st.integers(1, 9),
        st.integers(1, 5),
        st.integers(1, 5),
        st.floats(1 / 64, 5, width=32),
    ),
)


@given(st.lists(st.tuples(st.integers(1, 4), vision_parts), min_size=1, max_size=4))
def test_any_interleaving_has_the_ids_of_sglang(pairs: list) -> None:
    parts = [part for pair in pairs for part in pair] + [3]
    expected, delta = by_sglang(parts)
    ids, our_delta = ours(parts)
    np.testing.assert_array_equal(ids, expected)
    assert our_delta == delta


def test_a_still_image_takes_no_time() -> None:
    ids = mrope_positions(6, [VisionSpan(1, (1, 4, 4))])
    assert ids.tolist() == [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]
    assert rope_delta(ids) == 4 - 6


def test_a_video_counts_time_in_seconds_and_text_continues_past_its_largest_id() -> None:
    ids = mrope_positions(7, [VisionSpan(1, (4, 2, 2), 1.5)], tokens_per_second=2.0)
    in_frame = [0, 1, 1, 1, 1, 11, 12]
    assert ids.tolist() == [[0, 1, 4, 7, 10, 11, 12], in_frame, in_frame]
    assert rope_delta(ids) == 13 - 7


def test_temporal_ids_are_rounded_down() -> None:
    ids = mrope_positions(4, [VisionSpan(0, (4, 2, 2), 0.4)], tokens_per_second=2.0)
    assert ids[0].tolist() == [0, 0, 1, 2]


def test_an_empty_prompt_and_a_text_prompt_have_no_delta() -> None:
    assert mrope_positions(0).shape == (3, 0)
    assert rope_delta(mrope_positions(0)) == 0
    assert rope_delta(mrope_positions(9)) == 0


def test_text_and_kept_video_tokens_survive() -> None:
    assert kept_prompt_indices(9, [(2, 4), (5, 8)], [1, 2, 4]).tolist() == [0, 1, 3, 4, 5, 7, 8]


def test_a_text_only_prompt_is_kept_whole() -> None:
    assert kept_prompt_indices(3, [], []).tolist() == [0, 1, 2]
    assert kept_prompt_indices(0, [], []).tolist() == []


def test_all_or_none_of_the_video_can_be_kept() -> None:
    assert kept_prompt_indices(4, [(1, 3)], [0, 1]).tolist() == [0, 1, 2, 3]
    assert kept_prompt_indices(4, [(1, 3)], []).tolist() == [0, 3]


@given(st.data())
def test_the_kept_prompt_is_ascending_and_drops_exactly_the_pruned_tokens(data: object) -> None:
    lengths = data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=4))
    spans, index = [], 0
    for gap, size in lengths:
        spans.append((index + gap, index + gap + size))
        index += gap + size
    total = sum(stop - start for start, stop in spans)
    kept = sorted(data.draw(st.sets(st.integers(0, max(total - 1, 0)), max_size=total)))
    length = index + data.draw(st.integers(0, 3))
    indices = kept_prompt_indices(length, spans, kept)
    video = [i for start, stop in spans for i in range(start, stop)]
    dropped = {video[j] for j in range(total) if j not in kept}
    assert indices.tolist() == [i for i in range(length) if i not in dropped]


def test_each_scheme_numbers_the_kept_prompt() -> None:
    kept = kept_prompt_indices(7, [(1, 5)], [0, 3])
    mrope = mrope_positions(7, [VisionSpan(1, (4, 2, 2), 1.5)])
    assert pruned_positions("contiguous", kept, prompt_length=7).tolist() == [0, 1, 2, 3, 4]
    assert pruned_positions("original", kept, prompt_length=7).tolist() == [0, 1, 4, 5, 6]
    gathered = pruned_positions("mrope", kept, prompt_length=7, mrope=mrope)
    assert gathered.tolist() == [[0, 1, 10, 11, 12], [0, 1, 1, 11, 12], [0, 1, 1, 11, 12]]


def test_each_scheme_continues_after_its_prompt() -> None:
    def positions(scheme: str, delta: int = 0) -> list:
        return generated_positions(
            scheme, [0, 1, 1, 2], prompt_length=7, kept_length=5, delta=delta
        ).tolist()

    assert positions("contiguous") == [5, 6, 6, 7]
    assert positions("original") == [7, 8, 8, 9]
    assert positions("mrope", delta=6) == [[13, 14, 14, 15]] * 3


def test_generated_mrope_ids_follow_the_last_prompt_token_even_when_pruned() -> None:
    length, spans = spans_of(LONG["two long videos"])
    full = mrope_positions(length, spans)
    kept = kept_prompt_indices(length, [(s.start, s.start + 1) for s in spans], [])
    steps = generated_positions(
        "mrope", [0], prompt_length=length, kept_length=len(kept), delta=rope_delta(full)
    )
    np.testing.assert_array_equal(steps[:, 0], full[:, -1] + 1)


def test_results_are_int64_even_when_empty() -> None:
    assert kept_prompt_indices(2, [(0, 2)], []).dtype == np.int64
    assert pruned_positions("original", [], prompt_length=2).dtype == np.int64
    assert mrope_positions(3, [VisionSpan(0, (1, 2, 2))]).dtype == np.int64
    assert generated_positions("mrope", [], prompt_length=2, kept_length=2).shape == (3, 0)


SPAN = VisionSpan(1, (1, 4, 4))
ERRORS = {
    "negative prompt": (lambda: kept_prompt_indices(-1, [], []), "prompt_length = -1"),
    "span too long": (lambda: kept_prompt_indices(4, [(2, 5)], []), r"video_spans = \(2, 5\)"),
    "empty span": (lambda: kept_prompt_indices(4, [(2, 2)], []), r"video_spans = \(2, 2\)"),
    "spans overlap": (
        lambda: kept_prompt_indices(9, [(2, 5), (4, 6)], []),
        r"video_spans = \(4, 6\).*\[5, 9\]",
    ),
    "kept too large": (
        lambda: kept_prompt_indices(4, [(1, 3)], [0, 2]),
        r"kept_video_tokens = \[2\].*\[0, 2\)",
    ),
    "kept negative": (
        lambda: kept_prompt_indices(4, [(1, 3)], [-1]),
        r"kept_video_tokens = \[-1\]",
    ),
    "kept unsorted": (
        lambda: kept_prompt_indices(4, [(1, 4)], [2, 1]),
        r"kept_video_tokens = \[2, 1\].*ascending",
    ),
    "kept twice": (lambda: kept_prompt_indices(4, [(1, 4)], [1, 1]), "strictly ascending"),
    "kept floats": (lambda: kept_prompt_indices(4, [(1, 4)], [0.5]), "kept_video_tokens.*integers"),
    "kept a matrix": (
        lambda: kept_prompt_indices(4, [(1, 4)], [[0]]),
        r"kept_video_tokens.*\(n,\)",
    ),
    "mrope negative prompt": (lambda: mrope_positions(-2), "prompt_length = -2"),
    "merge of 0": (lambda: mrope_positions(2, spatial_merge_size=0), "spatial_merge_size = 0"),
    "rate of 0": (lambda: mrope_positions(2, tokens_per_second=0), "tokens_per_second = 0"),
    "rate not finite": (
        lambda: mrope_positions(2, tokens_per_second=float("nan")),
        "tokens_per_second = nan",
    ),
    "span leaves the prompt": (lambda: mrope_positions(4, [SPAN]), r"vision = \(1, 5\).*\[0, 4\]"),
    "span before the prompt": (
        lambda: mrope_positions(9, [VisionSpan(-1, (1, 4, 4))]),
        r"vision = \(-1, 3\)",
    ),
    "vision overlaps": (
        lambda: mrope_positions(12, [SPAN, VisionSpan(4, (1, 4, 4))]),
        r"vision = \(4, 8\).*\[5, 12\]",
    ),
    "grid of 0": (
        lambda: mrope_positions(9, [VisionSpan(0, (0, 4, 4))]),
        r"grid_thw = \(0, 4, 4\)",
    ),
    "rows not mergeable": (
        lambda: mrope_positions(9, [VisionSpan(0, (1, 3, 4))]),
        r"grid_thw = \(1, 3, 4\).*spatial_merge_size = 2",
    ),
    "columns not mergeable": (
        lambda: mrope_positions(9, [VisionSpan(0, (1, 4, 5))]),
        r"grid_thw = \(1, 4, 5\)",
    ),
    "negative time": (
        lambda: mrope_positions(9, [VisionSpan(0, (1, 4, 4), -1.0)]),
        r"seconds_per_grid = -1\.0",
    ),
    "infinite time": (
        lambda: mrope_positions(9, [VisionSpan(0, (1, 4, 4), float("inf"))]),
        "seconds_per_grid = inf",
    ),
    "delta of a vector": (lambda: rope_delta([1, 2, 3]), r"mrope = \(3,\)"),
    "delta of two rows": (lambda: rope_delta([[1], [2]]), r"mrope = \(2, 1\)"),
    "unknown scheme": (
        lambda: pruned_positions("absolute", [0], prompt_length=1),
        "scheme = 'absolute'.*contiguous",
    ),
    "kept position too large": (
        lambda: pruned_positions("original", [0, 3], prompt_length=3),
        r"kept = \[3\].*\[0, 3\)",
    ),
    "kept position unsorted": (
        lambda: pruned_positions("contiguous", [1, 0], prompt_length=3),
        r"kept = \[1, 0\]",
    ),
    "pruned negative prompt": (
        lambda: pruned_positions("original", [], prompt_length=-1),
        "prompt_length = -1",
    ),
    "mrope missing": (lambda: pruned_positions("mrope", [0], prompt_length=1), "mrope = None"),
    "mrope too short": (
        lambda: pruned_positions("mrope", [0], prompt_length=2, mrope=np.zeros((3, 1), int)),
        r"mrope = \(3, 1\).*\(3, 2\)",
    ),
    "mrope superfluous": (
        lambda: pruned_positions("original", [0], prompt_length=1, mrope=np.zeros((3, 1), int)),
        "mrope.*None for 1-D",
    ),
    "generated unknown scheme": (
        lambda: generated_positions("x", [0], prompt_length=1, kept_length=1),
        "scheme = 'x'",
    ),
    "generated negative prompt": (
        lambda: generated_positions("original", [0], prompt_length=-1, kept_length=0),
        "prompt_length = -1",
    ),
    "kept length too large": (
        lambda: generated_positions("original", [0], prompt_length=1, kept_length=2),
        r"kept_length = 2.*\[0, 1\]",
    ),
    "negative step": (
        lambda: generated_positions("original", [-1], prompt_length=1, kept_length=1),
        r"steps = \[-1\]",
    ),
    "steps a matrix": (
        lambda: generated_positions("original", [[1]], prompt_length=1, kept_length=1),
        r"steps = \(1, 1\)",
    ),
    "delta with a 1-D scheme": (
        lambda: generated_positions("original", [0], prompt_length=1, kept_length=1, delta=3),
        "delta = 3",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_user_error_names_the_argument_its_value_and_the_range(name: str) -> None:
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
