"""What SpecVLM needs to know about a family of video LLMs: the base of the adapters."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch


class Video(NamedTuple):
    """One video of a prompt.

    Attributes
    ----------
    spans
        ``(first, last)`` token positions, both inclusive.
    grid
        ``(frames, rows, columns)`` of its tokens; None where they form no grid.
    trailing
        Tokens right after the last span that end the video: kept like text, but no language, so
        they are no query rows.
    seconds_per_frame
        Seconds between two frames of the grid; None where they are not known.
    """

    spans: tuple[tuple[int, int], ...]
    grid: tuple[int, int, int] | None
    trailing: int = 0
    seconds_per_frame: float | None = None


class ModelFamily:
    """How one family of models encodes its visual inputs and counts its positions.

    An adapter states its names and overrides what differs, at least `videos`. Everything else
    (spans, query rows, scores, selection) is the same for all families and comes from SGLang's
    ``MultimodalDataItem.offsets``.

    Parameters
    ----------
    spatial_merge
        Patches per token along each side (``vision_config.spatial_merge_size``).
    """

    name: ClassVar[str]
    """The family's usual name; target and draft must have the same."""
    architectures: ClassVar[tuple[str, ...]]
    """``config.architectures`` that this adapter serves."""
    mrope: ClassVar[bool] = False
    """Whether positions have three components, and so do not follow from a token's place."""

    def __init__(self, spatial_merge: int = 2) -> None:
        self.spatial_merge = spatial_merge

    def refusal(self, config: Any) -> str | None:
        """Return why a checkpoint of this family is not served, or None where it is.

        Parameters
        ----------
        config
            The checkpoint's configuration.
        """
        return None

    def language_model(self, model: Any) -> Any:
        """Return the part of SGLang's model class that embeds tokens and makes logits."""
        return model

    def encode(self, draft_model: Any, item: Any) -> torch.Tensor:
        """Return the features of one image or video, ``[tokens, width]`` in prompt order.

        Parameters
        ----------
        draft_model
            SGLang's model class of the draft.
        item
            SGLang's ``MultimodalDataItem`` with its raw ``feature`` (pixels).

        Returns
        -------
        torch.Tensor
            The first ``hidden`` columns take the place of the placeholders' embeddings. Further
            ones are deepstack features, ``hidden`` for each of the first decoder layers, which
            SGLang's model adds to these layers' outputs.
        """
        encode = draft_model.get_video_feature if item.is_video() else draft_model.get_image_feature
        features: torch.Tensor = encode([item])
        return features

    def videos(self, item: Any) -> list[Video]:
        """Return the videos of one ``MultimodalDataItem``; SGLang may put several into one.

        Raises
        ------
        ValueError
            Spans and grid do not agree; the request is decoded without a draft.
        """
        raise NotImplementedError

    def prompt_positions(
        self, mm_input: Any, length: int, device: torch.device
    ) -> torch.Tensor | None:
        """Return the M-RoPE ids int64 ``[3, length]`` of the full prompt; None for 1-D positions.

        With None ``--specvlm-positions`` says how the draft's tokens are numbered.
        """
        return None


def mrope_delta(mm_input: Any) -> int:
    """Return by how much the M-RoPE id of a generated token differs from its place; usually <= 0.

    Parameters
    ----------
    mm_input
        SGLang's ``MultimodalInputs``, on the host; None for a prompt of text.
    """
    delta = getattr(mm_input, "mrope_position_delta", None)
    return 0 if delta is None else int(delta.reshape(-1)[0])
