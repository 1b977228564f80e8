"""Media of batches, and of prompts with several answers, through SGLang's own request class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sglang.srt.managers.io_struct import GenerateReqInput

from specvlm_sglang.host.video_requests import batches
from tests.support.hooks import unhooked

MODULE = "sglang.srt.managers.io_struct"
HOOKED = ("_handle_parallel_sampling", "_normalize_batch_inputs", "__getitem__")


@pytest.fixture(autouse=True)
def hooked() -> Iterator[None]:
    with unhooked(*((MODULE, f"GenerateReqInput.{name}") for name in HOOKED)):
        batches.install()
        yield


@pytest.fixture(params=["image_data", "video_data"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def dealt(kind: str, media: Any, prompts: int | None = None, n: int = 1) -> list[list[Any]]:
    """What each answer's prompt is about; ``prompts`` is None for one that is no batch."""
    text = "a" if prompts is None else ["a"] * prompts
    whole = GenerateReqInput(text=text, sampling_params={"n": n}, **{kind: media})
    whole.normalize_batch_and_arguments()
    parts = [whole] if whole.is_single else [whole[index] for index in range(len(whole.rid))]
    found = [getattr(part, kind) for part in parts]
    return [entry if isinstance(entry, list) else [entry] for entry in found]


@pytest.mark.parametrize("media", [["v"], ["v", "w"], [["f", "g"], "w"]], ids=str)
def test_all_media_of_a_prompt_are_in_each_of_its_answers(kind: str, media: list[Any]) -> None:
    assert dealt(kind, media) == [media]
    assert dealt(kind, media, n=3) == [media] * 3


def test_a_single_file_is_in_each_answer(kind: str) -> None:
    assert dealt(kind, "v", n=2) == [["v"]] * 2


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("media", "expected"),
    [
        (["v", "w"], [["v"], ["w"]]),
        ([["v", "x"], ["w"]], [["v", "x"], ["w"]]),
        ([["v", "x"], "w"], [["v", "x"], ["w"]]),
        (["v", ["w", "x"]], [["v"], ["w", "x"]]),
        (["v", None], [["v"], []]),
        ([None, "w"], [[], ["w"]]),
        ("v", [["v"], ["v"]]),
    ],
    ids=str,
)
def test_a_batch_deals_one_entry_to_each_prompt(
    kind: str, media: Any, expected: list[Any], n: int
) -> None:
    assert dealt(kind, media, prompts=2, n=n) == expected * n


@pytest.mark.parametrize("media", [["v"], ["v"] * 3, [["v", "w"]]], ids=str)
@pytest.mark.parametrize("n", [1, 2])
def test_another_number_of_entries_than_prompts_names_both(kind: str, media: Any, n: int) -> None:
    said = f"{kind} has {len(media)} entries for 2 prompts"
    with pytest.raises(ValueError, match=said):
        dealt(kind, media, prompts=2, n=n)


def test_a_batch_without_media_has_none(kind: str) -> None:
    for media in (None, []):
        assert dealt(kind, media, prompts=2) == [[None], [None]]


def test_hashes_of_images_stay_with_their_prompt() -> None:
    one = GenerateReqInput(
        text="a", image_data=["v", "w"], mm_hashes=["1", "2"], sampling_params={"n": 2}
    )
    one.normalize_batch_and_arguments()
    assert [one[index].mm_hashes for index in range(2)] == [["1", "2"]] * 2


def test_each_part_of_a_batch_keeps_the_options_of_its_videos() -> None:
    batch = GenerateReqInput(text=["a", "b"], video_data=["v", "w"], video_config={"fps": 1})
    batch.normalize_batch_and_arguments()
    assert batch[1].video_config == {"fps": 1}
