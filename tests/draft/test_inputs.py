"""The draft's prompt: which tokens, embeddings and positions of the full prompt it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs

from reference.positions import kept_prompt_indices, pruned_positions
from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.draft.inputs import (
    DraftPrompt,
    build_continuation,
    build_draft_prompt,
    draft_length,
    encode_prompt,
    split_into_passes,
)
from specvlm_sglang.models.qwen2_5_vl import Qwen25VL
from specvlm_sglang.models.text import TextOnly
from specvlm_sglang.request import layout_of
from tests.support import hf
from tests.support.messages import user

NEWEST = 17


class Tower:
    """transformers' model under the names of SGLang's model class."""

    def __init__(self, model: Any) -> None:
        self._visual = model.model.visual

    def _encode(self, items: list[Any], grid: str) -> torch.Tensor:
        (item,) = items
        output = self._visual(item.feature, grid_thw=getattr(item, grid))
        features: torch.Tensor = output.pooler_output
        return features

    def get_video_feature(self, items: list[Any]) -> torch.Tensor:
        return self._encode(items, "video_grid_thw")

    def get_image_feature(self, items: list[Any]) -> torch.Tensor:
        return self._encode(items, "image_grid_thw")


@dataclass
class Case:
    """A prompt as transformers' processor makes it, and as SGLang's request holds it."""

    req: Any
    embeddings: torch.Tensor
    positions: torch.Tensor
    spans: list[tuple[int, int]]
    """Half-open spans of the videos."""


def runs(ids: torch.Tensor, token: int) -> list[tuple[int, int]]:
    """Half-open runs of one token."""
    marks = np.diff(np.concatenate([[0], (ids.numpy() == token).astype(int), [0]]))
    starts, stops = np.flatnonzero(marks == 1), np.flatnonzero(marks == -1)
    return [(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]


@torch.no_grad()
def make(directory: Path, *parts: str | Path, generated: int = 0, joined: bool = False) -> Case:
    """``joined``: one item for all media of a kind, as SGLang may make."""
    model = hf.load_model(directory)
    inputs = hf.model_inputs(directory, hf.render(directory, user(*parts)))
    ids = inputs["input_ids"][0]
    tower, items, spans = Tower(model), [], []
    embeddings = model.get_input_embeddings()(ids)
    for kind, modality in (("image", Modality.IMAGE), ("video", Modality.VIDEO)):
        grids = inputs.get(f"{kind}_grid_thw")
        if grids is None:
            continue
        pixels = inputs["pixel_values" + ("_videos" if kind == "video" else "")]
        found = runs(ids, getattr(model.config, f"{kind}_token_id"))
        patches = pixels.split(grids.prod(dim=1).tolist())
        single = [
            (patch, [span], grids[n : n + 1])
            for n, (patch, span) in enumerate(zip(patches, found, strict=True))
        ]
        for feature, owned, grid in [(pixels, found, grids)] if joined else single:
            item = MultimodalDataItem(
                modality=modality,
                feature=feature,
                offsets=[(start, stop - 1) for start, stop in owned],
                hash=len(items) + 1,
                model_specific_data={f"{kind}_grid_thw": grid},
            )
            items.append(item)
            columns = torch.cat([torch.arange(start, stop) for start, stop in owned])
            embeddings[columns] = tower._encode([item], f"{kind}_grid_thw")
        spans += found if kind == "video" else []
    mm_inputs = None
    positions, delta = hf.rope_index(directory, inputs)
    length = len(ids)
    if items:
        mm_inputs = MultimodalInputs(mm_items=items)
        mm_inputs.mrope_positions = positions[:, 0]
        mm_inputs.mrope_position_delta = delta
    # After a retraction the target prefills what it had generated as well.
    more = torch.arange(20, 20 + generated)
    ids = torch.cat([ids, more, torch.tensor([NEWEST])])
    later = torch.arange(length, length + generated + 1) + delta[0, 0]
    # SGLang replaces placeholders by a hash of their content, outside any vocabulary.
    held = ids[:-1].clone()
    for item in items:
        for first, last in item.offsets:
            held[first : last + 1] = 1_000_000 + item.hash
    req = SimpleNamespace(
        origin_input_ids=held[:length].tolist(),
        output_ids=held[length:].tolist(),
        full_untruncated_fill_ids=held.tolist(),
        multimodal_inputs=mm_inputs,
    )
    return Case(
        req,
        torch.cat([embeddings, model.get_input_embeddings()(ids[length:])]),
        torch.cat([positions[:, 0], later.expand(3, -1)], dim=1),
        spans,
    )


def check(directory: Path, case: Case, kept: list[int] | None) -> None:
    model = hf.load_model(directory)
    prompt = layout_of(case.req, 256, Qwen25VL())
    filled = len(case.req.full_untruncated_fill_ids)
    with torch.no_grad():
        found = build_draft_prompt(
            case.req,
            filled,
            prompt,
            None if kept is None else torch.tensor(kept, dtype=torch.int64),
            torch.tensor([NEWEST]),
            family=Qwen25VL(),
            features=DraftFeatures(Tower(model), Qwen25VL()),
            embed_tokens=model.get_input_embeddings(),
        )
    every = list(range(prompt.video_tokens))
    columns = kept_prompt_indices(filled + 1, case.spans, every if kept is None else kept)
    torch.testing.assert_close(found.embeddings, case.embeddings[columns], rtol=0, atol=1e-5)
    expected = pruned_positions(
        "mrope", columns, prompt_length=filled + 1, mrope=case.positions.numpy()
    )
    assert found.mrope_positions is not None
    np.testing.assert_array_equal(found.mrope_positions.numpy(), expected)
    count = prompt.video_tokens if kept is None else len(kept)
    assert found.tokens == draft_length(prompt, filled, count) == len(columns)
    assert int(found.input_ids.max()) < model.config.text_config.vocab_size
    assert int(found.input_ids[-1]) == NEWEST


@pytest.fixture
def layouts(clip_paths: list[Path], image_paths: list[Path]) -> dict[str, list[str | Path]]:
    clip, other, image = clip_paths[0], clip_paths[1], image_paths[0]
    return {
        "video, then text": [clip, "Describe this video."],
        "text, then video": ["Describe this video.", clip],
        "image, then video": [image, clip, "What happens?"],
        "video, then image": [clip, "then", image, "What happens?"],
        "two videos": [clip, "and", other, "What happens?"],
    }


LAYOUTS = [
    "video, then text",
    "text, then video",
    "image, then video",
    "video, then image",
    "two videos",
]


@pytest.mark.parametrize("generated", [0, 3])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kept_tokens_have_the_embeddings_and_positions_of_the_full_prompt(
    layout: str,
    share: float,
    generated: int,
    vl_draft: Path,
    layouts: dict[str, list[str | Path]],
) -> None:
    case = make(vl_draft, *layouts[layout], generated=generated)
    tokens = layout_of(case.req, 256, Qwen25VL()).video_tokens
    assert tokens > 10
    rng = np.random.default_rng(3)
    kept = sorted(rng.choice(tokens, size=round(share * tokens), replace=False).tolist())
    check(vl_draft, case, kept)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_in_place_of_kept_tokens_stands_where_they_stand(
    layout: str, vl_draft: Path, layouts: dict[str, list[str | Path]]
) -> None:
    case, model = make(vl_draft, *layouts[layout], generated=2), hf.load_model(vl_draft)
    prompt = layout_of(case.req, 256, Qwen25VL())
    features = DraftFeatures(Tower(model), Qwen25VL())
    kept = torch.arange(1, prompt.video_tokens, 3)
    options = {"family": Qwen25VL(), "features": features}
    with torch.no_grad():
        filled = len(case.req.full_untruncated_fill_ids)
        encoded = encode_prompt(case.req, filled, features)
        own = encoded.of_videos(prompt)
        asked = case.req, filled, prompt, kept, torch.tensor([NEWEST])
        options["embed_tokens"] = model.get_input_embeddings()
        calls = features.hits + features.misses
        plain = build_draft_prompt(*asked, **options, encoded=encoded)
        other = build_draft_prompt(*asked, **options, encoded=encoded, kept_features=-own[kept])
    assert features.hits + features.misses == calls, "encoded once"
    torch.testing.assert_close(own, case.embeddings[torch.from_numpy(prompt.video_positions)])
    changed = (plain.embeddings != other.embeddings).any(1)
    assert int(changed.sum()) == len(kept)
    torch.testing.assert_close(other.embeddings[changed], -own[kept])
    torch.testing.assert_close(plain.embeddings[changed], own[kept])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_selection_everything_is_kept(
    layout: str, vl_draft: Path, layouts: dict[str, list[str | Path]]
) -> None:
    check(vl_draft, make(vl_draft, *layouts[layout]), None)


@pytest.mark.parametrize("layout", ["two videos", "image, then video"])
def test_videos_that_share_one_item_are_told_apart(
    layout: str, vl_draft: Path, layouts: dict[str, list[str | Path]]
) -> None:
    case = make(vl_draft, *layouts[layout], joined=True)
    tokens = layout_of(case.req, 256, Qwen25VL()).video_tokens
    check(vl_draft, case, list(range(0, tokens, 3)))


def test_text_and_image_prompts_stay_whole(vl_draft: Path, image_paths: list[Path]) -> None:
    check(vl_draft, make(vl_draft, "How many shapes are there?"), None)
    check(vl_draft, make(vl_draft, image_paths[0], "What is it?", image_paths[1]), None)


def test_a_family_with_plain_positions_leaves_the_numbering_to_sglang() -> None:
    table = torch.nn.Embedding(30, 4)
    req = SimpleNamespace(origin_input_ids=[4, 5, 6], output_ids=[7], multimodal_inputs=None)
    with torch.no_grad():
        found = build_draft_prompt(
            req,
            3,
            layout_of(req, 256, TextOnly()),
            None,
            torch.tensor([7], dtype=torch.int32),
            family=TextOnly(),
            features=DraftFeatures(None, TextOnly()),
            embed_tokens=table,
        )
    assert found.mrope_positions is None
    assert found.input_ids.tolist() == [4, 5, 6, 7]
    assert torch.equal(found.embeddings, table.weight[4:8])


@pytest.mark.parametrize("behind", [1, 2, 4])
def test_a_continuation_is_the_end_of_what_a_draft_that_begins_now_would_see(
    vl_draft: Path, clip_paths: list[Path], behind: int
) -> None:
    case = make(vl_draft, clip_paths[0], "What is this?", generated=4)
    model = hf.load_model(vl_draft)
    table, features = model.get_input_embeddings(), DraftFeatures(Tower(model), Qwen25VL())
    prompt = layout_of(case.req, 256, Qwen25VL())
    filled = len(case.req.origin_input_ids) + 4
    kept, newest = torch.arange(prompt.video_tokens)[::3], torch.tensor([NEWEST])
    with torch.no_grad():
        whole = build_draft_prompt(
            *(case.req, filled, prompt, kept, newest),
            family=Qwen25VL(),
            features=features,
            embed_tokens=table,
        )
        first = whole.tokens - behind
        end = build_continuation(
            *(case.req, filled + 1, behind, first, newest), family=Qwen25VL(), embed_tokens=table
        )
    assert (end.first, end.tokens, end.stop) == (first, behind, whole.stop)
    assert torch.equal(end.embeddings, whole.embeddings[first:])
    assert torch.equal(end.input_ids, whole.input_ids[first:])
    assert whole.mrope_positions is not None
    assert end.mrope_positions is not None
    assert torch.equal(end.mrope_positions, whole.mrope_positions[:, first:])
    # Its parts are where the draft's are, and SGLang cuts M-RoPE ids by the draft's index.
    (part,) = split_into_passes([(0, end)], 64, 1)[0]
    assert (part.start, part.stop, part.is_last) == (first, whole.stop, True)
    assert torch.equal(part.of(end.input_ids), end.input_ids)
    assert part.slots(torch.arange(100, 200 + whole.stop)).tolist() == list(
        range(100 + first, 100 + whole.stop)
    )
    assert part.mrope_positions is not None
    assert torch.equal(part.mrope_positions[:, first : whole.stop], end.mrope_positions)


def test_a_continuation_in_original_positions_counts_the_targets_tokens() -> None:
    req = SimpleNamespace(origin_input_ids=[4] * 9, output_ids=[5, 6], multimodal_inputs=None)
    found = build_continuation(
        *(req, 12, 2, 5, torch.tensor([7])),
        family=TextOnly(),
        embed_tokens=torch.nn.Embedding(30, 4),
        original_positions=True,
    )
    assert found.input_ids.tolist() == [6, 7]
    assert found.positions is not None
    assert found.positions.tolist() == [10, 11]


def prompt_of_length(tokens: int) -> DraftPrompt:
    return DraftPrompt(torch.arange(tokens)[:, None], torch.arange(tokens), None)


def lay_out(lengths: list[int], pass_tokens: int, page_size: int = 1) -> list[list[Any]]:
    """``(index, start, stop)`` by pass; a prompt's index is ten times its place."""
    prompts = [(10 * place, prompt_of_length(length)) for place, length in enumerate(lengths)]
    passes = split_into_passes(prompts, pass_tokens, page_size)
    return [[(part.index, part.start, part.stop) for part in parts] for parts in passes]


def test_prompts_that_fit_into_one_pass_are_prefilled_together() -> None:
    assert lay_out([3, 5], 8) == [[(0, 0, 3), (10, 0, 5)]]
    assert lay_out([], 8) == []


def test_prompts_are_cut_where_a_pass_is_full() -> None:
    assert lay_out([5, 6, 9], 8) == [
        [(0, 0, 5), (10, 0, 3)],
        [(10, 3, 6), (20, 0, 5)],
        [(20, 5, 9)],
    ]


def test_prompts_are_cut_between_pages() -> None:
    assert lay_out([5, 11], 10, 4) == [[(0, 0, 5), (10, 0, 4)], [(10, 4, 11)]]
    # No whole page is left of the first pass, and a pass smaller than a page is one page.
    assert lay_out([8, 5], 10, 4) == [[(0, 0, 8)], [(10, 0, 5)]]
    assert lay_out([6], 1, 4) == [[(0, 0, 4)], [(0, 4, 6)]]


@given(
    lengths=st.lists(st.integers(1, 70), max_size=6),
    pass_tokens=st.integers(1, 64),
    page_size=st.sampled_from([1, 4, 16]),
)
def test_passes_hold_every_token_once_and_in_order(
    lengths: list[int], pass_tokens: int, page_size: int
) -> None:
    passes = lay_out(lengths, pass_tokens, page_size)
    parts = [part for parts in passes for part in parts]
    for place, length in enumerate(lengths):
        tokens = [
            token
            for index, start, stop in parts
            for token in range(start, stop)
            if index == 10 * place
        ]
        assert tokens == list(range(length))
        assert all(start % page_size == 0 for index, start, _ in parts if index == 10 * place)
    largest = max(pass_tokens, page_size)
    assert all(sum(stop - start for _, start, stop in parts) <= largest for parts in passes)
    for parts, (following, *_) in pairwise(passes):
        room = largest - sum(stop - start for _, start, stop in parts)
        assert room < min(page_size, following[2] - following[1])


def test_a_part_shows_its_tokens_and_whether_it_is_the_last() -> None:
    passes = split_into_passes([(7, prompt_of_length(5))], 3, 1)
    first, last = (parts[0] for parts in passes)
    assert first.of(first.prompt.input_ids).tolist() == [0, 1, 2]
    assert last.of(last.prompt.embeddings).tolist() == [[3], [4]]
    assert (first.is_last, last.is_last) == (False, True)
