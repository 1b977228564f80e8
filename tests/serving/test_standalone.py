"""SGLang's own STANDALONE on the CPU platform: the target's tokens, and its distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from scipy.stats import chisquare

from tests.serving import plain
from tests.serving.plain import FLOAT32, Messages, ask_all, assert_as_transformers
from tests.support import checkpoints, hf
from tests.support.messages import user
from tests.support.server import Server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

CHAIN = ("--speculative-num-steps", "3", "--speculative-eagle-topk", "1")
TREE = (
    "--speculative-num-steps",
    "4",
    "--speculative-eagle-topk",
    "4",
    "--speculative-num-draft-tokens",
    "16",
)
PAGED, TREE_SHAPE = "chain of 3, pages of 16", "tree of 16"
SHAPES = {PAGED: (*CHAIN, "--page-size", "16"), TREE_SHAPE: TREE}

# Words of one to three letters: a next token has many likely values, but not too many to count.
VOCABULARY = 256
SAMPLES = 5000
SAMPLED_TOKENS = 5
SMALLEST_EXPECTED = 5
IMPROBABLE = 1e-4

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(checkpoint_dir: Path) -> Pair:
    """A target and a draft of a small vocabulary."""
    target = replace(checkpoints.TARGET, text_tokens=VOCABULARY)
    draft = replace(checkpoints.DRAFT, text_tokens=VOCABULARY)
    return (
        checkpoints.qwen2_text(checkpoint_dir / "standalone-target", target),
        checkpoints.qwen2_text(checkpoint_dir / "standalone-draft", draft, seed=1),
    )


@pytest.fixture(params=[PAGED, pytest.param(TREE_SHAPE, marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, serve: Any, pair: Pair) -> Server:
    target, draft = pair
    started: Server = serve(
        target,
        *FLOAT32,
        "--speculative-algorithm",
        "STANDALONE",
        "--speculative-draft-model-path",
        str(draft),
        "--random-seed",
        "7",
        *SHAPES[request.param],
    )
    return started


@pytest.fixture(scope="module")
def prompts() -> list[Messages]:
    words = ("red", "green", "blue", "small", "large", "circle", "bar", "ring")
    more = [user(f"Where does the {first} {word} go?") for first in words[:3] for word in words[3:]]
    return [*plain.text_prompts(), *more]


def test_greedy_tokens_are_the_targets_alone_and_eight_at_once(
    server: Server, pair: Pair, prompts: list[Messages]
) -> None:
    target, _ = pair
    server.flush_cache()
    assert_as_transformers(target, prompts, ask_all(server, prompts, at_once=1))
    answers = ask_all(server, prompts * 2, at_once=8)
    assert_as_transformers(target, prompts * 2, answers)
    lengths = [answer.raw["choices"][0]["meta_info"]["spec_accept_length"] for answer in answers]
    # Drafts were accepted, and others were rejected.
    assert 1.2 < sum(lengths) / len(lengths) < 3.5


def test_long_answers_stay_the_targets(server: Server, pair: Pair) -> None:
    target, _ = pair
    asked = [user("Describe this video."), user("What happens in the image?")]

    def long_answer(messages: Messages) -> list[int]:
        return server.chat(messages, max_tokens=150, ignore_eos=True).output_ids

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(long_answer, asked))
    for messages, answer in zip(asked, answers, strict=True):
        assert answer == hf.greedy(target, messages, 150, ignore_eos=True).output_ids


def prompt_ids(model: Path) -> list[int]:
    """A fixed prompt."""
    rendered = hf.render(model, user("What happens in the image?"))
    ids: list[int] = hf.model_inputs(model, rendered)["input_ids"][0].tolist()
    return ids


def draw(server: Server, prompt: Sequence[int], **sampling: Any) -> list[dict[str, Any]]:
    """`SAMPLES` continuations of one prompt."""
    answers: list[dict[str, Any]] = server.generate(
        [list(prompt)] * SAMPLES,
        max_new_tokens=SAMPLED_TOKENS,
        ignore_eos=True,
        **sampling,
    )
    return answers


@torch.no_grad()
def next_distributions(
    model: Path, sequences: Sequence[Sequence[int]], temperature: float, top_k: int | None
) -> torch.Tensor:
    """Float64 ``[sequences, vocabulary]`` by transformers; the sequences have one length."""
    logits = hf.load_model(model)(input_ids=torch.tensor(sequences)).logits[:, -1].double()
    probabilities = torch.softmax(logits / temperature, dim=1)
    if top_k is not None:
        smallest = probabilities.topk(top_k, dim=1).values[:, -1:]
        probabilities = torch.where(probabilities >= smallest, probabilities, 0.0)
    return probabilities / probabilities.sum(1, keepdim=True)


def probable_prefixes(
    model: Path, prompt: Sequence[int], temperature: float, top_k: int | None
) -> list[dict[tuple[int, ...], float]]:
    """Per length, the continuations expected at least `SMALLEST_EXPECTED` times, and how often."""
    levels: list[dict[tuple[int, ...], float]] = []
    frontier: dict[tuple[int, ...], float] = {(): float(SAMPLES)}
    for _ in range(SAMPLED_TOKENS):
        sequences = [[*prompt, *prefix] for prefix in frontier]
        following = next_distributions(model, sequences, temperature, top_k)
        counts = following * torch.tensor(list(frontier.values())).unsqueeze(1)
        prefixes = list(frontier)
        frontier = {
            (*prefixes[row], token): float(counts[row, token])
            for row, token in (counts >= SMALLEST_EXPECTED).nonzero().tolist()
        }
        levels.append(frontier)
    return levels


def p_values(
    outputs: Sequence[Sequence[int]], levels: Sequence[dict[tuple[int, ...], float]]
) -> list[float]:
    """Chi-square per length: the probable continuations, and all others as one."""
    found = []
    for length, cells in enumerate(levels, start=1):
        seen = Counter(tuple(output[:length]) for output in outputs)
        expected = list(cells.values())
        observed = [seen[prefix] for prefix in cells]
        others = SAMPLES - sum(expected)
        if others >= SMALLEST_EXPECTED:
            expected.append(others)
            observed.append(SAMPLES - sum(observed))
        else:
            expected[-1] += others
            observed[-1] += SAMPLES - sum(observed)
        found.append(float(chisquare(observed, expected).pvalue))
    return found


@pytest.mark.parametrize(
    ("temperature", "top_k"),
    [
        pytest.param(1.0, None, id="temperature 1"),
        pytest.param(0.7, 6, id="0.7 and top-k", marks=pytest.mark.slow),
    ],
)
def test_sampled_tokens_are_distributed_as_the_targets_own(
    server: Server, pair: Pair, temperature: float, top_k: int | None
) -> None:
    target, draft = pair
    prompt = prompt_ids(target)
    options = {} if top_k is None else {"top_k": top_k}
    answers = draw(server, prompt, temperature=temperature, **options)
    outputs = [answer["output_ids"] for answer in answers]
    assert {len(output) for output in outputs} == {SAMPLED_TOKENS}
    levels = probable_prefixes(target, prompt, temperature, top_k)
    assert min(p_values(outputs, levels)) > IMPROBABLE
    # The test can tell distributions apart: the draft's is refused.
    assert max(p_values(outputs, probable_prefixes(draft, prompt, temperature, top_k))) < IMPROBABLE
    rounds = [answer["meta_info"]["spec_verify_ct"] for answer in answers]
    # All but the first token came out of verify rounds, several of them from one round.
    assert 1 < sum(rounds) / SAMPLES < SAMPLED_TOKENS - 1


def test_a_video_sent_to_a_text_model_is_a_400_and_the_next_request_is_answered(
    server: Server, pair: Pair, clip_paths: list[Path]
) -> None:
    target, _ = pair
    with pytest.raises(openai.BadRequestError) as refused:
        server.chat(user(clip_paths[0], "What happens?"))
    assert "video" in refused.value.message
    asked = [user("What happens?")]
    assert_as_transformers(target, asked, ask_all(server, asked, at_once=1))
