"""Requests with every field, built from the table in `fields`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.serving import fields
from tests.serving.answers import PATHS
from tests.serving.fields import DESCRIBE, FIELDS, LOOSE, MEDIA, SHORT, Seen, Try

NEW_TOKENS = 24
API_MEDIA = {"generate": MEDIA, "completions": ("text",), "chat": MEDIA}
API_CLASSES = {
    "generate": ("SamplingParams", "GenerateReqInput"),
    "completions": ("CompletionRequest",),
    "chat": ("ChatCompletionRequest",),
}
NATIVE_NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
"""Names of the native API where the OpenAI API's are others."""
BASE = {"temperature": 0, "repetition_penalty": 1.0, "max_tokens": NEW_TOKENS}
"""Of every request: greedy, and without the checkpoint's own penalty."""
RETENTIONS = (1.0, 0.25)
"""Dealt to the requests, so that drafts are good and not so good."""

_LOGPROBS = {
    "generate": {"return_logprob": True, "top_logprobs_num": 3},
    "completions": {"logprobs": 3},
    "chat": {"logprobs": True, "top_logprobs": 3},
}


@dataclass(frozen=True)
class Prompt:
    """A question about something, in each API's form.

    Attributes
    ----------
    seen : Seen
        Tokens, the plain greedy answer, and the chat messages.
    native : dict
        Fields of the native API that carry the prompt.
    """

    seen: Seen
    native: dict[str, Any]


Prompts = Mapping[tuple[str, str], Prompt]
"""By medium and question."""


@dataclass(frozen=True)
class Case:
    """One request, and the one that it is to differ from, or not.

    Attributes
    ----------
    name : str
        API, medium, and what is tried.
    api, body, without
        Key of `PATHS`, and JSON bodies with and without the field.
    keeps : bool
        Both are to be answered alike.
    first : bool
        It is its field's turn on this medium: media take turns.
    """

    name: str
    api: str
    medium: str
    body: dict[str, Any]
    without: dict[str, Any]
    keeps: bool
    first: bool


def body_of(api: str, prompt: Prompt, sent: Mapping[str, Any]) -> dict[str, Any]:
    """A request's JSON body.

    Parameters
    ----------
    api : str
        Key of `PATHS`.
    prompt : Prompt
        What is asked.
    sent : dict
        Fields in the OpenAI API's or the API's own names, over `BASE`; a value may be a
        `fields.FromAnswer`, or `fields.OMITTED`.
    """
    chosen = {
        name: fields.resolve(value, prompt.seen)
        for name, value in {**BASE, **sent}.items()
        if value is not fields.OMITTED
    }
    if api == "generate":
        return _native_body(prompt, chosen)
    if api == "completions":
        always = {"return_token_ids": True, "return_spec_tokens_details": True}
        return {"model": "m", "prompt": prompt.seen.prompt_ids, **always, **chosen}
    # A stream reports no meta_info.
    report = "return_spec_tokens_details" if chosen.get("stream") else "return_meta_info"
    always = {report: True, "return_output_ids_in_sglext": True}
    return {"model": "m", "messages": prompt.seen.messages, **always, **chosen}


def _native_body(prompt: Prompt, chosen: dict[str, Any]) -> dict[str, Any]:
    sampling: dict[str, Any] = {}
    request: dict[str, Any] = dict(prompt.native)
    for name, value in chosen.items():
        name = NATIVE_NAMES.get(name, name)
        inside = name in FIELDS["SamplingParams"] and name != "watermark"
        (sampling if inside else request)[name] = value
    return {**request, "sampling_params": sampling}


def cases(prompts: Prompts) -> list[Case]:
    """Every request that the table and its combinations ask for, on every medium of its API."""
    built = []
    for api in PATHS:
        for rank, (what, sent, tried) in enumerate(_everything(api)):
            retention = RETENTIONS[rank % len(RETENTIONS)]
            sent = {"custom_params": {"specvlm": {"retention": retention}}, **tried.beside, **sent}
            beside = dict(tried.beside)
            if tried.keeps:
                beside.pop("temperature", None)
            media = [medium for medium in API_MEDIA[api] if medium in tried.media]
            for medium in media:
                prompt = prompts[medium, tried.prompt]
                built.append(
                    Case(
                        name=f"{api}, {medium}: {what}",
                        api=api,
                        medium=medium,
                        body=body_of(api, prompt, sent),
                        without=body_of(api, prompt, beside),
                        keeps=tried.keeps,
                        first=medium == media[rank % len(media)],
                    )
                )
    return built


def _everything(api: str) -> Iterator[tuple[str, dict[str, Any], Try]]:
    """What is tried with an API: a description, the fields in question, and their `Try`."""
    for question in (DESCRIBE, LOOSE, SHORT):
        yield f"nothing but a question ({question})", {}, Try(None, prompt=question, keeps=True)
    for name, decision in decisions(api):
        if isinstance(decision, tuple):
            for tried in decision:
                yield _description(name, tried), {name: tried.value}, tried
    together = {
        name: decision.value
        for name, decision in decisions(api)
        if isinstance(decision, fields.Together)
    }
    yield "everything that changes no token", together, Try(None, keeps=True)
    for what, (sent, question) in fields.COMBINATIONS.items():
        yield what, dict(sent), Try(None, prompt=question)
    for what, (sent, question) in fields.LOGPROB_COMBINATIONS.items():
        sent = {**sent, **_LOGPROBS[api]}
        yield f"log probabilities under {what}", sent, Try(None, prompt=question)


def decisions(api: str) -> Iterator[tuple[str, fields.Decision]]:
    """The API's fields and what was decided about them."""
    for name in API_CLASSES[api]:
        yield from FIELDS[name].items()


def _description(name: str, tried: Try) -> str:
    def shown(value: Any) -> str:
        return "(left out)" if value is fields.OMITTED else str(value)[:60]

    beside = "".join(f", {key}={shown(value)}" for key, value in tried.beside.items())
    return f"{name}={shown(tried.value)}{beside} ({tried.prompt})"
