"""SGLang's multimodal processor: from a request's files to pixels and an expanded prompt.

Pixels come from the checkpoint's own image and video processors. One image in a prompt is tiled
(anyres), several are one padded square each, however many turns they come in: that is what
``LlavaOnevisionProcessor.apply_chat_template`` does. Frames are chosen by
`frames.frame_indices`.
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
from specvlm_sglang.host.video_requests import chat as chat_parts
from specvlm_sglang.host.video_requests import receipt
from specvlm_sglang.host.video_requests.frames import FrameReader
from specvlm_sglang.host.video_requests.inputs import read_videos
from specvlm_sglang.host.video_requests.options import VideoOptions, read_options
from specvlm_sglang.models.native.llava_onevision import chat
from specvlm_sglang.models.native.llava_onevision.frames import (
    DEFAULTS,
    check_no_pixels,
    frame_indices,
)
from specvlm_sglang.models.native.llava_onevision.model import (
    LlavaOnevisionForConditionalGeneration,
)
from specvlm_sglang.models.native.llava_onevision.packing import Layout
from specvlm_sglang.models.native.llava_onevision.prompt import expand_placeholders


class LlavaOnevisionMultimodalProcessor(BaseMultimodalProcessor):
    """For `LlavaOnevisionForConditionalGeneration`.

    Which frames of a video are taken is said by `VideoOptions`; those of pixels are refused.

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
        server = read_options(self.video_config, "--mm-process-config video")
        check_no_pixels(server, "--mm-process-config video: ")
        self.server_options = server.merged_over(DEFAULTS)
        self.mm_tokens = MultimodalSpecialTokens(
            image_token_id=hf_config.image_token_id, video_token_id=hf_config.video_token_id
        ).build(_processor)
        chat.accept_plain_strings(_processor)
        chat.use_checkpoint_template(server_args.model_path)
        chat_parts.understand()

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
        images = _as_list(image_data)
        if audio_data:
            raise ValueError("LLaVA-OneVision takes images and videos, no sound")
        videos = read_videos(request_obj, self.server_options)
        sources, options = [source for source, _ in videos], [chosen for _, chosen in videos]
        if any(isinstance(entry, dict) for entry in (*images, *sources)):
            raise ValueError("LLaVA-OneVision takes images and videos, not what was made of them")
        for chosen in options:
            check_no_pixels(chosen)
        loaded = await self.load_mm_data(
            prompt=input_text,
            multimodal_tokens=self.mm_tokens,
            image_data=images,
            video_data=sources,
        )
        if len(loaded.images) != len(images) or len(loaded.videos) != len(sources):
            raise ValueError(
                f"the prompt has placeholders for {len(loaded.images)} of {len(images)} images "
                f"and {len(loaded.videos)} of {len(sources)} videos"
            )
        if self.mm_processor_executor is None:
            output, receipts = self._process(loaded, options)
        else:
            output, receipts = await self.mm_processor_executor.run(self._process, loaded, options)
        receipt.keep(request_obj, receipts)
        return output

    def _process(
        self, loaded: Any, options: list[VideoOptions], processor: Any = None
    ) -> tuple[MultimodalProcessorOutput, list[dict[str, Any]]]:
        processor, tokenizer = self._resolve_processor(processor)
        image_token, video_token = self.mm_tokens.image_token_id, self.mm_tokens.video_token_id
        images = self._image_items(processor, loaded.images)
        made = [
            self._video_item(processor, video, chosen)
            for video, chosen in zip(loaded.videos, options, strict=True)
        ]
        videos = [item for item, _ in made]
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
        output = MultimodalProcessorOutput(
            input_ids=input_ids,
            mm_items=self._finalize_mm_items(images + videos, images=loaded.images),
            im_token_id=image_token,
            video_token_id=video_token,
        )
        return output, [shown for _, shown in made]

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
        self, processor: Any, video: Any, options: VideoOptions
    ) -> tuple[MultimodalDataItem, dict[str, Any]]:
        groups: Iterable[Any] = [video]
        if isinstance(video, VideoDecoderWrapper):
            total = len(video)
            indices = (
                list(range(total))
                if isinstance(video, FrameReader)
                else frame_indices(options, total, video.avg_fps)
            )
            source = receipt.describe(video, indices)
            groups = decoded_groups(video, indices, self.frame_size)
        else:
            source = receipt.of_pixels(len(video))
        pixels = torch.cat([self._frame_pixels(processor, group) for group in groups])
        side = self.layout.pooled_side
        frames, _, height, width = pixels.shape
        item = self._item(Modality.VIDEO, pixels, video_grid=(frames, side, side))
        # The newline at the end is no token of the video.
        shown = receipt.receipt(
            source, height=height, width=width, tokens=self.layout.video_tokens(frames) - 1
        )
        return item, shown

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
