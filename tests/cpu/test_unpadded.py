"""Configurations whose sizes SGLang would widen on a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from sglang.srt.configs import update_config
from sglang.srt.model_executor import model_runner
from transformers import LlavaOnevisionConfig, PreTrainedConfig, Qwen2_5_VLConfig

from specvlm_sglang.cpu import unpadded
from tests.support.hooks import unhooked

TARGET = ("sglang.srt.configs.update_config", "adjust_config_with_unaligned_cpu_tp")


def adjusted(config: PreTrainedConfig) -> int:
    """Width of the tower's MLP after SGLang has looked at the configuration."""
    text = config.get_text_config()
    model_config = SimpleNamespace(
        hf_config=config,
        hf_text_config=text,
        quantization=None,
        num_attention_heads=text.num_attention_heads,
        get_total_num_kv_heads=lambda: text.num_key_value_heads,
    )
    # Under the name that the model runner has imported.
    found = model_runner.adjust_config_with_unaligned_cpu_tp(model_config, None, 1)
    width: int = found.hf_config.vision_config.intermediate_size
    return width


@pytest.mark.parametrize(
    ("config", "published", "widened"),
    [
        (LlavaOnevisionConfig, 4304, 4320),
        (lambda: Qwen2_5_VLConfig(vision_config={"intermediate_size": 3420}), 3420, 3424),
    ],
    ids=["SigLIP", "Qwen2.5-VL"],
)
def test_published_towers_keep_their_widths(
    monkeypatch: pytest.MonkeyPatch, config: type, published: int, widened: int
) -> None:
    monkeypatch.setattr(update_config, "may_get_weight_block_size", lambda *_: None)
    with unhooked(TARGET):
        assert adjusted(config()) == widened
        unpadded.install()
        unpadded.install()
        assert adjusted(config()) == published
