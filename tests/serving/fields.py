"""What every field of SGLang's request classes is tried with, or why it is not tried.

`FIELDS` has one decision for each field of the native API's two classes and of the OpenAI API's
two. A field that SGLang adds has none: `test_field_table` fails until somebody decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any

MEDIA = ("text", "image", "video")
DESCRIBE, LOOSE, SHORT = "describe", "loose", "short"
"""Questions: a long answer without repetition; one that penalties change; one that ends early."""

OMITTED = object()
"""As a value: the field is left out, so that the server's default is used."""


@dataclass(frozen=True)
class Seen:
    """What is known of a prompt before a value is chosen.

    Attributes
    ----------
    prompt_ids : list of int
        Tokens of the prompt.
    ids, beyond : list of int
        The plain greedy answer, and how it goes on where end tokens are ignored.
    messages : list of dict
        The prompt as chat messages.
    decode : callable
        Text of tokens, special ones included.
    """

    prompt_ids: list[int]
    ids: list[int]
    beyond: list[int]
    messages: list[dict[str, Any]]
    decode: Callable[[list[int]], str]


Value = Any
"""What is sent, or a `FromAnswer` that chooses it."""


@dataclass(frozen=True)
class FromAnswer:
    """A value that depends on the plain answer."""

    name: str
    choose: Callable[[Seen], Any]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Try:
    """One request that sends a field.

    Attributes
    ----------
    value : Value
        Of the field.
    beside : dict of str to Value
        Further fields, in the OpenAI API's names.
    prompt : str
        The question.
    media : tuple of str
        What the prompt may be about.
    keeps : bool
        The answer is to be that of the same request without the field (and without a temperature
        beside it), instead of another one.
    """

    value: Value
    beside: Mapping[str, Value] = field(default_factory=dict)
    prompt: str = DESCRIBE
    media: tuple[str, ...] = MEDIA
    keeps: bool = False


Tries = tuple[Try, ...]


@dataclass(frozen=True)
class Refused:
    """A value that gets a 400 whose message contains ``named``."""

    value: Value
    named: str
    beside: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Together:
    """A value that changes no token; one request of each API sends them all."""

    value: Value


class Reason(Enum):
    """Why a field has no case of its own."""

    EVERYWHERE = "every request here sends it or is shaped by it"
    PROMPT = "it is the prompt; requests here are about text, images and videos"
    INTERNAL = "SGLang computes it, a caller's value is overwritten or means nothing"
    DISAGGREGATION = "disaggregated prefill, decode or encoders: refused at start"
    LORA = "LoRA is refused at start"
    SESSION = "a conversation's bookkeeping: it needs a session that was opened before"
    CACHE = "identities for, or hints to, caches"
    REPORT = "what else is reported: the server's doing, not the answer"
    REASONING = "reasoning parsers, and templates that know a thinking mode"
    OTHER_MODELS = "models of other kinds read it: experts, audio, tiles, other families"
    SCORING = "scoring and embedding, which generate nothing"
    TENSORS = "it holds tensors, which HTTP does not carry"
    UNREAD = "SGLang 0.5.23 reads it nowhere for this request"


Decision = Tries | Refused | Together | Reason


def tries(*values: Value, **common: Any) -> Tries:
    """One `Try` a value; a `Try` among them stands for itself."""
    return tuple(value if isinstance(value, Try) else Try(value, **common) for value in values)


def tokens(*at: int) -> FromAnswer:
    """The answer's tokens at these indices."""
    name = f"tokens {', '.join(map(str, at))}"
    return FromAnswer(name, lambda seen: [seen.ids[index] for index in at])


def piece(at: int) -> FromAnswer:
    """Text of the answer's token at this index."""
    return FromAnswer(f"text of token {at}", lambda seen: seen.decode([seen.ids[at]]))


def across(at: int) -> FromAnswer:
    """Text that starts inside this token and ends inside the next."""
    name = f"text across tokens {at} and {at + 1}"
    return FromAnswer(name, lambda seen: seen.decode(seen.ids[at : at + 2])[1:-1])


def word_from(at: int) -> FromAnswer:
    """A regular expression: this token's text, then the rest of a word."""
    name = f"token {at} and the rest of a word"
    return FromAnswer(name, lambda seen: re.escape(seen.decode([seen.ids[at]])) + "[a-z]*")


def ending_with(at: int) -> FromAnswer:
    """A regular expression that this token's text matches only at the answer's end."""
    name = f"token {at} at the end"
    return FromAnswer(name, lambda seen: re.escape(seen.decode([seen.ids[at]])) + "$")


def each(*values: FromAnswer) -> FromAnswer:
    """A list of values."""
    name = f"[{'; '.join(map(str, values))}]"
    return FromAnswer(name, lambda seen: [value.choose(seen) for value in values])


def bias(*entries: tuple[int, float]) -> FromAnswer:
    """Biases of the answer's tokens at these indices."""
    name = f"biases {', '.join(f'{amount:+g} of token {at}' for at, amount in entries)}"
    return FromAnswer(name, lambda seen: {str(seen.ids[at]): amount for at, amount in entries})


def _text_after_the_end(seen: Seen) -> str:
    before = seen.decode(seen.ids[:-1])
    start = len(seen.ids)
    for end in range(start + 1, len(seen.beyond)):
        text = seen.decode(seen.beyond[start:end])
        if text.strip() and text not in before:
            return text
    raise AssertionError(f"nothing new after the end token: {seen.decode(seen.beyond)!r}")


def _token_after_the_end(seen: Seen) -> int:
    return next(token for token in seen.beyond[len(seen.ids) :] if token not in seen.ids)


@cache
def _ban() -> str:
    from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

    return str(DisallowedTokensLogitsProcessor.to_str())


AFTER_THE_END = FromAnswer("text that would follow the end token", _text_after_the_end)
TOKEN_AFTER_THE_END = FromAnswer("a token that would follow the end", _token_after_the_end)
PROMPT_IDS = FromAnswer("the prompt's tokens", lambda seen: seen.prompt_ids)
BAN = FromAnswer("SGLang's own ban of tokens", lambda seen: _ban())
BANNED = FromAnswer("tokens 0, 1, 2 to ban", lambda seen: {"token_ids": sorted(set(seen.ids[:3]))})
BEGUN = FromAnswer(
    "an answer already begun",
    lambda seen: [
        *seen.messages,
        {"role": "assistant", "content": seen.decode(seen.ids[:3])},
    ],
)


def resolve(value: Value, seen: Seen) -> Any:
    """What is sent for a value."""
    return value.choose(seen) if isinstance(value, FromAnswer) else value


SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["ring", "circle", "square", "cross"]},
        "moves": {"type": "boolean"},
    },
    "required": ["shape", "moves"],
    "additionalProperties": False,
}
REGEX = r"(It|They) [a-z ]{5,30}\."
OPEN_REGEX = r"It [a-z ,.]{5,300}"
"""May end soon, and need not."""
EBNF = 'root ::= ("It" | "They") " " word (" " word)* "."\nword ::= [a-z]+'
STRUCTURE = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<shape>",
        "content": {"type": "json_schema", "json_schema": SCHEMA},
        "end": "</shape>",
    },
}
JSON_SCHEMA_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True},
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
NAMED_TOOL = {"type": "function", "function": {"name": "look"}}
BY_SAMPLING = {"temperature": 1e-5}
"""Hot enough for the sampling path, cold enough that one token has all the probability: penalties
can bring logits within thousandths of one another."""
HOT = {"temperature": 1.0}

SAMPLING: dict[str, Decision] = {
    "temperature": tries(0.001, OMITTED, keeps=True),
    "top_p": tries(1e-6, beside=HOT, keeps=True),
    "top_k": tries(1, beside=HOT, keeps=True),
    "min_p": tries(1.0, beside=HOT, keeps=True),
    "frequency_penalty": tries(1.5, -1.0, Try(1.5, BY_SAMPLING, LOOSE), prompt=LOOSE),
    "presence_penalty": tries(1.5, -2.0, Try(1.5, BY_SAMPLING, LOOSE), prompt=LOOSE),
    "repetition_penalty": tries(1.3, 0.8, 1.05, Try(1.3, BY_SAMPLING, LOOSE), prompt=LOOSE),
    "n": tries(2),
    "stop": tries(
        piece(9),
        across(10),
        each(piece(10), piece(8)),
        Try(piece(9), {"max_tokens": 8}, keeps=True),
        Try(AFTER_THE_END, prompt=SHORT, keeps=True),
    ),
    "stop_token_ids": tries(
        tokens(9), tokens(10, 8), Try(each(TOKEN_AFTER_THE_END), prompt=SHORT, keeps=True)
    ),
    "stop_regex": tries(word_from(9), ending_with(8), each(word_from(10), word_from(8))),
    "no_stop_trim": tries(True, beside={"stop": piece(9)}),
    "ignore_eos": tries(True, prompt=SHORT),
    "skip_special_tokens": tries(False, beside={"ignore_eos": True}, prompt=SHORT),
    "logit_bias": tries(
        bias((0, -100.0), (1, -100.0), (2, -100.0)),
        Try(bias((3, 100.0)), {"max_tokens": 6}),
        Try(bias((-1, 16.0)), prompt=SHORT),
        Try(bias((-1, -100.0)), prompt=SHORT),
    ),
    "custom_params": tries(
        {"specvlm": {"retention": 0.1}},
        {"specvlm": {"retention": 1.0, "policy": "uniform"}},
        keeps=True,
    ),
    "watermark": Refused({"enabled": True, "key": "00" * 32}, "watermark"),
}
"""Fields that all three APIs name alike."""

LIMITS: Tries = tries(1, 2, 7)
AT_LEAST: Tries = tries(
    10,
    20,
    Try(20, {"stop_token_ids": tokens(-2)}, SHORT),
    Try(16, BY_SAMPLING, SHORT),
    prompt=SHORT,
)
GRAMMARS: dict[str, Decision] = {"regex": tries(REGEX), "ebnf": tries(EBNF)}
STREAM: Tries = tries(True, Try(True, {"stop": piece(9)}, keeps=True), keeps=True)
HIDDEN = Refused("last", "return_hidden_states")

NATIVE_SAMPLING: dict[str, Decision] = {
    **SAMPLING,
    **GRAMMARS,
    # The native API's own default is to sample.
    "temperature": tries(0.001, keeps=True),
    "max_new_tokens": tries(0, *LIMITS, Try(0, {"return_logprob": True})),
    "min_new_tokens": AT_LEAST,
    "json_schema": tries(json.dumps(SCHEMA)),
    "structural_tag": tries(json.dumps(STRUCTURE)),
    "spaces_between_special_tokens": tries(
        False, beside={"ignore_eos": True, "skip_special_tokens": False}, prompt=SHORT, keeps=True
    ),
    "stream_interval": tries(5, beside={"stream": True}, keeps=True),
    # Read under --enable-deterministic-inference only.
    "sampling_seed": tries(7, keeps=True),
    "beam_width": Refused(2, "Beam search"),
    "stop_strs": Reason.INTERNAL,
    "stop_regex_strs": Reason.INTERNAL,
    "stop_str_max_len": Reason.INTERNAL,
    "stop_regex_max_len": Reason.INTERNAL,
    "is_normalized": Reason.INTERNAL,
    "ebnf_full_assistant": Reason.INTERNAL,
}

VIDEO_CONFIG: Tries = tries({"nframes": 2}, {"fps": 6}, media=("video",))
PROCESSOR_KWARGS: Tries = tries({"nframes": 8}, {"max_pixels": 3136}, media=("video",))

LOGPROB = {"return_logprob": True}
TOP = {"return_logprob": True, "top_logprobs_num": 3}

NATIVE: dict[str, Decision] = {
    "rid": Reason.REPORT,
    "session_id": Together("conversation-1"),
    "text": Reason.PROMPT,
    "input_ids": Reason.PROMPT,
    "input_embeds": Reason.PROMPT,
    "image_data": Reason.PROMPT,
    "video_data": Reason.PROMPT,
    "audio_data": Reason.OTHER_MODELS,
    "mm_hashes": Reason.CACHE,
    "mm_content_hashes": Reason.CACHE,
    "use_audio_in_video": Reason.OTHER_MODELS,
    "video_config": VIDEO_CONFIG,
    "sampling_params": Reason.EVERYWHERE,
    "watermark": Refused({"enabled": True, "key": "00" * 32}, "watermark"),
    "return_logprob": tries(True),
    "logprob_start_len": tries(0, 5, beside=LOGPROB),
    "top_logprobs_num": tries(3, beside=LOGPROB),
    "token_ids_logprob": tries(tokens(0, 5), beside=LOGPROB),
    "return_text_in_logprobs": tries(True, beside=TOP),
    "return_sampling_mask": Refused(True, "return_sampling_mask", {"top_k": 1}),
    "sampling_logprobs_mode": Refused("selected", "sampling_logprobs_mode"),
    "return_flat_raw_top_logprobs": tries(True, beside={**TOP, "logprob_start_len": 0}),
    "return_flat_raw_output_top_logprobs": tries(True, beside=TOP),
    "return_flat_raw_top_logprobs_b64": tries(
        True, beside={**TOP, "return_flat_raw_output_top_logprobs": True}
    ),
    "stream": tries(*STREAM, Try(True, TOP, keeps=True)),
    "log_metrics": Together(False),
    "return_hidden_states": Refused(True, "return_hidden_states"),
    "return_routed_experts": Reason.OTHER_MODELS,
    "routed_experts_start_len": Reason.OTHER_MODELS,
    "return_indexer_topk": Reason.OTHER_MODELS,
    "modalities": Reason.PROMPT,
    "session_params": Reason.SESSION,
    "lora_path": Reason.LORA,
    "lora_id": Reason.LORA,
    "custom_logit_processor": tries(BAN, beside={"custom_params": BANNED}),
    "positional_embed_overrides": Reason.TENSORS,
    "bootstrap_host": Reason.DISAGGREGATION,
    "bootstrap_port": Reason.DISAGGREGATION,
    "bootstrap_room": Reason.DISAGGREGATION,
    "bootstrap_pair_key": Reason.DISAGGREGATION,
    "decode_tp_size": Reason.DISAGGREGATION,
    "routed_dp_rank": Together(0),
    "data_parallel_rank": Together(0),
    "disagg_prefill_dp_rank": Reason.DISAGGREGATION,
    "routing_key": Together("key"),
    "conversation_id": Together("conversation-1"),
    "http_worker_ipc": Reason.INTERNAL,
    "background": Together(False),
    "require_reasoning": Reason.REASONING,
    "max_thinking_tokens": Refused(8, "max_thinking_tokens"),
    "priority": Together(1),
    "extra_key": Together("tenant"),
    "no_logs": Together(True),
    "custom_labels": Together({"team": "a"}),
    "return_bytes": Together(False),
    "return_entropy": Reason.UNREAD,
    "return_prompt_token_ids": tries(True),
    "external_trace_header": Reason.REPORT,
    "received_time": Reason.REPORT,
    "need_wait_for_mm_inputs": Reason.DISAGGREGATION,
    "num_items_assigned": Reason.DISAGGREGATION,
    "encoder_urls": Reason.DISAGGREGATION,
    "max_dynamic_patch": Reason.OTHER_MODELS,
    "min_dynamic_patch": Reason.OTHER_MODELS,
    "image_max_dynamic_patch": Reason.OTHER_MODELS,
    "video_max_dynamic_patch": Reason.OTHER_MODELS,
    "images_config": Reason.OTHER_MODELS,
    "mm_processor_kwargs": PROCESSOR_KWARGS,
    "multi_item_delimiter_indices": Reason.SCORING,
    "token_indices_to_pool": Reason.SCORING,
    "cache_salt": Together("salt"),
    "kv_hints": Reason.CACHE,
}

OPENAI: dict[str, Decision] = {
    **SAMPLING,
    **GRAMMARS,
    "model": Reason.EVERYWHERE,
    "max_tokens": LIMITS,
    "min_tokens": AT_LEAST,
    "seed": tries(7, keeps=True),
    "response_format": tries(JSON_SCHEMA_FORMAT, {"type": "json_object"}, STRUCTURE),
    "stream": STREAM,
    "stream_options": tries({"include_usage": True}, beside={"stream": True}),
    "user": Together("somebody"),
    "bootstrap_host": Reason.DISAGGREGATION,
    "bootstrap_port": Reason.DISAGGREGATION,
    "bootstrap_room": Reason.DISAGGREGATION,
    "routed_dp_rank": Together(0),
    "disagg_prefill_dp_rank": Reason.DISAGGREGATION,
    "data_parallel_rank": Together(0),
    "return_hidden_states": HIDDEN,
    "return_routed_experts": Reason.OTHER_MODELS,
    "routed_experts_start_len": Reason.OTHER_MODELS,
    "return_cached_tokens_details": Reason.REPORT,
    "return_spec_tokens_details": Reason.EVERYWHERE,
    "lora_path": Reason.LORA,
    "session_id": Together("conversation-1"),
    "session_params": Reason.UNREAD,
    "images_config": Reason.OTHER_MODELS,
    "mm_processor_kwargs": Reason.OTHER_MODELS,
    "custom_logit_processor": tries(BAN, beside={"custom_params": BANNED}),
    "rid": Reason.REPORT,
    "extra_key": Together("tenant"),
    "cache_salt": Together("salt"),
    "priority": Together(1),
}

COMPLETIONS: dict[str, Decision] = {
    **OPENAI,
    # This API takes no defaults from the checkpoint: left out, it samples without a penalty.
    "temperature": tries(0.001, keeps=True),
    "repetition_penalty": tries(1.3, 0.8, Try(OMITTED, prompt=LOOSE, keeps=True), prompt=LOOSE),
    "prompt": Reason.PROMPT,
    "best_of": Reason.UNREAD,
    "suffix": Reason.UNREAD,
    "echo": tries(True, Try(True, {"logprobs": 2})),
    "logprobs": tries(0, 3),
    "return_token_ids": Reason.EVERYWHERE,
    "json_schema": tries(json.dumps(SCHEMA)),
    "custom_labels": Reason.UNREAD,
}

CHAT: dict[str, Decision] = {
    **OPENAI,
    # The checkpoint's generation_config.json is greedy and has a repetition penalty of 1.05.
    "repetition_penalty": tries(1.3, 0.8, OMITTED, Try(1.3, BY_SAMPLING, LOOSE), prompt=LOOSE),
    "messages": Reason.PROMPT,
    "logprobs": tries(True),
    "top_logprobs": tries(3, beside={"logprobs": True}),
    "max_completion_tokens": tries(7),
    "tools": tries([TOOL], beside={"tool_choice": "required"}),
    "tool_choice": tries("required", NAMED_TOOL, beside={"tools": [TOOL]}),
    # One call fills the answer.
    "parallel_tool_calls": tries(
        False, beside={"tools": [TOOL], "tool_choice": "required"}, keeps=True
    ),
    "return_prompt_token_ids": tries(True),
    "return_token_ids": tries(True),
    "return_meta_info": Reason.EVERYWHERE,
    "return_input_ids_in_sglext": Reason.EVERYWHERE,
    "return_output_ids_in_sglext": Reason.EVERYWHERE,
    "return_sampling_mask": Refused(True, "return_sampling_mask", {"top_k": 1}),
    "sampling_logprobs_mode": Refused("selected", "sampling_logprobs_mode"),
    "return_flat_raw_output_top_logprobs": tries(
        True, beside={"logprobs": True, "top_logprobs": 3}
    ),
    "return_flat_raw_top_logprobs_b64": tries(
        False,
        beside={
            "logprobs": True,
            "top_logprobs": 3,
            "return_flat_raw_output_top_logprobs": True,
        },
    ),
    "reasoning_effort": Reason.REASONING,
    "thinking": Reason.REASONING,
    "task": Reason.OTHER_MODELS,
    "continue_final_message": tries(
        True,
        beside={"messages": BEGUN},
    ),
    "separate_reasoning": Reason.REASONING,
    "stream_reasoning": Reason.REASONING,
    "chat_template_kwargs": tries({"spaces_between_special_tokens": False}, keeps=True),
    "max_dynamic_patch": Reason.OTHER_MODELS,
    "min_dynamic_patch": Reason.OTHER_MODELS,
    "use_audio_in_video": Reason.OTHER_MODELS,
    "video_config": VIDEO_CONFIG,
    "mm_processor_kwargs": PROCESSOR_KWARGS,
    "input_ids": tries(PROMPT_IDS, media=("text",), keeps=True),
}

FIELDS: dict[str, dict[str, Decision]] = {
    "SamplingParams": NATIVE_SAMPLING,
    "GenerateReqInput": NATIVE,
    "CompletionRequest": COMPLETIONS,
    "ChatCompletionRequest": CHAT,
}
"""Decisions by class and field."""

PENALTIES = {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.5}
BOOSTS = {"repetition_penalty": 0.8, "frequency_penalty": -1.0, "presence_penalty": -1.0}

COMBINATIONS: dict[str, tuple[dict[str, Value], str]] = {
    "all penalties": (PENALTIES, LOOSE),
    "all boosts": (BOOSTS, LOOSE),
    "all penalties, by sampling": ({**PENALTIES, **BY_SAMPLING}, LOOSE),
    "all penalties and a regex": ({**PENALTIES, "regex": REGEX}, LOOSE),
    "all boosts and a grammar": ({**BOOSTS, "ebnf": EBNF}, LOOSE),
    "a penalty and a stop string": ({"frequency_penalty": 1.5, "stop": piece(9)}, DESCRIBE),
    "a penalty, a bias and a minimum": (
        {"presence_penalty": 1.5, "logit_bias": bias((0, -100.0)), "min_tokens": 20},
        SHORT,
    ),
    "a minimum and a stop string": ({"min_tokens": 16, "stop": AFTER_THE_END}, SHORT),
    "a minimum and a regex": ({"min_tokens": 16, "regex": OPEN_REGEX}, SHORT),
    "a stop token before a stop string": (
        {"stop_token_ids": tokens(8), "stop": piece(10)},
        DESCRIBE,
    ),
    "a stop expression before a stop string": (
        {"stop_regex": word_from(8), "stop": piece(10)},
        DESCRIBE,
    ),
    "two answers under penalties": ({**PENALTIES, "n": 2}, LOOSE),
    "penalties, streamed": ({**PENALTIES, "stream": True}, LOOSE),
    "a bias and a grammar": ({"logit_bias": bias((0, -100.0)), "regex": REGEX}, DESCRIBE),
}
"""Fields that meet in one request, in the OpenAI API's names, and the question."""

LOGPROB_COMBINATIONS: dict[str, tuple[dict[str, Value], str]] = {
    "penalties": (PENALTIES, LOOSE),
    "a minimum": ({"min_tokens": 20}, SHORT),
    "a bias": ({"logit_bias": bias((0, -100.0), (1, 4.0))}, DESCRIBE),
    "a regex": ({"regex": REGEX}, DESCRIBE),
    "a penalty and a stop string": ({"frequency_penalty": 1.5, "stop": piece(9)}, LOOSE),
}
"""Fields that log probabilities are asked beside, and the question."""

DISTRIBUTION = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_new_tokens",
    "logit_bias",
)
"""Fields of `SamplingParams` that change what is drawn: `test_specvlm_sampling` counts tokens."""
