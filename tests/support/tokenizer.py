"""A byte-level BPE tokenizer in Qwen's form, trained on the spot."""

from __future__ import annotations

import itertools
import json
import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = """\
{%- set default_system = 'You are a helpful assistant.' -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for content in message['content'] -%}
{%- if content['type'] == 'image' or 'image' in content or 'image_url' in content -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif content['type'] == 'video' or 'video' in content -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in content -%}
{{- content['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_SIZES = ("small", "large", "tiny", "wide", "bright", "dark")
_COLOURS = ("red", "green", "blue", "yellow", "white", "purple", "orange")
_SHAPES = ("circle", "square", "triangle", "bar", "ring", "cross")
_VERBS = ("moves", "turns", "falls", "grows", "stops", "crosses", "follows")
_PLACES = ("to the left", "to the right", "behind the wall", "over the line", "at the end")
_QUESTIONS = (
    "You are a helpful assistant.",
    "Describe this video.",
    "What happens in the image?",
    "How many shapes are there, and which colour is the first one?",
    "system user assistant",
)


def _corpus() -> list[str]:
    scenes = itertools.product(_SIZES, _COLOURS, _SHAPES, _VERBS, _PLACES)
    sentences = [
        f"Then the {size} {colour} {shape} {verb} {place}, and the next frame shows it again."
        for size, colour, shape, verb, place in scenes
    ]
    return sentences + [question for question in _QUESTIONS for _ in range(50)]


def build_tokenizer(text_tokens: int) -> Qwen2Tokenizer:
    """Train a tokenizer of ``text_tokens`` byte-level BPE tokens plus Qwen's special tokens.

    Parameters
    ----------
    text_tokens : int
        Size of the vocabulary without special tokens; at least 256, one for each byte.

    Returns
    -------
    Qwen2Tokenizer
        Its length is ``text_tokens + len(SPECIAL_TOKENS)``; the special tokens come last.

    Raises
    ------
    ValueError
        If ``text_tokens`` is below 256 or above what the corpus yields.
    """
    if text_tokens < 256:
        raise ValueError(f"text_tokens must be at least 256, got {text_tokens}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=text_tokens,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if bpe.get_vocab_size() != text_tokens:
        raise ValueError(
            f"text_tokens must be at most {bpe.get_vocab_size()}, what the corpus yields, "
            f"got {text_tokens}"
        )
    model = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
    )


def speakable_ids(tokenizer: Qwen2Tokenizer) -> list[int]:
    """Ids of the tokens that decode to printable ASCII: any sequence of them is valid text."""
    allowed = set(string.ascii_letters + string.digits + string.punctuation + " ")
    special = set(tokenizer.all_special_ids)
    return [
        token
        for token in range(len(tokenizer))
        if token not in special and set(tokenizer.decode([token])) <= allowed
    ]
