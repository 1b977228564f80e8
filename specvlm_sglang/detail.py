"""What a request with ``custom_params={"specvlm": {"detail": true}}`` gets to see of its pruning.

Only such a request waits for the device to hand over its scores.
"""

from __future__ import annotations

from typing import Any

import torch

from specvlm_sglang.pruning.prompt import VideoPrompt
from specvlm_sglang.pruning.selection import Selection

DRAFT = "draft"
TARGET = "target"
_DIGITS = 6


def start_detail(req: Any, prompt: VideoPrompt) -> dict[str, Any]:
    """Return the part of the detail that is known before any selection.

    Parameters
    ----------
    req
        SGLang's ``Req``. From here on it also notes each verify round.
    prompt
        Its prompt.

    Returns
    -------
    dict
        ``grids`` (``[frames, rows, columns]`` or None for each video), ``video_lengths``,
        ``scores``, ``stage_one`` and ``stage_two`` (None until `add_selection`: all tokens kept).

    Notes
    -----
    Each verify round adds to ``meta_info["specvlm"]``, which then has one entry for each token of
    the answer: the report for a prefill's token, `DRAFT` for an accepted draft token and `TARGET`
    for the target's own. SGLang sends these entries along with their tokens, streaming or not.
    """
    if not hasattr(req, "specvlm_counts_rounds"):
        req.specvlm_counts_rounds = True
        count = req.update_spec_correct_drafts_histogram

        def count_and_note(num_correct_drafts: int) -> None:
            entries = (req.customized_info or {}).get("specvlm")
            if entries is not None:
                # A grammar may have cut the round before.
                del entries[len(req.output_ids) :]
                entries.extend([DRAFT] * int(num_correct_drafts) + [TARGET])
            count(num_correct_drafts)

        # SGLang calls this once a round with the number, and keeps only a histogram.
        req.update_spec_correct_drafts_histogram = count_and_note
    return {
        "grids": [None if grid is None else list(grid) for grid in prompt.video_grids],
        "video_lengths": list(prompt.video_lengths),
        "scores": None,
        "stage_one": None,
        "stage_two": None,
    }


def add_selection(
    detail: dict[str, Any], scores: torch.Tensor | None, selection: Selection
) -> None:
    """Add scores and kept tokens to a detail.

    Parameters
    ----------
    detail
        From `start_detail`.
    scores
        float32 ``[N]``, rounded to six significant digits; None where the policy reads none.
    selection
        The kept tokens; indices count through all videos of the prompt.
    """
    if scores is not None:
        detail["scores"] = [float(f"{score:.{_DIGITS}g}") for score in scores.tolist()]
    for stage, chosen in (("stage_one", selection.stage_one), ("stage_two", ~selection.stage_one)):
        detail[stage] = selection.indices[chosen].tolist()
