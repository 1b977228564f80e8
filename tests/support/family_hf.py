"""The transformers side of every family: answers, scores and draft logits from the same pixels.

What a language model is given is read off a forward pass of the whole model, so that nothing here
knows how a family lays out its features, positions or deepstack rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from tests.support import hf
from tests.support.hf import Messages


@dataclass(frozen=True)
class Given:
    """What a language model is given of one prompt of L tokens.

    Attributes
    ----------
    embeddings
        ``[L, hidden]``.
    positions
        M-RoPE ids ``[3, L]``; None for 1-D positions.
    is_visual
        Bool ``[L]``: tokens that have rows in `deepstack`.
    deepstack
        For each of the first decoder layers ``[visual tokens, hidden]``.
    """

    embeddings: torch.Tensor
    positions: torch.Tensor | None
    is_visual: torch.Tensor
    deepstack: list[torch.Tensor]

    @property
    def next_position(self) -> int:
        """Of the first generated token."""
        if self.positions is None:
            return len(self.embeddings)
        return int(self.positions.max()) + 1


class Reference:
    """One checkpoint in transformers, float32, with attention that can be read out.

    Parameters
    ----------
    directory
        The checkpoint.
    processor_of
        Where its processor is; by default there too.
    processor_options
        For the processor.

    Attributes
    ----------
    renders
        Whether transformers makes the prompt; else the server's is taken.
    """

    renders = True

    def __init__(
        self, directory: Path, *, processor_of: Path | None = None, **processor_options: Any
    ) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.processor = AutoProcessor.from_pretrained(
            processor_of or directory, **processor_options
        )
        self.directory = directory

    @property
    def video_token_id(self) -> int:
        """The placeholder of videos."""
        return int(self.model.config.video_token_id)

    def video_places(self, served_ids: list[int]) -> torch.Tensor:
        """Where the video tokens of a prompt are, int64 ``[N]``."""
        return torch.nonzero(torch.tensor(served_ids) == self.video_token_id)[:, 0]

    def inputs(self, messages: Messages, served_ids: list[int]) -> dict[str, Any]:
        """Tensors for the model; ``served_ids`` is the prompt as the server made it."""
        prompt = hf.render(self.directory, messages)
        media: dict[str, Any] = {}
        if prompt.images:
            media["images"] = prompt.images
        if prompt.videos:
            media["videos"] = [video.frames for video in prompt.videos]
            media["videos_kwargs"] = {
                "video_metadata": [video.metadata for video in prompt.videos],
                "do_sample_frames": False,
            }
        return dict(self.processor(text=[prompt.text], return_tensors="pt", **media))

    @torch.no_grad()
    def greedy(self, inputs: dict[str, Any], max_new_tokens: int) -> list[int]:
        """Greedy continuation by transformers' ``generate``."""
        own = self.model.generation_config
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id,
        )
        found = self.model.generate(**inputs, generation_config=settings)
        output: list[int] = found[0, inputs["input_ids"].shape[1] :].tolist()
        return output

    @torch.no_grad()
    def given(self, inputs: dict[str, Any]) -> Given:
        """Return what the language model is given of this prompt."""
        seen: list[dict[str, Any]] = []

        def note(_: Any, __: Any, options: dict[str, Any]) -> None:
            seen.append(options)

        handle = self.model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            self.model(**inputs)
        finally:
            handle.remove()
        (options,) = seen
        length = inputs["input_ids"].shape[1]
        positions = options.get("position_ids")
        is_visual = options.get("visual_pos_masks")
        return Given(
            embeddings=options["inputs_embeds"][0],
            positions=positions[-3:, 0] if positions is not None and positions.ndim == 3 else None,
            is_visual=torch.zeros(length, dtype=torch.bool) if is_visual is None else is_visual[0],
            deepstack=options.get("deepstack_visual_embeds") or [],
        )

    @torch.no_grad()
    def scores(self, inputs: dict[str, Any], places: torch.Tensor, first_row: int) -> torch.Tensor:
        """Mean attention of the rows from ``first_row`` on to ``places``, ``[places]``."""
        maps = self.model(**inputs, output_attentions=True).attentions
        rows = [layer[0].mean(0)[first_row:].mean(0) for layer in maps]
        return torch.stack(rows).mean(0)[places]

    @torch.no_grad()
    def logits(
        self,
        given: Given,
        columns: torch.Tensor,
        generated: list[int],
        *,
        original_positions: bool = False,
    ) -> torch.Tensor:
        """Logits after the prompt's ``columns`` and ``generated``, ``[vocabulary]``.

        1-D positions are contiguous, or with ``original_positions`` those of the full prompt.
        """
        new = torch.tensor(generated)
        embeddings = torch.cat([given.embeddings[columns], self.model.get_input_embeddings()(new)])
        later = torch.arange(len(new)) + given.next_position
        if given.positions is not None:
            positions = torch.cat([given.positions[:, columns], later.expand(3, -1)], dim=1)
            positions = positions[:, None]
        else:
            positions = torch.cat([columns, later])[None]
            if not original_positions:
                positions = torch.arange(len(embeddings))[None]
        options: dict[str, Any] = {}
        if given.deepstack:
            # Rows of dropped tokens are left out.
            rows = given.is_visual.cumsum(0)[columns] - 1
            kept = given.is_visual[columns]
            options["visual_pos_masks"] = torch.cat([kept, torch.zeros(len(new)).bool()])[None]
            options["deepstack_visual_embeds"] = [layer[rows[kept]] for layer in given.deepstack]
        hidden = self.model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions,
            # Without it transformers takes a gap in the positions for the next sequence's start.
            attention_mask=torch.ones(1, len(embeddings), dtype=torch.int64),
            use_cache=False,
            **options,
        ).last_hidden_state
        found: torch.Tensor = self.model.lm_head(hidden[0, -1])
        return found
