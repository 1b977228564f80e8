"""SGLang on the CPU platform beside transformers' generate, same checkpoint and dtype, one run.

    python -m benchmarks.cpu_serving --dtype bfloat16 --out /tmp/cpu_serving.json

Reports medians: decode tokens/s alone and with 8 concurrent requests (transformers answers the
same 8 prompts one after the other), and the cost of a decode step at 2,000 tokens of context
relative to one at 8, and of verifying 8 rows relative to decoding one. Random weights: speed only,
the answers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from specvlm_sglang.tools.bench.environment import commit, cpu_name
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from tests.support import checkpoints
from tests.support.server import Server

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROMPT = 64
NEW_TOKENS = 64


def prompt_ids(length: int, seed: int) -> list[int]:
    """Random token ids that no other prompt shares a prefix with."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 400, (length,), generator=generator).tolist()


def decode_seconds(server: Server, prompt: list[int], new_tokens: int) -> float:
    """Seconds per token after the first: a long answer less a short one, prompt cached."""
    server.generate(prompt, max_new_tokens=1)
    whole = timed(lambda: server.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True))
    first = timed(lambda: server.generate(prompt, max_new_tokens=1, ignore_eos=True))
    return (whole - first) / (new_tokens - 1)


def timed(call: Any) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def plain_transformers(model: Any, prompt: list[int], new_tokens: int) -> float:
    """Seconds per token after the first of transformers' generate."""

    def run(count: int) -> float:
        settings = GenerationConfig(
            do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0
        )
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        return timed(
            lambda: model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        )

    return (run(new_tokens) - run(1)) / (new_tokens - 1)


def concurrent_rate(server: Server, prompts: list[list[int]], new_tokens: int) -> float:
    """Tokens per second of all prompts at once, prefill included."""

    def one(prompt: list[int]) -> None:
        server.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True)

    with ThreadPoolExecutor(len(prompts)) as pool:
        seconds = timed(lambda: list(pool.map(one, prompts)))
    return len(prompts) * new_tokens / seconds


def sequential_rate(model: Any, prompts: list[list[int]], new_tokens: int) -> float:
    """The same by transformers, one prompt after the other."""
    settings = GenerationConfig(
        do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0
    )

    def run() -> None:
        for prompt in prompts:
            ids = torch.tensor([prompt])
            mask = torch.ones_like(ids)
            model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)

    return len(prompts) * new_tokens / timed(run)


def measure(directory: Path, dtype: str, repeats: int) -> dict[str, Any]:
    """Measure one checkpoint of about 150M and one of about 370M parameters."""
    small = checkpoints.qwen2_text(directory / "m150", checkpoints.M150, dtype=DTYPES[dtype])
    large = checkpoints.qwen2_text(directory / "m350", checkpoints.M350, dtype=DTYPES[dtype])
    result: dict[str, Any] = {}
    with Server(small, *common_arguments(dtype), log=directory / "m150.log") as server:
        model = AutoModelForCausalLM.from_pretrained(small, dtype=DTYPES[dtype]).eval()
        decode_seconds(server, prompt_ids(PROMPT, 0), 8)
        plain_transformers(model, prompt_ids(PROMPT, 0), 8)
        ours, theirs, together, in_turn = [], [], [], []
        for repeat in range(repeats):
            prompt = prompt_ids(PROMPT, 10 + repeat)
            ours.append(1 / decode_seconds(server, prompt, NEW_TOKENS))
            theirs.append(1 / plain_transformers(model, prompt, NEW_TOKENS))
            prompts = [prompt_ids(PROMPT, 1000 + 8 * repeat + i) for i in range(8)]
            together.append(concurrent_rate(server, prompts, NEW_TOKENS))
            in_turn.append(sequential_rate(model, prompts, NEW_TOKENS))
        result["batch 1, decode tokens/s"] = row(ours, theirs)
        result["8 requests, tokens/s"] = row(together, in_turn)
        del model
    with Server(large, *common_arguments(dtype), log=directory / "m350.log") as server:
        decode_seconds(server, prompt_ids(8, 0), 8)
        short = [decode_seconds(server, prompt_ids(8, 30 + r), 32) for r in range(repeats)]
        long = [decode_seconds(server, prompt_ids(2000, 60 + r), 32) for r in range(repeats)]
        result["decode step, ms"] = {
            "8 tokens of context": 1e3 * statistics.median(short),
            "2000 tokens of context": 1e3 * statistics.median(long),
            "ratio": statistics.median(long) / statistics.median(short),
        }
    draft = checkpoints.qwen2_text(directory / "draft", checkpoints.DRAFT, dtype=DTYPES[dtype])
    arguments = (*common_arguments(dtype), *specvlm_arguments(draft, steps=7))
    with Server(large, *arguments, log=directory / "verify.log") as server:
        decode_seconds(server, prompt_ids(8, 0), 8)
        verify = [verify_seconds(server, prompt_ids(8, 30 + r), 32) for r in range(repeats)]
        result["verify 8 rows, ms"] = {
            "8 tokens of context": 1e3 * statistics.median(verify),
            "ratio to a decode step": statistics.median(verify) / statistics.median(short),
        }
    return result


def verify_seconds(server: Server, prompt: list[int], new_tokens: int) -> float:
    """Seconds per verify pass of one request, as the worker counts them."""

    def counted() -> dict[str, float]:
        state = server.server_info()["internal_states"][0]["specvlm"]
        return dict(state["phases"]["verify"])

    before = counted()
    server.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True)
    after = counted()
    return (after["seconds"] - before["seconds"]) / (after["calls"] - before["calls"])


def row(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Medians and the median of the paired ratios."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "sglang": statistics.median(ours),
        "transformers": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "lowest ratio": min(ratios),
        "highest ratio": max(ratios),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), options.dtype, options.repeats)
    record = {
        "command": " ".join(["python -m benchmarks.cpu_serving", *sys.argv[1:]]),
        "commit": commit(Path(__file__).parent),
        "cpu": cpu_name(),
        "cores": torch.get_num_threads(),
        "dtype": options.dtype,
        "torch": torch.__version__,
        "results": result,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
