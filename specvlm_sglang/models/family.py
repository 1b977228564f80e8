"""The adapter protocol: what SpecVLM needs to know about a family of video LLMs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

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


class ModelFamily(Protocol):
    """How one family of models encodes its visual inputs and counts its positions.

    Everything else (spans, query rows, scores, selection) is the same for all families and comes
    from SGLang's ``MultimodalDataItem.offsets``.
    """

    @property
    def name(self) -> str:
        """The family's usual name."""
        ...

    @property
    def mrope(self) -> bool:
        """Whether positions have three components, and so do not follow from a token's place."""
        ...

    @property
    def architectures(self) -> tuple[str, ...]:
        """``config.architectures`` that this adapter serves."""
        ...

    def encode(self, draft_model: Any, item: Any) -> torch.Tensor:
        """Return the features of one image or video, ``[tokens, hidden]`` in prompt order.

        Parameters
        ----------
        draft_model
            SGLang's model class of the draft.
        item
            SGLang's ``MultimodalDataItem`` with its raw ``feature`` (pixels).
        """
        ...

    def videos(self, item: Any) -> list[Video]:
        """Return the videos of one ``MultimodalDataItem``; SGLang may put several into one."""
        ...

    def prompt_positions(
        self, mm_input: Any, length: int, device: torch.device
    ) -> torch.Tensor | None:
        """Return the M-RoPE ids int64 ``[3, length]`` of the full prompt; None for 1-D positions.

        With None ``--specvlm-positions`` says how the draft's tokens are numbered.
        """
        ...


def mrope_delta(mm_input: Any) -> int:
    """Return by how much the M-RoPE id of a generated token differs from its place; usually <= 0.

    Parameters
    ----------
    mm_input
        SGLang's ``MultimodalInputs``, on the host; None for a prompt of text.
    """
    delta = getattr(mm_input, "mrope_position_delta", None)
    return 0 if delta is None else int(delta.reshape(-1)[0])


def family_of(architectures: Sequence[str], spatial_merge: int = 2) -> ModelFamily:
    """Return the adapter for a checkpoint's ``architectures``.

    Parameters
    ----------
    architectures
        As in the checkpoint's configuration.
    spatial_merge
        Patches per token along each side (``vision_config.spatial_merge_size``).

    Raises
    ------
    ValueError
        No adapter; the message names the model and what is served.
    """
    from specvlm_sglang.models.llava_onevision import LlavaOnevision
    from specvlm_sglang.models.qwen2_5_vl import Qwen25VL
    from specvlm_sglang.models.text import TextOnly

    families: tuple[ModelFamily, ...] = (Qwen25VL(spatial_merge), LlavaOnevision(), TextOnly())
    for family in families:
        if any(name in family.architectures for name in architectures):
            return family
    served = ", ".join(name for family in families for name in family.architectures)
    raise ValueError(f"SPECVLM does not serve {', '.join(architectures)}; it serves {served}")
