"""From encoded tiles and frames to the visual tokens of a prompt, and how many there will be.

The rules are transformers' (``LlavaOnevisionModel.pack_image_features`` and ``apply_pooling``, and
the counts of ``LlavaOnevisionProcessor``); here one class serves both sides, so that the processor
counts exactly what the model makes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import interpolate
from transformers.image_processing_utils import select_best_resolution

# An image this much larger (per side) than the token limit allows is shrunk to it.
_TOLERATED_RATIO = 1.1


@dataclass(frozen=True)
class Layout:
    """How a checkpoint turns pictures into tokens.

    Attributes
    ----------
    tile : int
        Side of the vision tower's square input, in pixels.
    side : int
        Patches along it.
    pinpoints : tuple of (int, int)
        ``(height, width)`` in pixels that an image may be resized to, multiples of `tile`.
    max_tiles : int
        An image takes at most about this many tiles' worth of tokens, besides its overview.
    """

    tile: int
    side: int
    pinpoints: tuple[tuple[int, int], ...]
    max_tiles: int

    @classmethod
    def of(cls, config: Any) -> Layout:
        """Read it from a ``LlavaOnevisionConfig``.

        Raises
        ------
        ValueError
            A vision tower or an option that this class does not serve, named.
        """
        vision = config.vision_config
        if vision.model_type != "siglip_vision_model":
            raise ValueError(
                f"vision_config.model_type={vision.model_type!r} must be 'siglip_vision_model'"
            )
        strategy = config.vision_feature_select_strategy
        if strategy != "full":
            # SigLIP has no class token: leaving out its first output would tear a hole into the
            # grid of patches, and transformers refuses the result as well.
            raise ValueError(f"vision_feature_select_strategy={strategy!r} must be 'full'")
        limit = re.fullmatch(r"anyres_max_(\d+)", config.vision_aspect_ratio)
        if limit is None:
            raise ValueError(
                f"vision_aspect_ratio={config.vision_aspect_ratio!r} must be 'anyres_max_' and a "
                "number"
            )
        return cls(
            tile=vision.image_size,
            side=vision.image_size // vision.patch_size,
            pinpoints=tuple((int(h), int(w)) for h, w in config.image_grid_pinpoints),
            max_tiles=int(limit[1]),
        )

    @property
    def pooled_side(self) -> int:
        """Tokens along one side of a video frame."""
        return math.ceil(self.side / 2)

    def tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of tiles for an image of ``size`` (height, width)."""
        height, width = select_best_resolution(size, [list(point) for point in self.pinpoints])
        return height // self.tile, width // self.tile

    def image_tokens(self, size: tuple[int, int], *, alone: bool) -> int:
        """Tokens of an image of ``size`` (height, width) in pixels.

        Parameters
        ----------
        size
            As it came, before any resizing.
        alone
            Whether it is its prompt's only image: then it is tiled, else one padded square.
        """
        if not alone:
            return self.side**2 + 1
        rows, columns = self._shrunk(*self._without_padding(size)[1])
        return self.side**2 + rows * (columns + 1)

    def video_tokens(self, frames: int) -> int:
        """Tokens of a video, its closing newline included."""
        return frames * self.pooled_side**2 + 1

    def pack_image(
        self, features: torch.Tensor, size: tuple[int, int], newline: torch.Tensor
    ) -> torch.Tensor:
        """Lay out one image: its overview, then its tiles row by row with newlines.

        Parameters
        ----------
        features
            ``[tiles + 1, side**2, hidden]``, the overview first; ``[1, side**2, hidden]`` for one
            of several images.
        size
            Height and width of the image as it came, in pixels.
        newline
            ``[hidden]``, the learned end of a row.

        Returns
        -------
        torch.Tensor
            ``[image_tokens(size), hidden]``.
        """
        overview, tiles = features[0], features[1:]
        newline = newline.to(features)
        if not len(tiles):
            return torch.cat([overview, newline[None]])
        rows, columns = self.tiles(size)
        image = tiles.view(rows, columns, self.side, self.side, -1)
        image = image.permute(4, 0, 2, 1, 3).reshape(-1, rows * self.side, columns * self.side)
        (top, left), (height, width) = self._without_padding(size)
        image = image[:, top : top + height, left : left + width]
        shape = self._shrunk(height, width)
        if shape != (height, width):
            image = interpolate(image[None], list(shape), mode="bilinear")[0]
        ends = newline[:, None, None].expand(-1, image.shape[1], 1)
        lines = torch.cat([image, ends], dim=2)
        return torch.cat([overview, lines.flatten(1).T])

    def pack_video(self, features: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
        """Pool every frame to half its side, bilinear, and close the video with one newline.

        Parameters
        ----------
        features
            ``[frames, side**2, hidden]``.
        newline
            ``[hidden]``.

        Returns
        -------
        torch.Tensor
            ``[video_tokens(frames), hidden]``.
        """
        frames, _, hidden = features.shape
        grid = features.view(frames, self.side, self.side, hidden).permute(0, 3, 1, 2)
        pooled = interpolate(grid, [self.pooled_side, self.pooled_side], mode="bilinear")
        tokens = pooled.permute(0, 2, 3, 1).reshape(-1, hidden)
        return torch.cat([tokens, newline.to(features)[None]])

    def _without_padding(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Top left corner, and height and width, of the image among its tiles' patches."""
        tile_rows, tile_columns = self.tiles(size)
        rows, columns = tile_rows * self.side, tile_columns * self.side
        height, width = size
        if width / height > columns / rows:
            margin = (rows - int(round(height * (columns / width), 7))) // 2
            return (margin, 0), (rows - 2 * margin, columns)
        margin = (columns - int(round(width * (rows / height), 7))) // 2
        return (0, margin), (rows, columns - 2 * margin)

    def _shrunk(self, rows: int, columns: int) -> tuple[int, int]:
        ratio = math.sqrt(rows * columns / (self.max_tiles * self.side**2))
        if ratio <= _TOLERATED_RATIO:
            return rows, columns
        return int(rows // ratio), int(columns // ratio)
