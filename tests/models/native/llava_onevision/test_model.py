"""The model class without a server: visual tokens, weights, registration, chat template."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import get_parallel
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler
from transformers import AutoConfig

from specvlm_sglang.models.native.llava_onevision import ARCHITECTURE, chat, registration
from specvlm_sglang.models.native.llava_onevision.model import (
    LlavaOnevisionForConditionalGeneration,
)
from specvlm_sglang.models.native.llava_onevision.processor import LlavaOnevisionMultimodalProcessor
from tests.support import clips, llava_hf
from tests.support.hooks import unhooked
from tests.support.llava_checkpoints import llava_onevision
from tests.support.messages import user


@contextmanager
def one_rank() -> Iterator[None]:
    """What SGLang's layers ask about parallelism, without process groups."""
    stage = SimpleNamespace(
        is_first_rank=True, is_last_rank=True, world_size=1, rank_in_group=0, rank=0
    )
    with get_parallel().override(
        tp_rank=0,
        tp_size=1,
        attn_tp_rank=0,
        attn_tp_size=1,
        tp_group=None,
        pp_group=stage,
        pp_rank=0,
        pp_size=1,
    ):
        yield


def build(directory: Path) -> LlavaOnevisionForConditionalGeneration:
    """SGLang's class with its parameters still empty."""
    load_plugins()
    arguments = ServerArgs(model_path=str(directory), dtype="float32")
    arguments.resolve_once()
    set_global_server_args_for_scheduler(arguments)
    with one_rank():
        model = LlavaOnevisionForConditionalGeneration(AutoConfig.from_pretrained(directory))
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    return model


@pytest.fixture(scope="module")
def last_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_onevision(tmp_path_factory.mktemp("llava") / "last")


@pytest.fixture(scope="module")
def loaded(last_layer: Path) -> LlavaOnevisionForConditionalGeneration:
    model = build(last_layer)
    model.load_weights(load_file(last_layer / "model.safetensors").items())
    return model


@torch.no_grad()
def visual_tokens(model: LlavaOnevisionForConditionalGeneration, inputs: Any) -> dict[str, Any]:
    """Ours, from the tensors that transformers' processor made."""
    found = {}
    with one_rank():
        if "pixel_values" in inputs:
            several = int(inputs["batch_num_images"][0]) > 1
            items = [
                MultimodalDataItem(
                    modality=Modality.IMAGE,
                    feature=pixels[:1] if several else pixels,
                    model_specific_data={"image_sizes": [size.tolist()]},
                )
                for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"], strict=True)
            ]
            found["image"] = model.get_image_feature(items)
        if "pixel_values_videos" in inputs:
            found["video"] = model.get_video_feature(
                [
                    MultimodalDataItem(modality=Modality.VIDEO, feature=pixels)
                    for pixels in inputs["pixel_values_videos"]
                ]
            )
    return found


@torch.no_grad()
def expected_tokens(directory: Path, inputs: Any) -> dict[str, Any]:
    """transformers' own."""
    model = llava_hf.load_model(directory).model
    found = {}
    if "pixel_values" in inputs:
        output = model.get_image_features(
            inputs["pixel_values"],
            inputs["image_sizes"],
            batch_num_images=inputs["batch_num_images"],
        )
        found["image"] = torch.cat(list(output.pooler_output))
    if "pixel_values_videos" in inputs:
        output = model.get_video_features(inputs["pixel_values_videos"])
        found["video"] = output.pooler_output.flatten(0, 1)
    return found


def assert_same_tokens(
    model: LlavaOnevisionForConditionalGeneration, directory: Path, *parts: str | Path
) -> None:
    prompt = llava_hf.render(directory, user(*parts))
    inputs = llava_hf.model_inputs(directory, prompt)
    found, expected = visual_tokens(model, inputs), expected_tokens(directory, inputs)
    assert found.keys() == expected.keys() != set()
    for kind, tokens in expected.items():
        assert tokens.std() > 0.1
        torch.testing.assert_close(found[kind], tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width"), [(96, 128), (30, 30), (44, 200), (200, 44), (15, 19), (180, 180)]
)
def test_a_single_image_is_encoded_as_transformers_does(
    loaded: LlavaOnevisionForConditionalGeneration,
    last_layer: Path,
    tmp_path: Path,
    height: int,
    width: int,
) -> None:
    image = clips.write_image(tmp_path / "image.png", seed=3, height=height, width=width)
    assert_same_tokens(loaded, last_layer, image, "What is it?")


def test_several_images_and_videos_are_encoded_as_transformers_does(
    loaded: LlavaOnevisionForConditionalGeneration,
    last_layer: Path,
    image_paths: list[Path],
    clip_paths: list[Path],
) -> None:
    assert_same_tokens(loaded, last_layer, *image_paths[:3], "Which is larger?")
    assert_same_tokens(loaded, last_layer, clip_paths[0], "What happens?")
    assert_same_tokens(loaded, last_layer, *clip_paths[:2], image_paths[0], "Compare.")


@pytest.mark.parametrize("layer", [-2, 1, [-2, -1], [0, 2]], ids=str)
def test_the_configured_feature_layers_are_read(
    layer: int | list[int], tmp_path: Path, image_paths: list[Path]
) -> None:
    directory = llava_onevision(tmp_path / "other", vision_feature_layer=layer)
    model = build(directory)
    model.load_weights(load_file(directory / "model.safetensors").items())
    assert_same_tokens(model, directory, image_paths[0], "What is it?")


def test_a_layer_that_the_tower_lacks_is_refused(last_layer: Path) -> None:
    config = AutoConfig.from_pretrained(last_layer)
    config.vision_feature_layer = 4
    with one_rank(), pytest.raises(ValueError, match=r"vision_feature_layer=4 must lie in \[-4, 3"):
        LlavaOnevisionForConditionalGeneration(config)


def published(name: str) -> str:
    """Name of a tensor in the published checkpoints."""
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def present(name: str) -> str:
    """Name of a tensor as transformers 4.52 and later call it in memory."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    name = name.replace("language_model.model.", "language_model.", 1)
    return f"model.{name}"


@pytest.mark.parametrize("rename", [published, present, lambda name: name])
def test_weights_load_under_old_and_new_names(
    last_layer: Path,
    loaded: LlavaOnevisionForConditionalGeneration,
    rename: Callable[[str], str],
) -> None:
    tensors = load_file(last_layer / "model.safetensors")
    model = build(last_layer)
    model.load_weights((rename(name), tensor) for name, tensor in tensors.items())
    expected = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        assert not parameter.isnan().any(), name


def test_weights_behind_the_feature_layer_are_skipped_and_strange_ones_refused(
    last_layer: Path,
) -> None:
    model = build(last_layer)
    tensor = torch.zeros(1)
    model.load_weights(
        [
            ("vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias", tensor),
            ("vision_tower.vision_model.head.probe", tensor),
            ("vision_tower.vision_model.post_layernorm.weight", tensor),
        ]
    )
    with pytest.raises(ValueError, match=r"multi_modal_projector\.linear_3\.bias belongs to no"):
        model.load_weights([("multi_modal_projector.linear_3.bias", tensor)])


def test_tied_embeddings_are_tied_wherever_the_configuration_says_so(last_layer: Path) -> None:
    config = AutoConfig.from_pretrained(last_layer)
    config.tie_word_embeddings = True
    with one_rank():
        model = LlavaOnevisionForConditionalGeneration(config)
    assert model.language_model.lm_head is model.get_input_embeddings()


def test_sglang_finds_the_class_and_its_processor() -> None:
    load_plugins()
    from sglang.srt.configs.model_config import is_multimodal_model
    from sglang.srt.managers.multimodal_processor import PROCESSOR_MAPPING, import_processors
    from sglang.srt.models.registry import ModelRegistry

    assert is_multimodal_model([ARCHITECTURE])
    found, _ = ModelRegistry.resolve_model_cls([ARCHITECTURE])
    assert found is LlavaOnevisionForConditionalGeneration
    import_processors(os.environ["SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE"], overwrite=True)
    names = {model.__name__: processor.__name__ for model, processor in PROCESSOR_MAPPING.items()}
    assert names[ARCHITECTURE] == "LlavaOnevisionMultimodalProcessor"


def test_where_sglangs_variables_are_taken_the_tables_are_filled_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_plugins()
    from sglang.srt.configs import model_config
    from sglang.srt.managers.multimodal_processor import PROCESSOR_MAPPING
    from sglang.srt.models.registry import ModelRegistry

    for variable in (
        "SGLANG_EXTERNAL_MM_MODEL_ARCH",
        "SGLANG_EXTERNAL_MODEL_PACKAGE",
        "SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE",
    ):
        monkeypatch.setenv(variable, "somebody_elses")
    without = [name for name in model_config.multimodal_model_archs if name != ARCHITECTURE]
    monkeypatch.setattr(model_config, "multimodal_model_archs", without)
    monkeypatch.delitem(ModelRegistry.models, ARCHITECTURE, raising=False)
    monkeypatch.delitem(PROCESSOR_MAPPING, LlavaOnevisionForConditionalGeneration, raising=False)
    registration.register()
    registration.register()
    assert model_config.multimodal_model_archs.count(ARCHITECTURE) == 1
    assert ModelRegistry.models[ARCHITECTURE] is LlavaOnevisionForConditionalGeneration
    assert LlavaOnevisionForConditionalGeneration in PROCESSOR_MAPPING


def test_the_same_pixels_are_other_items_as_image_or_video_or_of_another_size() -> None:
    holder: Any = SimpleNamespace(keep_mm_features_on_device=False)
    pixels = torch.zeros(1, 3, 30, 30)

    def number(modality: Modality, **data: Any) -> int | None:
        item = LlavaOnevisionMultimodalProcessor._item(holder, modality, pixels, **data)
        return item.hash

    small = number(Modality.IMAGE, image_sizes=[(30, 30)])
    assert small == number(Modality.IMAGE, image_sizes=[(30, 30)])
    large = number(Modality.IMAGE, image_sizes=[(60, 60)])
    video = number(Modality.VIDEO, video_grid=(1, 4, 4))
    assert len({small, large, video}) == 3


def test_a_message_that_is_a_string_is_rendered_like_one_part_of_text(last_layer: Path) -> None:
    processor = llava_hf.AutoProcessor.from_pretrained(last_layer)
    parts = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    strings = [dict(message) for message in parts]
    for number, text in ((0, "Be brief."), (2, "Red."), (3, "Sure?")):
        strings[number]["content"] = text

    def rendered(messages: list[dict[str, Any]]) -> str:
        text: str = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text

    expected = rendered(parts)
    assert rendered(strings) != expected
    chat.accept_plain_strings(processor)
    assert rendered(parts) == rendered(strings) == expected
    template = processor.chat_template
    chat.accept_plain_strings(processor)
    assert processor.chat_template == template


def test_a_served_checkpoint_keeps_its_template_whatever_its_path() -> None:
    from sglang.srt.parser.template_manager import TemplateManager

    ours, other = "llava-hf/llava-onevision-qwen2-7b-ov-hf", "lmms-lab/llava-onevision-qwen2-7b-ov"
    target = ("sglang.srt.parser.template_manager", "TemplateManager")
    guess = (target[0], f"{target[1]}.guess_chat_template_from_model_path")
    with unhooked(guess):
        chat.use_checkpoint_template(ours)
        for path, name in ((ours, None), (other, "chatml-llava")):
            manager = TemplateManager()
            manager.guess_chat_template_from_model_path(path)
            assert manager.chat_template_name == name
