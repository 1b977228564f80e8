"""Whether a model can draft for a target, or for itself: checked before weights are loaded."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from specvlm_sglang.models import ModelFamily, family_of
from specvlm_sglang.models.configs import context_length, language_config, read_config
from specvlm_sglang.models.llava_onevision import LMMS_LAB_ARCHITECTURE, converted_checkpoint

# What the prompt's visual tokens depend on: the processor of the target lays them out for both.
_GEOMETRY = (
    "patch_size",
    "image_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "tokens_per_second",
)
_TILING = (
    "downsample_ratio",
    "force_image_size",
    "image_grid_pinpoints",
    "vision_aspect_ratio",
    "vision_feature_select_strategy",
)
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@lru_cache(maxsize=4)
def check_pair(
    target: str,
    draft: str,
    *,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    positions: str | None = None,
    tp_size: int = 1,
    served_length: int | None = None,
) -> None:
    """Raise unless ``draft`` reads the same tokens and the same video layout as ``target``.

    Parameters
    ----------
    target, draft
        Model paths or hub names.
    tokenizer
        The target's tokenizer where it is not in ``target`` (``--tokenizer-path``).
    trust_remote_code
        As SGLang's ``--trust-remote-code``.
    positions
        ``--specvlm-positions``.
    tp_size
        ``--tp-size``: ranks that share the draft's heads.
    served_length
        ``--context-length``; None: the target's own.

    Raises
    ------
    ValueError
        A family that is not served, two families, another vision geometry, another vocabulary,
        positions that the family does not have, heads that the ranks cannot share, or a draft that
        reads fewer tokens than are served; the message names the difference and the models.
    """
    families = [_family_at(path) for path in (target, draft)]
    configs = [read_config(path, trust_remote_code=trust_remote_code) for path in (target, draft)]
    for family, config, path in zip(families, configs, (target, draft), strict=True):
        reason = family.refusal(config)
        if reason is not None:
            raise ValueError(f"SPECVLM does not serve {path}: {reason}")
    if families[0].name != families[1].name:
        raise ValueError(
            f"the draft {draft} is a {families[1].name} model, the target {target} a "
            f"{families[0].name} model: --speculative-draft-model-path must name one of the "
            "target's family"
        )
    if positions == "contiguous" and families[0].mrope:
        raise ValueError(
            f"--specvlm-positions=contiguous does not work with {families[0].name}: its M-RoPE "
            "positions say where and when a token is, so kept tokens keep theirs"
        )
    _check_heads(configs[1], draft, tp_size)
    _check_length(configs[1], draft, served_length or context_length(configs[0]))
    for name in _GEOMETRY:
        towers = [getattr(config, "vision_config", None) for config in configs]
        _same(name, towers[0], towers[1], target, draft)
    for name in (*_TILING, *_TOKEN_IDS):
        _same(name, configs[0], configs[1], target, draft)
    _check_vocabulary(tokenizer or target, draft, trust_remote_code)


def check_self(
    target: str,
    *,
    trust_remote_code: bool = False,
    positions: str | None = None,
    layers: int | None = None,
) -> None:
    """Raise unless ``target`` can draft for itself.

    Parameters
    ----------
    target, trust_remote_code, positions
        As `check_pair` takes them.
    layers
        How many of its layers draft (``--specvlm-self-layers``); None: all.

    Raises
    ------
    ValueError
        A family that is not served, positions that its keys do not have, or more layers than some
        of its own; the message names it.
    """
    family = _family_at(target)
    config = read_config(target, trust_remote_code=trust_remote_code)
    reason = family.refusal(config)
    if reason is not None:
        raise ValueError(f"SPECVLM does not serve {target}: {reason}")
    if positions == "contiguous":
        raise ValueError(
            "--specvlm-positions=contiguous does not work with --specvlm-draft self: the target's "
            "keys have the positions of the full prompt"
        )
    whole = language_config(config).num_hidden_layers
    if layers is not None and layers >= whole:
        raise ValueError(
            f"--specvlm-self-layers={layers} must be 1 to {whole - 1}: {target} has {whole} "
            "layers; leave it out to draft with all of them"
        )


def _check_heads(config: Any, draft: str, tp_size: int) -> None:
    """Say what SGLang only asserts, in each rank, once the draft is being built."""
    towers = {
        "attention heads": getattr(language_config(config), "num_attention_heads", None),
        "vision heads": getattr(getattr(config, "vision_config", None), "num_heads", None),
    }
    for name, heads in towers.items():
        if heads is not None and heads % tp_size:
            raise ValueError(
                f"--tp-size={tp_size} does not divide the {heads} {name} of the draft {draft}: "
                "the draft is split over the ranks like the target"
            )


def _check_length(config: Any, draft: str, served: int) -> None:
    """Say what SGLang says of a target and a user, once both models are being built."""
    length = context_length(config)
    is_allowed = any(
        os.environ.get(name, "").lower() in ("1", "true")
        for name in ("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "SGLANG_IS_IN_CI")
    )
    if length < served and not is_allowed:
        raise ValueError(
            f"the draft {draft} reads {length} tokens, and {served} are served: "
            f"--context-length={length} serves what both read"
        )


def _family_at(path: str) -> ModelFamily:
    """Read the family off the file alone: transformers knows no configuration of some models."""
    from transformers import PreTrainedConfig

    content, _ = PreTrainedConfig.get_config_dict(path)
    names = content.get("architectures") or []
    if LMMS_LAB_ARCHITECTURE in names:
        raise ValueError(
            f"SPECVLM does not serve {path}: {LMMS_LAB_ARCHITECTURE} is lmms-lab's own format. Use "
            f"its Hugging Face form {converted_checkpoint(path, content.get('hidden_size'))}"
        )
    return family_of(names)


def _same(name: str, target_config: Any, draft_config: Any, target: str, draft: str) -> None:
    wanted, found = (getattr(config, name, None) for config in (target_config, draft_config))
    if wanted != found:
        raise ValueError(
            f"{name} is {wanted} in the target {target} and {found} in the draft {draft}: they "
            "would lay out a video differently"
        )


def _check_vocabulary(target: str, draft: str, trust_remote_code: bool) -> None:
    from transformers import AutoTokenizer

    vocabularies = []
    for path in (target, draft):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        vocabularies.append({number: token for token, number in tokenizer.get_vocab().items()})
    if vocabularies[0] == vocabularies[1]:
        return
    number = min(
        number
        for number in vocabularies[0].keys() | vocabularies[1].keys()
        if vocabularies[0].get(number) != vocabularies[1].get(number)
    )
    raise ValueError(
        f"token {number} is {vocabularies[0].get(number)!r} for the target {target} and "
        f"{vocabularies[1].get(number)!r} for the draft {draft}: a draft must share the target's "
        "tokenizer"
    )
