"""Placeholders that do not fit the files, and media that come ready-made.

A text may hold the words that stand for pictures, and a program may send embeddings in the place
of a file. Where SGLang waits for ever, or fails in the middle of a forward pass, the request gets
a 400 here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.host.token_inputs import EMPTY

_BASE = "sglang.srt.multimodal.processors.base_processor"
# SGLang's own word for an image in a prompt of /generate; to everybody else it is a word.
_WORD = "<image>"


def install_in_tokenizer() -> None:
    """Check media in this process, the tokenizer manager's; idempotent."""
    contract.require("media inputs")
    replace_function(_BASE, "BaseMultimodalProcessor.load_mm_data", _with_plain_words)
    replace_function(_BASE, "BaseMultimodalProcessor.process_and_combine_mm_data", _checked)


def without_word(tokens: Any, prompt: Any, images: Any) -> Any:
    """``tokens`` such that ``<image>`` is text where it cannot stand for an image.

    Parameters
    ----------
    tokens
        SGLang's ``MultimodalSpecialTokens``.
    prompt
        A request's text, or its token ids.
    images
        Its images; empty or None without any.
    """
    pattern = tokens.image_token_regex.pattern if tokens.image_token_regex else ""
    if not isinstance(prompt, str) or _WORD not in prompt or not pattern.endswith(f"|{_WORD}"):
        return tokens
    own = re.compile(pattern.removesuffix(f"|{_WORD}"))
    if images and not own.search(prompt):
        return tokens
    return dataclasses.replace(tokens, image_token_regex=own, combined_regex=None)


def _with_plain_words(original: Callable[..., Any]) -> Callable[..., Any]:
    async def load_mm_data(
        self: Any, prompt: Any, multimodal_tokens: Any, image_data: Any = None, **kwargs: Any
    ) -> Any:
        if not prompt:
            raise ValueError(EMPTY)
        tokens = without_word(multimodal_tokens, prompt, image_data)
        try:
            return await original(self, prompt, tokens, image_data=image_data, **kwargs)
        except ValueError as error:
            if "No data iterator found" not in str(error):
                raise
            raise ValueError(
                "the prompt has a placeholder of an image, a video or a sound, and no such file "
                "was sent with it"
            ) from error

    return load_mm_data


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_and_combine_mm_data(
        self: Any, base_output: Any, mm_tokens: Any, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            items, input_ids, output = original(self, base_output, mm_tokens, *args, **kwargs)
        except StopIteration as error:
            # No future can hold it: whoever waits for the result would wait for ever.
            raise ValueError(
                f"the prompt has more placeholders than files ({len(base_output.images)} images, "
                f"{len(base_output.videos)} videos): each {_names(mm_tokens)} counts, in a text "
                "too, and those of token ids must not be repeated for each token of a picture"
            ) from error
        for item in items:
            if item.is_precomputed_embedding():
                use_embeddings(item, _hidden_size(self.hf_config))
                check_grid(item, getattr(self, "_spatial_merge_size", None))
            elif item.format is not None and item.format.name == "PROCESSOR_OUTPUT":
                check_pixels(item, self)
        return items, input_ids, output

    return process_and_combine_mm_data


def _names(tokens: Any) -> str:
    words = [tokens.image_token, tokens.video_token]
    found = [match for word in words for match in re.findall(r"<\|?\w+_pad\|?>", word or "")]
    return " and ".join(found or [word for word in words if word])


def _hidden_size(config: Any) -> int:
    return int(getattr(config, "text_config", config).hidden_size)


def _placeholders(item: Any) -> int:
    return sum(last - first + 1 for first, last in item.offsets or ())


def use_embeddings(item: Any, hidden_size: int) -> None:
    """Put an item's ready-made embeddings where SGLang looks for them, once they are checked.

    SGLang hands an item's ``feature`` to the model's vision encoder.

    Raises
    ------
    ValueError
        They are no ``[tokens, hidden]`` tensor with a row for each of the prompt's placeholders.
    """
    feature = item.feature
    where = f"{item.modality.name.lower()}_data"
    if not isinstance(feature, torch.Tensor) or not feature.is_floating_point():
        raise ValueError(
            f"{where}: 'feature' of a precomputed_embedding must be a tensor of floats, which only "
            "a program can send; over HTTP send the file"
        )
    if feature.ndim not in (2, 3) or feature.shape[-1] != hidden_size:
        raise ValueError(
            f"{where}: 'feature' is {list(feature.shape)}; precomputed embeddings are "
            f"[tokens, {hidden_size}]"
        )
    feature = feature.reshape(-1, hidden_size)
    if len(feature) != _placeholders(item):
        raise ValueError(
            f"{where}: {len(feature)} precomputed embeddings, and the prompt has "
            f"{_placeholders(item)} placeholders for them"
        )
    item.precomputed_embeddings, item.feature = feature, None


def check_grid(item: Any, merge: int | None) -> None:
    """Raise ``ValueError`` unless a model with M-RoPE can tell where each embedding is.

    Parameters
    ----------
    item
        As `use_embeddings` leaves it.
    merge
        Patches of a token's side; None for models that number tokens alone.
    """
    modality = item.modality.name.lower()
    if merge is None or modality not in ("image", "video"):
        return
    name = f"{modality}_grid_thw"
    grid = item.model_specific_data.get(name)
    try:
        tokens = int(torch.as_tensor(grid).reshape(-1, 3).prod(dim=-1).sum()) // merge**2
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{modality}_data: precomputed embeddings need {name}, [files, 3] patches over time, "
            "height and width"
        ) from None
    if tokens != len(item.precomputed_embeddings):
        raise ValueError(
            f"{modality}_data: {name} means {tokens} tokens, and there are "
            f"{len(item.precomputed_embeddings)} embeddings"
        )


def check_pixels(item: Any, processor: Any) -> None:
    """Raise ``ValueError`` unless a processor's output fits its own grid and the prompt."""
    modality = item.modality.name.lower()
    where, grid = f"{modality}_data", item.model_specific_data.get(f"{modality}_grid_thw")
    merge = getattr(processor, "_spatial_merge_size", None)
    if merge is None or modality not in ("image", "video"):
        return
    if not isinstance(item.feature, torch.Tensor) or not isinstance(grid, torch.Tensor):
        raise ValueError(
            f"{where}: a processor_output needs its pixels and {modality}_grid_thw as tensors, "
            "which only a program can send; over HTTP send the file"
        )
    if item.feature.ndim != 2 or grid.ndim != 2 or grid.shape[-1] != 3:
        raise ValueError(
            f"{where}: pixels are [patches, values] and {modality}_grid_thw is [files, 3], not "
            f"{list(item.feature.shape)} and {list(grid.shape)}"
        )
    vision = processor.hf_config.vision_config
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    if item.feature.shape[-1] != values:
        raise ValueError(f"{where}: a patch has {item.feature.shape[-1]} values, not {values}")
    patches = int(grid.prod(dim=-1).sum())
    tokens = patches // merge**2
    if len(item.feature) != patches or tokens != _placeholders(item):
        raise ValueError(
            f"{where}: {modality}_grid_thw means {patches} patches and {tokens} tokens; there are "
            f"{len(item.feature)} patches, and {_placeholders(item)} placeholders in the prompt"
        )
