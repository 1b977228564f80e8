"""Published dimensions against the sizes of the checkpoints and of real module trees."""

import pytest

from reference.dimensions import PUBLISHED_MODELS, published_model

# Parameters of the released checkpoints, as their model pages round them.
KNOWN_SIZES = {
    "qwen2.5-vl-3b": 3.755e9,
    "qwen2.5-vl-7b": 8.292e9,
    "qwen2.5-vl-32b": 33.45e9,
    "qwen2.5-vl-72b": 73.41e9,
    "llava-onevision-0.5b": 0.894e9,
    "llava-onevision-7b": 8.03e9,
    "llava-onevision-72b": 73.2e9,
}


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_published_dimensions_give_the_published_size(name):
    assert published_model(name).parameters == pytest.approx(KNOWN_SIZES[name], rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED_MODELS)
def test_parameters_agree_with_transformers_modules(name):
    import torch
    import transformers

    model, tower = published_model(name), published_model(name).vision
    text = {
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.q_heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.intermediate,
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied_embeddings,
    }
    vision = {
        "hidden_size": tower.hidden,
        "intermediate_size": tower.intermediate,
        "patch_size": tower.patch,
    }
    if name.startswith("qwen"):
        vision |= {"depth": tower.depth, "num_heads": 16, "out_hidden_size": tower.out_hidden}
        config = transformers.Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            tie_word_embeddings=model.tied_embeddings,
        )
        kind = transformers.Qwen2_5_VLForConditionalGeneration
    else:
        vision |= {
            "model_type": "siglip_vision_model",
            "num_hidden_layers": tower.depth,
            "num_attention_heads": 16,
            "image_size": 27 * 14,
            "vision_use_head": False,
        }
        config = transformers.LlavaOnevisionConfig(
            text_config=text | {"model_type": "qwen2"},
            vision_config=vision,
            tie_word_embeddings=model.tied_embeddings,
        )
        kind = transformers.LlavaOnevisionForConditionalGeneration
    with torch.device("meta"):
        module = kind(config)
    module.tie_weights()
    actual = sum(parameter.numel() for parameter in module.parameters())
    assert model.parameters == pytest.approx(actual, rel=0.002)


def test_an_unknown_model_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'gpt-9'.*qwen2\.5-vl-7b"):
        published_model("gpt-9")
