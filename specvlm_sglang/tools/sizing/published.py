"""Dimensions of published checkpoints, by name."""

from __future__ import annotations

from dataclasses import replace

from specvlm_sglang.models.published import find_published
from specvlm_sglang.tools.sizing.dimensions import ModelDimensions, VisionDimensions


def _qwen2_5_tower(out_hidden: int, intermediate: int) -> VisionDimensions:
    # vision_config of Qwen/Qwen2.5-VL-*-Instruct; window_size 112 px is 8 x 8 patches, and
    # fullatt_block_indexes has 4 entries. 392 tokens (784 x 392 px) for two frames is this
    # project's choice: 128 frames are then 25k video tokens, as in the published tables.
    return VisionDimensions(
        depth=32,
        hidden=1280,
        intermediate=intermediate,
        gated_mlp=True,
        patch=14,
        temporal_patch=2,
        spatial_merge=2,
        projector_hidden=4 * 1280,
        out_hidden=out_hidden,
        patches_per_grid=4 * 392,
        tokens_per_grid=392,
        full_attention_blocks=4,
        window_patches=64,
    )


def _qwen2_tower(out_hidden: int) -> VisionDimensions:
    # vision_config of Qwen/Qwen2-VL-*-Instruct: the same widths, a plain MLP, no windows.
    tower = _qwen2_5_tower(out_hidden, 5120)
    return replace(tower, gated_mlp=False, full_attention_blocks=32, window_patches=4 * 392)


def _qwen3_tower(out_hidden: int, *, large: bool) -> VisionDimensions:
    # vision_config of Qwen/Qwen3-VL-*: patches of 16, features of three blocks besides the last.
    depth, hidden, intermediate = (27, 1152, 4304) if large else (24, 1024, 4096)
    return VisionDimensions(
        depth=depth,
        hidden=hidden,
        intermediate=intermediate,
        gated_mlp=False,
        patch=16,
        temporal_patch=2,
        spatial_merge=2,
        projector_hidden=4 * hidden,
        out_hidden=out_hidden,
        patches_per_grid=4 * 392,
        tokens_per_grid=392,
        full_attention_blocks=depth,
        window_patches=4 * 392,
        projectors=4,
    )


def _siglip_tower(out_hidden: int) -> VisionDimensions:
    # google/siglip-so400m-patch14-384 without its last block; 27 x 27 patches are projected and
    # then pooled to 14 x 14 tokens for each frame of a video.
    return VisionDimensions(
        depth=26,
        hidden=1152,
        intermediate=4304,
        gated_mlp=False,
        patch=14,
        temporal_patch=1,
        spatial_merge=1,
        projector_hidden=out_hidden,
        out_hidden=out_hidden,
        patches_per_grid=27 * 27,
        tokens_per_grid=14 * 14,
        full_attention_blocks=26,
        window_patches=27 * 27,
    )


def _intern_tower(out_hidden: int, *, large: bool = False) -> VisionDimensions:
    # OpenGVLab/InternViT-300M-448px-V2_5 and InternViT-6B-448px-V2_5: a tile is 256 tokens.
    depth, hidden, intermediate = (45, 3200, 12800) if large else (24, 1024, 4096)
    return VisionDimensions(
        depth=depth,
        hidden=hidden,
        intermediate=intermediate,
        gated_mlp=False,
        patch=14,
        temporal_patch=1,
        spatial_merge=2,
        projector_hidden=out_hidden,
        out_hidden=out_hidden,
        patches_per_grid=32 * 32,
        tokens_per_grid=16 * 16,
        full_attention_blocks=depth,
        window_patches=32 * 32,
    )


# Sources: config.json of the checkpoints. Language models, as (hidden, layers, query heads, KV
# heads, head dimension, MLP):
_QWEN2_0_5B = (896, 24, 14, 2, 64, 4864)
_QWEN2_1_5B = (1536, 28, 12, 2, 128, 8960)
_QWEN2_7B = (3584, 28, 28, 4, 128, 18944)
_QWEN2_72B = (8192, 80, 64, 8, 128, 29568)
_QWEN2_5_3B = (2048, 36, 16, 2, 128, 11008)
_QWEN2_5_14B = (5120, 48, 40, 8, 128, 13824)
_QWEN2_5_32B = (5120, 64, 40, 8, 128, 27648)
_QWEN3_0_6B = (1024, 28, 16, 8, 128, 3072)
_QWEN3_1_7B = (2048, 28, 16, 8, 128, 6144)
_QWEN3_4B = (2560, 36, 32, 8, 128, 9728)
_QWEN3_8B = (4096, 36, 32, 8, 128, 12288)
_QWEN3_14B = (5120, 40, 40, 8, 128, 17408)
_QWEN3_32B = (5120, 64, 64, 8, 128, 25600)
_QWEN3_30B_A3B = (2048, 48, 32, 4, 128, 768)
_QWEN3_235B_A22B = (4096, 94, 64, 4, 128, 1536)
_EXPERTS = (128, 8)
# Rows of the embedding table. The llava-hf conversions pad it a little.
_SMALL, _LARGE, _INTERN = 151936, 152064, 151674

_Decoder = tuple[int, int, int, int, int, int]


def _model(
    name: str,
    decoder: _Decoder,
    vocab: int,
    tower: VisionDimensions,
    *,
    tied: bool = False,
    experts: tuple[int, int] = (1, 1),
) -> ModelDimensions:
    model = ModelDimensions(name, *decoder, vocab, tied, tower)
    return replace(model, experts=experts[0], experts_per_token=experts[1])


def _qwen3_vl(
    size: str, decoder: _Decoder, *, large: bool = True, experts: tuple[int, int] = (1, 1)
) -> ModelDimensions:
    tower = _qwen3_tower(decoder[0], large=large)
    return _model(f"qwen3-vl-{size}", decoder, _SMALL, tower, tied=not large, experts=experts)


def _intern(
    name: str,
    decoder: _Decoder,
    vocab: int,
    *,
    large: bool = False,
    experts: tuple[int, int] = (1, 1),
) -> ModelDimensions:
    return _model(name, decoder, vocab, _intern_tower(decoder[0], large=large), experts=experts)


_PUBLISHED = (
    # The 72B AWQ checkpoint pads its MLP to 29696; the original has 29568.
    _model("qwen2.5-vl-3b", _QWEN2_5_3B, _SMALL, _qwen2_5_tower(2048, 3420), tied=True),
    _model("qwen2.5-vl-7b", _QWEN2_7B, _LARGE, _qwen2_5_tower(3584, 3420)),
    _model("qwen2.5-vl-32b", _QWEN2_5_32B, _LARGE, _qwen2_5_tower(5120, 3456)),
    _model("qwen2.5-vl-72b", _QWEN2_72B, _LARGE, _qwen2_5_tower(8192, 3456)),
    _model("qwen2-vl-2b", _QWEN2_1_5B, _SMALL, _qwen2_tower(1536), tied=True),
    _model("qwen2-vl-7b", _QWEN2_7B, _LARGE, _qwen2_tower(3584)),
    _model("qwen2-vl-72b", _QWEN2_72B, _LARGE, _qwen2_tower(8192)),
    _model("qvq-72b", _QWEN2_72B, _LARGE, _qwen2_tower(8192)),
    _qwen3_vl("2b", _QWEN3_1_7B, large=False),
    _qwen3_vl("4b", _QWEN3_4B, large=False),
    _qwen3_vl("8b", _QWEN3_8B),
    _qwen3_vl("32b", _QWEN3_32B),
    _qwen3_vl("30b-a3b", _QWEN3_30B_A3B, experts=_EXPERTS),
    _qwen3_vl("235b-a22b", _QWEN3_235B_A22B, experts=_EXPERTS),
    _intern("internvl3-1b", _QWEN2_0_5B, _INTERN),
    _intern("internvl3-2b", _QWEN2_1_5B, _INTERN),
    _intern("internvl3-8b", _QWEN2_7B, _INTERN),
    _intern("internvl3-14b", _QWEN2_5_14B, _INTERN),
    _intern("internvl3-38b", _QWEN2_5_32B, _INTERN, large=True),
    _intern("internvl3-78b", _QWEN2_72B, _INTERN, large=True),
    _intern("internvl3_5-1b", _QWEN3_0_6B, _SMALL),
    _intern("internvl3_5-2b", _QWEN3_1_7B, _SMALL),
    _intern("internvl3_5-4b", _QWEN3_4B, _SMALL),
    _intern("internvl3_5-8b", _QWEN3_8B, _SMALL),
    _intern("internvl3_5-14b", _QWEN3_14B, _SMALL),
    _intern("internvl3_5-38b", _QWEN3_32B, _SMALL, large=True),
    _intern("internvl3_5-30b-a3b", _QWEN3_30B_A3B, _SMALL, experts=_EXPERTS),
    _intern("internvl3_5-241b-a28b", _QWEN3_235B_A22B, _SMALL, large=True, experts=_EXPERTS),
    _model("llava-onevision-0.5b", _QWEN2_0_5B, _SMALL, _siglip_tower(896), tied=True),
    _model("llava-onevision-7b", _QWEN2_7B, _LARGE, _siglip_tower(3584)),
    _model("llava-onevision-72b", _QWEN2_72B, _LARGE, _siglip_tower(8192)),
)

PUBLISHED_MODELS = {model.name: model for model in _PUBLISHED}


def published_model(name: str) -> ModelDimensions:
    """Dimensions of a published checkpoint by its short name.

    Raises
    ------
    ValueError
        The name is not one of `PUBLISHED_MODELS`.
    """
    try:
        return PUBLISHED_MODELS[name]
    except KeyError:
        raise ValueError(
            f"name is {name!r}; it must be one of {', '.join(PUBLISHED_MODELS)}"
        ) from None


def named(model: str) -> ModelDimensions | None:
    """Dimensions of a hub name, of a folder that bears it, or of a short name; None: not known."""
    found = find_published(model)
    short = (model if found is None else found.name).rpartition("/")[2].lower()
    for ending in ("-instruct", "-thinking", "-preview", "-ov-hf"):
        short = short.removesuffix(ending)
    return PUBLISHED_MODELS.get(short.replace("onevision-qwen2-", "onevision-"))
