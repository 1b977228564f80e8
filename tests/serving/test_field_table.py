"""The table of `fields` has a decision for each field of SGLang's request classes, and no other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from tests.serving import fields
from tests.serving.every_field import API_CLASSES, API_MEDIA, Prompt, cases
from tests.serving.fields import DISTRIBUTION, FIELDS, MEDIA, Reason, Seen

NAMES = {
    "SamplingParams": set(SamplingParams.__struct_fields__),
    "GenerateReqInput": {field.name for field in dataclasses.fields(GenerateReqInput)},
    "CompletionRequest": set(CompletionRequest.model_fields),
    "ChatCompletionRequest": set(ChatCompletionRequest.model_fields),
}
"""SGLang's fields, as its own classes list them."""


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_sglangs_classes_is_decided_and_nothing_else(name: str) -> None:
    undecided = sorted(NAMES[name] - set(FIELDS[name]))
    unknown = sorted(set(FIELDS[name]) - NAMES[name])
    assert not undecided, f"{name} has new fields: decide in tests/serving/fields.py: {undecided}"
    assert not unknown, f"{name} no longer has {unknown}"


@pytest.fixture(scope="module")
def prompts() -> dict[tuple[str, str], Prompt]:
    """Prompts whose answers are numbers in a row."""
    seen = Seen(
        prompt_ids=[1, 2, 3],
        ids=list(range(100, 124)),
        beyond=list(range(100, 140)),
        messages=[{"role": "user", "content": "?"}],
        decode=lambda ids: "".join(f"<{token}>" for token in ids),
    )
    questions = (fields.DESCRIBE, fields.LOOSE, fields.SHORT)
    return {
        (medium, question): Prompt(seen, {"input_ids": [1, 2, 3]})
        for medium in MEDIA
        for question in questions
    }


def sent_by(body: dict[str, Any]) -> set[str]:
    return {*body, *body.get("sampling_params", {})}


@pytest.mark.parametrize("api", API_CLASSES)
def test_every_field_that_is_tried_or_sent_along_is_in_a_request(
    prompts: dict[tuple[str, str], Prompt], api: str
) -> None:
    sent = set().union(*(sent_by(case.body) for case in cases(prompts) if case.api == api))
    decided = {name: field for table in API_CLASSES[api] for name, field in FIELDS[table].items()}
    missing = {
        name
        for name, decision in decided.items()
        if isinstance(decision, tuple | fields.Together) and name not in sent
    }
    assert not missing
    unexplained = {
        name
        for name in sent
        if isinstance(decided[name], Reason)
        and decided[name] not in (Reason.EVERYWHERE, Reason.PROMPT)
    }
    assert not unexplained, "these are sent, and the table says that they are not"


@pytest.mark.parametrize("api", API_CLASSES)
def test_the_first_part_tries_every_field_and_deals_all_media(
    prompts: dict[tuple[str, str], Prompt], api: str
) -> None:
    built = [case for case in cases(prompts) if case.api == api]
    first = [case for case in built if case.first]
    assert set().union(*(sent_by(case.body) for case in first)) == set().union(
        *(sent_by(case.body) for case in built)
    )
    assert {case.medium for case in first} == set(API_MEDIA[api])


def test_no_two_cases_share_a_name(prompts: dict[tuple[str, str], Prompt]) -> None:
    names = [case.name for case in cases(prompts)]
    assert len(set(names)) == len(names)


def test_the_openai_classes_say_more_about_no_parameter_than_the_native_one() -> None:
    """A sampling parameter is decided alike where its name is the same."""
    for table in ("CompletionRequest", "ChatCompletionRequest"):
        for name in set(FIELDS[table]) & set(FIELDS["SamplingParams"]):
            kinds = {type(FIELDS[table][name]), type(FIELDS["SamplingParams"][name])}
            assert len(kinds) == 1, (table, name)


def test_what_changes_a_distribution_is_counted_token_by_token() -> None:
    from tests.serving.test_specvlm_sampling import SETTINGS

    counted = {name for sampling, _ in SETTINGS.values() for name in sampling}
    assert set(DISTRIBUTION) <= counted
    assert set(DISTRIBUTION) <= set(FIELDS["SamplingParams"])
