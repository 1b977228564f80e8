"""What a user without a server would do: transformers' assisted generation with the same pair.

    python -m benchmarks.assisted --out DIR [--parameters 500000000 --draft-parameters 50000000]
        [--side 224] [--tokens 128] [--rounds 3] [--assistant-tokens 3 5 10] [--dtype bfloat16]
        [--assistant target]

Clips, questions and pair are those of `specvlm bench` (224 pixels: its workload 2k). Each round
asks about another clip, plainly and with the draft as assistant at each number of drafted tokens,
in an order that rotates; the assistant sees the whole video. Ratios are taken within a round.
Greedy. ``--assistant target`` lets the target draft for itself: were nothing lost on the way, every
draft would be right, and N tokens would take N / (drafted + 1) passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from benchmarks.tinyvid.clips import read
from specvlm_sglang.tools import demo
from specvlm_sglang.tools.bench.environment import commit, cpu_name
from specvlm_sglang.tools.bench.template import Template
from specvlm_sglang.tools.bench.workloads import CLIP_FPS, CLIP_SECONDS, long_scenes
from specvlm_sglang.tools.pair import choose_pair

PLAIN = 0
"""Drafted tokens of plain generation."""


class Times:
    """A streamer that notes when the first token came, and how often tokens did."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first: float | None = None
        self.calls = -1

    def put(self, tokens: torch.Tensor) -> None:
        """The prompt first, then what each pass gave."""
        self.calls += 1
        if self.calls and self.first is None:
            self.first = time.perf_counter() - self.started

    def end(self) -> None:
        """Nothing is held back."""


class Generator:
    """A pair in transformers.

    Parameters
    ----------
    target, draft
        Directories.
    dtype
        Of both.
    """

    def __init__(self, target: str, draft: str, dtype: torch.dtype) -> None:
        load = Qwen2_5_VLForConditionalGeneration.from_pretrained
        self._target = load(target, dtype=dtype).eval()
        self._draft = load(draft, dtype=dtype).eval()
        self._processor = AutoProcessor.from_pretrained(target)

    def inputs(self, clip: Path, question: str) -> Any:
        """A prompt about a clip in its own resolution."""
        frames, _ = read(clip, CLIP_FPS)
        area = frames.shape[-1] * frames.shape[-2]
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        size = {"shortest_edge": area, "longest_edge": area}
        found = self._processor(
            text=[text],
            videos=[frames],
            return_tensors="pt",
            videos_kwargs={"fps": CLIP_FPS, "size": size},
        )
        return found.to(self._target.dtype)

    @torch.no_grad()
    def answer(self, inputs: Any, tokens: int, drafted: int) -> tuple[list[int], float, float, int]:
        """Tokens, seconds to the first one, seconds of the others, and passes of the target."""
        assistant = {}
        if drafted != PLAIN:
            draft = self._draft
            draft.generation_config.num_assistant_tokens = drafted
            draft.generation_config.num_assistant_tokens_schedule = "constant"
            # It would stop where the draft is not sure.
            draft.generation_config.assistant_confidence_threshold = 0.0
            assistant = {"assistant_model": draft}
        times = Times()
        output = self._target.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, streamer=times, **assistant
        )
        seconds = time.perf_counter() - times.started
        assert times.first is not None
        ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
        return ids, times.first, seconds - times.first, times.calls


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    pair = choose_pair(
        None, None, options.parameters, console, draft_parameters=options.draft_parameters
    )
    draft = pair.target if options.assistant == "target" else pair.draft
    generator = Generator(pair.target, draft, getattr(torch, options.dtype))
    rows: list[dict[str, Any]] = []
    ways = [PLAIN, *options.assistant_tokens]
    seeds = islice(long_scenes(Template(pair.target).count), options.rounds + 1)
    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(seeds):
            clip = Path(folder) / f"{seed}.mp4"
            scene = demo.make_clip(clip, seed, seconds=CLIP_SECONDS, side=options.side)
            inputs = generator.inputs(clip, demo.description(scene)[0])
            turn = index % len(ways)
            for drafted in ways[turn:] + ways[:turn]:
                ids, first, rest, passes = generator.answer(inputs, options.tokens, drafted)
                console.print(
                    f"round {index}, {drafted or 'plain'}: first {first:.2f} s, "
                    f"{(len(ids) - 1) / rest:.1f} tokens/s in {passes} passes"
                )
                # The first round settles threads and buffers.
                if index:
                    figures = {"first": first, "rest": rest, "passes": passes, "ids": ids}
                    rows.append({"round": index, "drafted": drafted, **figures})
    text = table(rows)
    about = {
        "pair": pair.note,
        **{
            name: getattr(options, name)
            for name in ("assistant", "dtype", "side", "tokens", "threads")
        },
        "commit": commit(Path(__file__).parent),
        "machine": cpu_name(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "assisted.json").write_text(json.dumps({**about, "rows": rows}) + "\n")
    (options.out / "assisted.md").write_text(text)
    console.print(text)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over rounds of ratios to plain generation in the same round, as Markdown."""
    plain = {row["round"]: row for row in rows if row["drafted"] == PLAIN}
    lines = [
        "| drafted | decode | end to end | first token | tokens a pass | same answer |",
        "|---" * 6 + "|",
    ]
    for drafted in dict.fromkeys(row["drafted"] for row in rows if row["drafted"] != PLAIN):
        here = [row for row in rows if row["drafted"] == drafted]

        def ratio(value: Any, here: Sequence[dict[str, Any]] = here) -> float:
            return statistics.median(value(row) / value(plain[row["round"]]) for row in here)

        speeds = (
            ratio(lambda row: (len(row["ids"]) - 1) / row["rest"]),
            ratio(lambda row: len(row["ids"]) / (row["first"] + row["rest"])),
            ratio(lambda row: row["first"]),
        )
        same = sum(row["ids"] == plain[row["round"]]["ids"] for row in here)
        cells = " | ".join(f"{speed:.2f}x" for speed in speeds)
        each = statistics.median(len(row["ids"]) / row["passes"] for row in here)
        lines.append(f"| {drafted} | {cells} | {each:.2f} | {same} of {len(here)} |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.assisted", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for data and table")
    add("--parameters", type=int, default=500_000_000, help="of the enlarged target; 0: as it is")
    add("--draft-parameters", type=int, default=0, help="of the enlarged draft; 0: as it is")
    add("--assistant", choices=("draft", "target"), default="draft", help="which model drafts")
    add("--side", type=int, default=224, help="edge of the frames in pixels")
    add("--tokens", type=int, default=128, help="length limit of an answer")
    add("--rounds", type=int, default=3)
    add("--assistant-tokens", type=int, nargs="+", default=[3, 5, 10], help="drafted at a time")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    add("--threads", type=int, default=2, help="CPU threads")
    return parser


if __name__ == "__main__":
    main()
