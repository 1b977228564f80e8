"""The model class: SigLIP features, projector, token packing, and SGLang's Qwen2.

Positions are one-dimensional. Visual tokens come through SGLang's ``general_mm_embed_routine``, so
chunked prefill, the embedding cache and the radix cache work as for any other model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.managers.mm_utils import general_mm_embed_routine, pad_mm_tokens
from sglang.srt.models.qwen2 import Qwen2ForCausalLM
from sglang.srt.utils import add_prefix
from torch import nn

from specvlm_sglang.host import contract
from specvlm_sglang.models.native.llava_onevision import weights as checkpoint
from specvlm_sglang.models.native.llava_onevision.packing import Layout
from specvlm_sglang.models.native.llava_onevision.vision import Projector, SiglipFeatures


class LlavaOnevisionForConditionalGeneration(nn.Module):
    """LLaVA-OneVision in the form of transformers, for SGLang's model runner.

    Parameters
    ----------
    config
        ``LlavaOnevisionConfig``.
    quant_config
        SGLang's; of the language model alone.
    prefix
        Of the parameters' names.

    Raises
    ------
    ValueError
        A configuration that is not served: another vision tower, another language model, or an
        option named in the message.
    """

    hf_to_sglang_mapper = checkpoint.NAMES
    packed_modules_mapping = {  # noqa: RUF012  (SGLang reads it from the class)
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        contract.require("llava onevision")
        language = config.text_config
        if language.model_type != "qwen2":
            raise ValueError(f"text_config.model_type={language.model_type!r} must be 'qwen2'")
        # Published configurations say it in one place or the other.
        language.tie_word_embeddings |= config.tie_word_embeddings
        self.config = config
        self.layout = Layout.of(config)
        chosen = config.vision_feature_layer
        layers = (chosen,) if isinstance(chosen, int) else tuple(chosen)
        self.vision_tower = SiglipFeatures(
            config.vision_config, layers, add_prefix("vision_tower", prefix)
        )
        self.multi_modal_projector = Projector(
            config,
            config.vision_config.hidden_size * len(layers),
            add_prefix("multi_modal_projector", prefix),
        )
        self.image_newline = nn.Parameter(torch.empty(language.hidden_size))
        self.language_model = Qwen2ForCausalLM(
            language, quant_config, prefix=add_prefix("language_model", prefix)
        )

    @property
    def logits_processor(self) -> Any:
        """The language model's."""
        return self.language_model.logits_processor

    @property
    def start_layer(self) -> int:
        """First decoder layer of this pipeline stage."""
        return int(self.language_model.start_layer)

    @property
    def end_layer(self) -> int:
        """One behind the last decoder layer of this pipeline stage."""
        return int(self.language_model.end_layer)

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        table: nn.Module = self.language_model.get_input_embeddings()
        return table

    def pad_input_ids(self, input_ids: Any, mm_inputs: Any) -> Any:
        """SGLang's: placeholders become hashes of what they stand for."""
        return pad_mm_tokens(input_ids, mm_inputs)

    def get_image_feature(self, items: list[Any]) -> torch.Tensor:
        """Tokens of images in order, ``[tokens, hidden]``.

        Parameters
        ----------
        items
            ``MultimodalDataItem`` of one image each: ``feature`` ``[tiles, 3, tile, tile]``, and
            ``image_sizes``, one (height, width).
        """
        encoded = self._project([item.feature for item in items])
        return torch.cat(
            [
                self.layout.pack_image(features, _size(item), self.image_newline)
                for item, features in zip(items, encoded, strict=True)
            ]
        )

    def get_video_feature(self, items: list[Any]) -> torch.Tensor:
        """Tokens of videos in order, ``[tokens, hidden]``, a newline at the end of each.

        Parameters
        ----------
        items
            ``MultimodalDataItem`` of one video each: ``feature`` ``[frames, 3, tile, tile]``.
        """
        encoded = self._project([item.feature for item in items])
        return torch.cat(
            [self.layout.pack_video(features, self.image_newline) for features in encoded]
        )

    def _project(self, pictures: list[torch.Tensor]) -> list[torch.Tensor]:
        counts = [len(pixels) for pixels in pictures]
        features = self.multi_modal_projector(self.vision_tower(torch.cat(pictures)))
        return list(features.split(counts))

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: Any,
        input_embeds: torch.Tensor | None = None,
        get_embedding: bool = False,
        pp_proxy_tensors: Any = None,
    ) -> Any:
        """One pass of SGLang's model runner; parameters and result as ``Qwen2ForCausalLM``."""
        return general_mm_embed_routine(
            input_ids=input_ids,
            forward_batch=forward_batch,
            language_model=self.language_model,
            multimodal_model=self,
            positions=positions,
            get_embedding=get_embedding,
            pp_proxy_tensors=pp_proxy_tensors,
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load a checkpoint; see `specvlm_sglang.models.native.llava_onevision.weights`."""
        checkpoint.load(self, weights, self.vision_tower.depth)


def _size(item: Any) -> tuple[int, int]:
    ((height, width),) = item.image_sizes
    return int(height), int(width)


EntryClass = LlavaOnevisionForConditionalGeneration
