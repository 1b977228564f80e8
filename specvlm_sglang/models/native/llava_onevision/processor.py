"""SGLang's multimodal processor: from a request's files to pixels and an expanded prompt.

Pixels come from the checkpoint's own image and video processors. One image in a prompt is tiled
(anyres), several are one padded square each, however many turns they come in: that is what
``LlavaOnevisionProcessor.apply_chat_template`` does. Videos are sampled by `FrameSampling`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.managers.mm_utils import hash_feature
from sglang.srt.managers.schedule_batch import (
    Modality,
    MultimodalDataItem,
    MultimodalProcessorOutput,
)
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    MultimodalSpecialTokens,
)
from sglang.srt.utils.video_decoder import VideoDecoderWrapper

from specvlm_sglang.host import contract
from specvlm_sglang.host.media.resizing import decoded_groups
from specvlm_sglang.models.native.llava_onevision import chat
from specvlm_sglang.models.native.llava_onevision.frames import FrameSampling
from specvlm_sglang.models.native.llava_onevision.model import (
    LlavaOnevisionForConditionalGeneration,
)
from specvlm_sglang.models.native.llava_onevision.packing import Layout
from specvlm_sglang.models.native.llava_onevision.prompt import expand_placeholders


class LlavaOnevisionMultimodalProcessor(BaseMultimodalProcessor):
    """For `LlavaOnevisionForConditionalGeneration`.

    ``--mm-process-config '{"video": {...}}'`` sets `FrameSampling` for the server, a request's
    ``video_config`` for its own videos, and ``fps`` and ``max_frames`` beside a ``video_url``'s
    ``url`` for that one.

    Raises
    ------
    ValueError
        Settings that it does not have.
    """

    models = [LlavaOnevisionForConditionalGeneration]  # noqa: RUF012  (SGLang's convention)
    # The tiling starts from PIL images.
    gpu_image_decode = False

    def __init__(
        self,
        hf_config: Any,
        server_args: Any,
        _processor: Any,
        transport_mode: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        contract.require("llava onevision processor")
        super().__init__(hf_config, server_args, _processor, transport_mode, *args, **kwargs)
        if self.image_config:
            raise ValueError(
                f"--mm-process-config image={self.image_config} is not used by LLaVA-OneVision: "
                "the checkpoint fixes how an image is tiled"
            )
        self.layout = Layout.of(hf_config)
        self.frame_size = (hf_config.vision_config.image_size,) * 2
        self.sampling = FrameSampling().with_settings(self.video_config)
        self.mm_tokens = MultimodalSpecialTokens(
            image_token_id=hf_config.image_token_id, video_token_id=hf_config.video_token_id
        ).build(_processor)
        chat.accept_plain_strings(_processor)
        chat.use_checkpoint_template(server_args.model_path)

    async def process_mm_data_async(
        self, image_data: Any, audio_data: Any, input_text: Any, request_obj: Any, **kwargs: Any
    ) -> MultimodalProcessorOutput:
        """Prepare one request; called by SGLang's tokenizer manager.

        Raises
        ------
        ValueError
            Sound, ready-made embeddings, files that cannot be read, settings out of range, or
            another number of placeholders than files: SGLang answers 400.
        """
        images, videos = _as_list(image_data), _as_list(request_obj.video_data)
        if audio_data:
            raise ValueError("LLaVA-OneVision takes images and videos, no sound")
        if any(isinstance(entry, dict) for entry in (*images, *videos)):
            raise ValueError("LLaVA-OneVision takes images and videos, not what was made of them")
        sampling = self.sampling.with_settings(getattr(request_obj, "video_config", None))
        samplings = [
            sampling.with_settings(getattr(video, "preprocess_kwargs", None)) for video in videos
        ]
        loaded = await self.load_mm_data(
            prompt=input_text,
            multimodal_tokens=self.mm_tokens,
            image_data=images,
            video_data=videos,
        )
        if len(loaded.images) != len(images) or len(loaded.videos) != len(videos):
            raise ValueError(
                f"the prompt has placeholders for {len(loaded.images)} of {len(images)} images "
                f"and {len(loaded.videos)} of {len(videos)} videos"
            )
        if self.mm_processor_executor is None:
            return self._process(loaded, samplings)
        output: MultimodalProcessorOutput = await self.mm_processor_executor.run(
            self._process, loaded, samplings
        )
        return output

    def _process(
        self, loaded: Any, samplings: list[FrameSampling], processor: Any = None
    ) -> MultimodalProcessorOutput:
        processor, tokenizer = self._resolve_processor(processor)
        image_token, video_token = self.mm_tokens.image_token_id, self.mm_tokens.video_token_id
        images = self._image_items(processor, loaded.images)
        videos = [
            self._video_item(processor, video, sampling)
            for video, sampling in zip(loaded.videos, samplings, strict=True)
        ]
        alone = len(images) == 1
        ids = loaded.input_ids
        input_ids, spans = expand_placeholders(
            tokenizer(loaded.input_text).input_ids if ids is None else ids,
            {
                image_token: [
                    self.layout.image_tokens(item.image_sizes[0], alone=alone) for item in images
                ],
                video_token: [self.layout.video_tokens(len(item.feature)) for item in videos],
            },
            {image_token: "image", video_token: "video"},
        )
        for token, items in ((image_token, images), (video_token, videos)):
            for item, span in zip(items, spans[token], strict=True):
                item.offsets = [span]
        return MultimodalProcessorOutput(
            input_ids=input_ids,
            mm_items=self._finalize_mm_items(images + videos, images=loaded.images),
            im_token_id=image_token,
            video_token_id=video_token,
        )

    def _image_items(self, processor: Any, images: list[Any]) -> list[MultimodalDataItem]:
        if not images:
            return []
        # A list within a list is one prompt's images; a flat one would be tiled each.
        processed = processor.image_processor(
            [images], return_tensors="pt", **self._device(processor)
        )
        return [
            self._item(Modality.IMAGE, pixels, image_sizes=[(int(height), int(width))])
            for pixels, (height, width) in zip(
                processed["pixel_values"], processed["image_sizes"], strict=True
            )
        ]

    def _video_item(
        self, processor: Any, video: Any, sampling: FrameSampling
    ) -> MultimodalDataItem:
        groups: Iterable[Any] = [video]
        if isinstance(video, VideoDecoderWrapper):
            indices = sampling.indices(len(video), video.avg_fps)
            groups = decoded_groups(video, indices, self.frame_size)
        pixels = torch.cat([self._frame_pixels(processor, group) for group in groups])
        side = self.layout.pooled_side
        return self._item(Modality.VIDEO, pixels, video_grid=(len(pixels), side, side))

    def _frame_pixels(self, processor: Any, frames: Any) -> torch.Tensor:
        processed = processor.video_processor(
            [frames], do_sample_frames=False, return_tensors="pt", **self._device(processor)
        )
        pixels: torch.Tensor = processed["pixel_values_videos"][0]
        return pixels

    def _device(self, processor: Any) -> dict[str, Any]:
        """Where the fast processors run, as SGLang decides for all models."""
        if self.disable_fast_image_processor:
            return {}
        device = self._fast_image_processor_device(processor)
        return {} if device is None else {"device": device}

    def _item(self, modality: Modality, pixels: torch.Tensor, **data: Any) -> MultimodalDataItem:
        if not self.keep_mm_features_on_device:
            pixels = pixels.cpu()
        # The same pixels can be an image and a video of one frame, or images of two sizes: SGLang's
        # caches know an item by this number alone.
        identity = f"{modality.name} {sorted(data.items())} {hash_feature(pixels)}"
        return MultimodalDataItem(
            modality=modality,
            feature=pixels,
            hash=int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big"),
            model_specific_data=data,
        )


def _as_list(data: Any) -> list[Any]:
    if data is None:
        return []
    return data if isinstance(data, list) else [data]
