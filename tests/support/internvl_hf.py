"""InternVL on the transformers side: the server's own prompt, and the tiles that SGLang makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from specvlm_sglang.host.media.reader import PyAVReader
from specvlm_sglang.host.media.sources import resolve
from tests.support import hf
from tests.support.family_hf import Reference
from tests.support.hf import Messages
from tests.support.internvl_checkpoints import HF_SUFFIX

# As SGLang's processor has it: so many frames of a video from first to last, tiles of an image.
FRAMES, TILE, MOST_TILES = 32, 448, 12


class InternVLReference(Reference):
    """transformers has no chat template and no processor for these checkpoints."""

    renders = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory.with_name(directory.name + HF_SUFFIX), processor_of=directory)

    @property
    def video_token_id(self) -> int:
        """The placeholder of videos, which transformers does not know."""
        return int(self.processor.convert_tokens_to_ids("<|video_pad|>"))

    def inputs(self, messages: Messages, served_ids: list[int]) -> dict[str, Any]:
        """See `Reference.inputs`."""
        ids = torch.tensor([served_ids])
        ids[ids == self.video_token_id] = self.model.config.image_token_id
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        tiles = [_tiles(part) for part in _media(messages)]
        if tiles:
            # In the order of the prompt: the template puts images before videos.
            inputs["pixel_values"] = torch.cat(tiles)
        return inputs


def _media(messages: Messages) -> list[dict[str, Any]]:
    parts = [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    ]
    kinds = ("image_url", "video_url")
    return [part for kind in kinds for part in parts if part["type"] == kind]


def _tiles(part: dict[str, Any]) -> torch.Tensor:
    """Float32 ``[tiles, 3, 448, 448]`` of one image or video."""
    from sglang.srt.multimodal.processors.internvl import InternVLProcessor

    source = part[part["type"]]["url"]
    if part["type"] == "image_url":
        pictures, most = [np.array(hf.load_image(source).convert("RGB"))], MOST_TILES
    else:
        reader = PyAVReader(resolve(str(source)))
        wanted = np.linspace(0, len(reader) - 1, num=FRAMES, dtype=int).tolist()
        known = reader.get_batch(sorted(set(wanted))).frames
        pictures, most = [known[sorted(set(wanted)).index(index)] for index in wanted], 1
    mean, std = (
        torch.tensor(values).view(-1, 1, 1)
        for values in (InternVLProcessor.IMAGENET_MEAN, InternVLProcessor.IMAGENET_STD)
    )
    return torch.cat(
        [
            InternVLProcessor.dynamic_preprocess(
                (torch.from_numpy(picture).permute(2, 0, 1).float() / 255 - mean) / std,
                image_size=TILE,
                max_num=most,
                use_thumbnail=most > 1,
            )
            for picture in pictures
        ]
    ).float()
