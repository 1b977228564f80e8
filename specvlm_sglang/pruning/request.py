"""One request's selection: all its videos as one, or each with a budget of its own."""

from __future__ import annotations

from typing import Protocol

import torch

from specvlm_sglang.policies import Policy
from specvlm_sglang.pruning.prompt import VideoPrompt
from specvlm_sglang.pruning.selection import Selection, select_per_video, select_video_tokens


class Choice(Protocol):
    """What one request asks for."""

    @property
    def retention(self) -> float:
        """Share of the video tokens to KEEP, in (0, 1]."""

    @property
    def policy(self) -> str:
        """One of `specvlm_sglang.pruning.registry.policy_names`."""

    @property
    def chosen(self) -> Policy:
        """The policy of that name."""

    @property
    def top_p(self) -> float:
        """Share of the video's attention mass that Stage I retains, in [0, 1]."""


def select_for(prompt: VideoPrompt, options: Choice, scores: torch.Tensor) -> Selection:
    """Select among the video tokens of a prompt.

    Parameters
    ----------
    prompt
        Where the videos are, N tokens in total.
    options
        Retention, policy and ``top_p``.
    scores
        float32 ``[N]``, on the device where the selection is to be.

    Raises
    ------
    ValueError
        A policy that needs a grid, and a video without one.
    """
    grids = prompt.video_grids if options.chosen.needs_grid else None
    if grids is not None and None in grids:
        raise ValueError(f"policy {options.policy!r} needs videos with a regular grid")
    if grids is not None and len(grids) > 1:
        # A grid describes one video: each gets a budget of its own.
        return select_per_video(
            scores,
            prompt.video_lengths,
            retention=options.retention,
            top_p=options.top_p,
            policy=options.policy,
            grids=grids,
        )
    return select_video_tokens(
        scores,
        retention=options.retention,
        top_p=options.top_p,
        policy=options.policy,
        grid=None if grids is None else grids[0],
    )
