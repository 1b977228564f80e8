"""Which drafts may draft for which targets."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.models.pair import check_pair
from specvlm_sglang.models.registry import FAMILIES
from specvlm_sglang.models.unserved import REASONS
from tests.support import checkpoints
from tests.support.tokenizer import SPECIAL_TOKENS


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    check_pair.cache_clear()
    yield
    check_pair.cache_clear()


@pytest.fixture
def edited(vl_draft: Path, tmp_path: Path) -> Callable[[str, Callable[[Any], None]], Path]:
    """A copy of the draft's directory with one JSON file changed; weights are not read here."""

    def edit(file: str, change: Callable[[Any], None]) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(vl_draft, folder)
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))
        return folder

    return edit


def test_a_narrower_draft_with_the_same_tokenizer_is_accepted(
    vl_target: Path, vl_draft: Path
) -> None:
    check_pair(str(vl_target), str(vl_draft))


def test_a_text_pair_is_accepted(text_target: Path, text_draft: Path) -> None:
    check_pair(str(text_target), str(text_draft))


def test_equal_tokenizers_with_differently_padded_tables_are_accepted(
    vl_draft: Path, tmp_path: Path
) -> None:
    padded = checkpoints.qwen2_5_vl(
        tmp_path / "padded", replace(checkpoints.TARGET, vocab_padding=50)
    )
    check_pair(str(padded), str(vl_draft))
    check_pair(str(vl_draft), str(padded))


def test_another_tokenizer_is_refused_by_its_first_differing_token(
    vl_target: Path, tmp_path: Path
) -> None:
    smaller = checkpoints.qwen2_5_vl(
        tmp_path / "smaller", replace(checkpoints.DRAFT, text_tokens=440), checkpoints.DRAFT_VISION
    )
    # The special tokens have other ids as well, which is noticed first.
    with pytest.raises(ValueError, match=r"image_token_id is 460 .* and 452 "):
        check_pair(str(vl_target), str(smaller))


def test_swapped_tokens_are_refused_by_the_first_of_them(
    vl_target: Path, edited: Callable[..., Path]
) -> None:
    def swap(content: Any) -> None:
        vocabulary = content["model"]["vocab"]
        names = {number: token for token, number in vocabulary.items()}
        vocabulary[names[300]], vocabulary[names[310]] = 310, 300

    draft = edited("tokenizer.json", swap)
    with pytest.raises(ValueError, match=f"token 300 is '.*' for the target .* draft {draft}"):
        check_pair(str(vl_target), str(draft))


def test_a_token_more_in_the_draft_is_refused_by_its_number(
    vl_target: Path, edited: Callable[..., Path]
) -> None:
    first_free = checkpoints.TARGET.text_tokens + len(SPECIAL_TOKENS)

    def add(content: Any) -> None:
        token = dict(content["added_tokens"][-1], id=first_free, content="<|more|>")
        content["added_tokens"].append(token)

    draft = edited("tokenizer.json", add)
    with pytest.raises(ValueError, match=rf"token {first_free} is None .* '<\|more\|>' for"):
        check_pair(str(vl_target), str(draft))


def test_the_tokenizer_path_replaces_the_targets_own(
    vl_target: Path, vl_draft: Path, edited: Callable[..., Path]
) -> None:
    def rename(content: Any) -> None:
        content["added_tokens"][-1]["content"] = "<|film|>"

    other = edited("tokenizer.json", rename)
    with pytest.raises(ValueError, match=r"<\|film\|>.* for the target .*edited"):
        check_pair(str(vl_target), str(vl_draft), tokenizer=str(other))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 16),
        ("spatial_merge_size", 4),
        ("temporal_patch_size", 1),
        ("tokens_per_second", 4),
    ],
)
def test_another_layout_of_the_video_is_refused_by_its_name(
    vl_target: Path, edited: Callable[..., Path], name: str, value: int
) -> None:
    def change(content: Any) -> None:
        assert content["vision_config"][name] != value
        content["vision_config"][name] = value

    draft = edited("config.json", change)
    with pytest.raises(ValueError, match=f"^{name} is .* in the target {vl_target} and {value} in"):
        check_pair(str(vl_target), str(draft))


@pytest.mark.parametrize(
    "name", ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]
)
def test_another_placeholder_is_refused_by_its_name(
    vl_target: Path, edited: Callable[..., Path], name: str
) -> None:
    draft = edited("config.json", lambda content: content.update({name: 7}))
    with pytest.raises(ValueError, match=f"^{name} is .* and 7 in the draft"):
        check_pair(str(vl_target), str(draft))


def test_another_family_is_refused_with_both_names(vl_target: Path, text_draft: Path) -> None:
    with pytest.raises(ValueError, match=r"is a text model, the target .* a Qwen2\.5-VL model"):
        check_pair(str(vl_target), str(text_draft))


@pytest.mark.parametrize("is_target", [False, True])
def test_a_model_that_is_not_served_is_refused_with_what_is(
    vl_target: Path, edited: Callable[..., Path], is_target: bool
) -> None:
    def change(content: Any) -> None:
        content["architectures"] = ["PixtralForConditionalGeneration"]

    pair = [str(vl_target), str(edited("config.json", change))]
    with pytest.raises(
        ValueError,
        match=r"does not serve PixtralForCond\w+; .*Qwen2_5_VLForConditionalGeneration",
    ):
        check_pair(*(reversed(pair) if is_target else pair))


@pytest.mark.parametrize("name", sorted(REASONS))
def test_a_model_that_cannot_be_served_is_refused_with_the_reason(
    vl_target: Path, edited: Callable[..., Path], name: str
) -> None:
    def change(content: Any) -> None:
        # As of a checkpoint with code of its own, which transformers does not know.
        content.update({"architectures": [name], "model_type": "its-own"})

    draft = edited("config.json", change)
    with pytest.raises(ValueError, match=re.escape(f"does not serve {name}: {REASONS[name]}")):
        check_pair(str(vl_target), str(draft))


def test_what_cannot_be_served_is_not_among_what_is() -> None:
    served = {name for family in FAMILIES for name in family.architectures}
    assert not served & set(REASONS)
    # One sentence or two, without an end: it stands in a longer message.
    assert all(reason and not reason.endswith(".") for reason in REASONS.values())


def test_the_way_out_for_hybrid_models_is_one_that_sglang_has() -> None:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    assert "--speculative-algorithm NEXTN" in REASONS["Qwen3_5ForConditionalGeneration"]
    assert SpeculativeAlgorithm.from_string("NEXTN").is_eagle()


def test_a_draft_whose_heads_the_ranks_cannot_share_is_refused(
    vl_target: Path, vl_draft: Path
) -> None:
    with pytest.raises(ValueError, match=r"--tp-size=2 does not divide the 1 vision heads"):
        check_pair(str(vl_target), str(vl_draft), tp_size=2)


def test_every_name_is_in_the_table_of_support() -> None:
    table = (Path(__file__).parents[2] / "docs" / "support.md").read_text()
    names = {name for family in FAMILIES for name in family.architectures} | set(REASONS)
    assert not {name for name in names if f"`{name}`" not in table}


def test_a_draft_that_reads_fewer_tokens_is_refused_with_what_both_read(
    vl_target: Path, edited: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shorten(content: Any) -> None:
        content["text_config"]["max_position_embeddings"] = 4096

    monkeypatch.delenv("SGLANG_IS_IN_CI", raising=False)
    pair = str(vl_target), str(edited("config.json", shorten))
    with pytest.raises(ValueError, match=f"{pair[1]} reads 4096 tokens, and 32768 are .*=4096"):
        check_pair(*pair)
    check_pair(*pair, served_length=4096)
    monkeypatch.setenv("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "1")
    check_pair(*pair)
