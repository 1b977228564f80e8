"""Published dimensions against the sizes of the checkpoints and of real module trees."""

import dataclasses

import pytest

from specvlm_sglang.models.published import PUBLISHED
from specvlm_sglang.tools.sizing.published import PUBLISHED_MODELS, named, published_model

# Parameters of the released checkpoints, as their model pages round them.
KNOWN_SIZES = {
    "qwen2.5-vl-3b": 3.755e9,
    "qwen2.5-vl-7b": 8.292e9,
    "qwen2.5-vl-32b": 33.45e9,
    "qwen2.5-vl-72b": 73.41e9,
    "llava-onevision-0.5b": 0.894e9,
    "llava-onevision-7b": 8.03e9,
    "llava-onevision-72b": 73.2e9,
    "qwen2-vl-2b": 2.209e9,
    "qwen2-vl-7b": 8.291e9,
    "qwen2-vl-72b": 73.41e9,
    "qvq-72b": 73.41e9,
    "qwen3-vl-2b": 2.13e9,
    "qwen3-vl-4b": 4.44e9,
    "qwen3-vl-8b": 8.77e9,
    "qwen3-vl-32b": 33.4e9,
    "qwen3-vl-30b-a3b": 31.1e9,
    "qwen3-vl-235b-a22b": 236e9,
    "internvl3-1b": 0.938e9,
    "internvl3-2b": 2.09e9,
    "internvl3-8b": 7.94e9,
    "internvl3-14b": 15.1e9,
    "internvl3-38b": 38.4e9,
    "internvl3-78b": 78.4e9,
    "internvl3_5-1b": 1.06e9,
    "internvl3_5-2b": 2.35e9,
    "internvl3_5-4b": 4.73e9,
    "internvl3_5-8b": 8.53e9,
    "internvl3_5-14b": 15.1e9,
    "internvl3_5-38b": 38.4e9,
    "internvl3_5-30b-a3b": 30.8e9,
    "internvl3_5-241b-a28b": 240.7e9,
}


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_published_dimensions_give_the_published_size(name):
    assert published_model(name).parameters == pytest.approx(KNOWN_SIZES[name], rel=0.01)


KINDS = {
    "qwen2.5": "Qwen2_5_VL",
    "qwen2-": "Qwen2VL",
    "qvq-": "Qwen2VL",
    "qwen3": "Qwen3VL",
    "llava": "LlavaOnevision",
}
"""transformers' classes by how a name begins; InternVL's code is not in transformers."""


def modules_of(name):
    """The module tree that transformers builds for these dimensions, without memory."""
    import torch
    import transformers

    model, tower = published_model(name), published_model(name).vision
    kind = next(kind for start, kind in KINDS.items() if name.startswith(start))
    text = {
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.q_heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.intermediate,
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied_embeddings,
    }
    vision = {"patch_size": tower.patch}
    if kind == "LlavaOnevision":
        text |= {"model_type": "qwen2"}
        vision |= {
            "model_type": "siglip_vision_model",
            "hidden_size": tower.hidden,
            "intermediate_size": tower.intermediate,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": 16,
            "image_size": 27 * 14,
            "vision_use_head": False,
        }
    elif kind == "Qwen2VL":
        vision |= {"depth": tower.depth, "embed_dim": tower.hidden, "hidden_size": model.hidden}
    else:
        vision |= {
            "hidden_size": tower.hidden,
            "intermediate_size": tower.intermediate,
            "depth": tower.depth,
            "num_heads": 16,
            "out_hidden_size": tower.out_hidden,
        }
    if kind == "Qwen3VL":
        text |= {"head_dim": model.head_dim}
        if model.experts > 1:
            kind = "Qwen3VLMoe"
            text |= {
                "num_experts": model.experts,
                "num_experts_per_tok": model.experts_per_token,
                "moe_intermediate_size": model.intermediate,
            }
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=model.tied_embeddings
    )
    with torch.device("meta"):
        module = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    module.tie_weights()
    return module


@pytest.mark.parametrize("name", [name for name in PUBLISHED_MODELS if "intern" not in name])
def test_parameters_agree_with_transformers_modules(name):
    actual = sum(parameter.numel() for parameter in modules_of(name).parameters())
    assert published_model(name).parameters == pytest.approx(actual, rel=0.002)


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.name)
def test_every_published_checkpoint_that_can_be_paired_is_found_by_its_hub_name(one):
    found = named(one.name)
    if one.line == "GLM-V":
        assert found is None
        return
    assert found == named(f"/models/{one.name.rpartition('/')[2]}/") == named(found.name)
    # What one token reads is what the name says, within the width of such names.
    read = found.layer_parameters + 2 * found.head_parameters
    assert read == pytest.approx(one.billions * 1e9, rel=0.45)


def test_a_pass_of_many_tokens_reads_all_experts_and_of_one_token_its_own():
    model = published_model("qwen3-vl-30b-a3b")
    assert model.layer_parameters_read(1) == pytest.approx(model.layer_parameters)
    tables = 2 * model.head_parameters + model.vision.parameters
    assert model.layer_parameters_read(10_000) == pytest.approx(model.parameters - tables)
    reads = [model.layer_parameters_read(tokens) for tokens in (1, 4, 16, 64)]
    assert reads == sorted(reads)
    dense = published_model("qwen3-vl-8b")
    assert dense.layer_parameters_read(64) == dense.layer_parameters


def test_more_experts_for_a_token_than_there_are_are_refused():
    with pytest.raises(ValueError, match="experts_per_token is 9; it must be at most experts"):
        dataclasses.replace(published_model("qwen3-vl-8b"), experts=8, experts_per_token=9)


def test_an_unknown_model_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'gpt-9'.*qwen2\.5-vl-7b"):
        published_model("gpt-9")
