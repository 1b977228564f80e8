"""A model of the pair in transformers, with the served model's positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoProcessor, DynamicCache, Qwen2_5_VLForConditionalGeneration

from benchmarks.tinyvid.clips import LOOKS, Prompt, read
from reference.positions import VisionSpan, mrope_positions, rope_delta
from reference.scoring import language_query_rows, language_to_video_scores

UNKNOWN_RATE = 24
"""Frames per second that plain SGLang takes for granted."""


@dataclass(frozen=True)
class Question:
    """A prompt as tokens and pixels.

    Attributes
    ----------
    ids : int64 array, shape (length,)
        Video placeholders expanded.
    positions : int64 array, shape (3, length)
        M-RoPE ids.
    video : int64 array, shape (tokens,)
        Where the video tokens stand.
    pixels : float tensor, shape (patches, 1176)
    grid_thw : tuple of int
        Grids, rows and columns in patches.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    video: npt.NDArray[np.int64]
    pixels: Tensor
    grid_thw: tuple[int, int, int]

    @property
    def delta(self) -> int:
        return rope_delta(self.positions)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        t, h, w = self.grid_thw
        return t, h // 2, w // 2


@dataclass(frozen=True, eq=False)
class Attention:
    """Queries and keys of one prompt, after rotary embedding.

    Attributes
    ----------
    queries : float32 array, shape (layers, rows, heads, head_dim)
    keys : float32 array, shape (layers, length, kv_heads, head_dim)
    rows, video : int64 arrays
        Places of the query rows and of the video tokens.
    scale : float
        Of the logits.
    """

    queries: npt.NDArray[np.float32]
    keys: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    video: npt.NDArray[np.int64]
    scale: float

    def scores(
        self, *, rows: int | None = None, layer: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Language-to-video scores by `reference.scoring`, shape (video tokens,).

        Parameters
        ----------
        rows : int, optional
            Only the last so many query rows.
        layer : int, optional
            Only this one, from 0 on.
        """
        first = 0 if rows is None else max(0, self.rows.size - rows)
        layers = slice(None) if layer is None else slice(layer, layer + 1)
        return language_to_video_scores(
            self.queries[layers, first:],
            self.keys[layers],
            query_positions=self.rows[first:],
            video_positions=self.video,
            scale=self.scale,
        )


class Reader:
    """Loads a checkpoint and answers questions about clips, in float32.

    Parameters
    ----------
    directory : Path
        A complete Hugging Face directory.
    """

    def __init__(self, directory: Path) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
        self.processor = AutoProcessor.from_pretrained(directory)
        self.end = self.processor.tokenizer.eos_token_id

    def question(self, prompt: Prompt, *, exact: bool = True) -> Question:
        """Decode, sample and tokenize, in the clip's own resolution.

        Parameters
        ----------
        prompt : Prompt
            Its clip's edges are multiples of 28.
        exact : bool
            Whether time ids follow the true frame rate, or plain SGLang's.
        """
        frames, seconds_per_grid = read(prompt.clip, prompt.fps)
        frames = LOOKS[prompt.look](frames)
        area = frames.shape[-1] * frames.shape[-2]
        content = [{"type": "video"}, {"type": "text", "text": prompt.question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = self.processor(
            text=[text],
            videos=[frames],
            return_tensors="pt",
            videos_kwargs={
                "fps": prompt.fps,
                "size": {"shortest_edge": area, "longest_edge": area},
            },
        )
        ids = inputs["input_ids"][0].numpy()
        video = np.flatnonzero(ids == self.model.config.video_token_id)
        grid = tuple(inputs["video_grid_thw"][0].tolist())
        span = VisionSpan(int(video[0]), grid, seconds_per_grid if exact else 2 / UNKNOWN_RATE)
        positions = mrope_positions(
            len(ids), [span], tokens_per_second=self.model.config.vision_config.tokens_per_second
        )
        return Question(ids, positions, video, inputs["pixel_values_videos"], grid)

    @torch.no_grad()
    def embeddings(self, question: Question) -> Tensor:
        """Text embeddings and video features of the whole prompt, (length, hidden)."""
        embedded = self.model.model.language_model.embed_tokens(torch.from_numpy(question.ids))
        features = self.model.model.visual(
            question.pixels, torch.tensor([question.grid_thw])
        ).pooler_output
        embedded[torch.from_numpy(question.video)] = features
        return embedded

    @torch.no_grad()
    def greedy(self, question: Question, *, max_new_tokens: int = 300) -> list[int]:
        """Greedy answer; the end token, if it came, is its last."""
        language, cache = self.model.model.language_model, DynamicCache()
        hidden = self.embeddings(question)[None]
        positions = torch.from_numpy(question.positions)[:, None]
        position = int(positions.max()) + 1
        tokens: list[int] = []
        while len(tokens) < max_new_tokens and (not tokens or tokens[-1] != self.end):
            output = language(
                inputs_embeds=hidden, position_ids=positions, past_key_values=cache, use_cache=True
            )
            tokens.append(int(self.model.lm_head(output.last_hidden_state[0, -1]).argmax()))
            hidden = language.embed_tokens(torch.tensor([[tokens[-1]]]))
            positions = torch.full((3, 1, 1), position)
            position += 1
        return tokens

    @torch.no_grad()
    def predictions(
        self,
        embeddings: Tensor,
        positions: npt.NDArray[np.int64],
        answer: list[int],
        first_position: int,
    ) -> npt.NDArray[np.int64]:
        """Greedy next token before each token of an answer, given all tokens before it.

        Parameters
        ----------
        embeddings : tensor, shape (kept, hidden)
            Of the kept part of the prompt.
        positions : int array, shape (3, kept)
        answer : list of int
        first_position : int
            Position of the answer's first token; the others follow.
        """
        language = self.model.model.language_model
        said = language.embed_tokens(torch.tensor(answer[:-1], dtype=torch.int64))
        later = np.arange(first_position, first_position + len(answer) - 1)
        ids = np.concatenate([positions, np.tile(later, (3, 1))], axis=1)
        output = language(
            inputs_embeds=torch.cat([embeddings, said])[None],
            position_ids=torch.from_numpy(ids)[:, None],
            use_cache=False,
        )
        rows = output.last_hidden_state[0, -len(answer) :]
        return self.model.lm_head(rows).argmax(-1).numpy()

    @torch.no_grad()
    def attention(self, question: Question, embeddings: Tensor) -> Attention:
        """Run the prompt once for what its query rows look at.

        Parameters
        ----------
        question : Question
            The prompt.
        embeddings : float tensor, shape (length, hidden)
            Of the prompt.
        """
        language = self.model.model.language_model
        positions = torch.from_numpy(question.positions)[:, None]
        states = language(
            inputs_embeds=embeddings[None],
            position_ids=positions,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        asking = language_query_rows(len(question.ids), question.video)
        cos, sin = language.rotary_emb(embeddings, positions)
        queries, keys = [], []
        for layer, state in zip(language.layers, states, strict=False):
            attention, normed = layer.self_attn, layer.input_layernorm(state[0])
            query = attention.q_proj(normed[asking]).unflatten(-1, (-1, attention.head_dim))
            key = attention.k_proj(normed).unflatten(-1, (-1, attention.head_dim))
            queries.append(_rotate(query, cos[0, asking], sin[0, asking]).numpy())
            keys.append(_rotate(key, cos[0], sin[0]).numpy())
        scale = language.layers[0].self_attn.scaling
        return Attention(np.stack(queries), np.stack(keys), asking, question.video, scale)

    def text(self, tokens: list[int]) -> str:
        return self.processor.decode(tokens, skip_special_tokens=True)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos[:, None] + turned * sin[:, None]
