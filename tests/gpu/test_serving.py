"""A SPECVLM server on a GPU says what a plain one says, whichever backend and graphs it uses.

The shipped pair in bfloat16. Where an answer differs from the plain server's, the two tokens must
tie there: the plain server's own logits for them differ by no more than `TIE`. One case runs on
the CPU too, so that these lines are tried where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from tests.gpu import plan
from tests.gpu.plan import CHAIN, ServerCase
from tests.serving.specvlm import meta, report, settled, state
from tests.support.messages import user
from tests.support.server import ChatAnswer, Server

pytestmark = pytest.mark.serving
TIE = 0.25
"""Logits of these models reach 32, where neighbouring bfloat16 numbers are 0.125 or 0.25 apart."""
NEW_TOKENS = 160
# Two servers share one GPU: neither may take what is free for its KV cache.
PLAIN = common_arguments("bfloat16", kv_tokens=65_536)


def on_gpu(case: ServerCase) -> Any:
    """Launch arguments that need CUDA, and what else of it."""
    found = plan.devices()
    marks = [pytest.mark.gpu]
    if found.count:
        reason = (
            f"needs {case.devices} GPUs of capability {case.capability}.0, "
            f"found {found.count} of {found.capability[0]}"
        )
        lacks = found.count < case.devices or found.capability[0] < case.capability
        marks.append(pytest.mark.skipif(lacks, reason=reason))
    return pytest.param(case.arguments, marks=marks, id=case.name)


SERVERS = [
    pytest.param(CHAIN, marks=pytest.mark.slow, id="CPU"),
    *(on_gpu(case) for case in plan.SERVERS),
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """Descriptions of three clips, questions about them, a text."""
    folder = tmp_path_factory.mktemp("gpu-clips")
    found = [user("Describe nothing.")]
    for seed in range(3):
        clip = folder / f"{seed}.mp4"
        scene = demo.make_clip(clip, 7_000_000_000 + seed, seconds=8 + 4 * seed)
        questions = [demo.description(scene)[0]]
        questions += [question for question, _ in demo.questions_and_answers(scene)[:2]]
        found += [user(clip, question) for question in questions]
    return found


def ask_all(
    server: Server, prompts: Sequence[list[dict[str, Any]]], at_once: int, **options: Any
) -> list[ChatAnswer]:
    def ask(messages: list[dict[str, Any]]) -> ChatAnswer:
        return server.chat(messages, max_tokens=NEW_TOKENS, return_meta_info=True, **options)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, prompts))


def backend_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """The attention backend that SPECVLM will have: two backends round differently."""
    if "--attention-backend" in arguments:
        start = list(arguments).index("--attention-backend")
        return tuple(arguments[start : start + 2])
    return ("--attention-backend", "flashinfer") if torch.cuda.is_available() else ()


def gap_at(plain: ChatAnswer, index: int, token: int) -> float:
    """How much less likely, in logits, the plain server held ``token`` at ``index`` of its answer.

    Infinite where the token is not among the likeliest that it reported.
    """
    entries = meta(plain)["output_top_logprobs"][index]
    logits = {entry[1]: entry[0] for entry in entries}
    return float(max(logits.values()) - logits[token]) if token in logits else float("inf")


def assert_same_but_for_ties(plain: ChatAnswer, found: ChatAnswer) -> None:
    """Equal tokens up to the first tie of the plain server's logits."""
    pairs = zip(plain.output_ids, found.output_ids, strict=False)
    for index, (wanted, got) in enumerate(pairs):
        if wanted != got:
            gap = gap_at(plain, index, got)
            assert gap <= TIE, f"token {index}: {got} instead of {wanted}, {gap:.3f} apart"
            return
    assert len(plain.output_ids) == len(found.output_ids)


@pytest.mark.parametrize("arguments", SERVERS)
def test_answers_are_the_plain_servers_and_the_draft_helps(
    serve: Any, prompts: list[list[dict[str, Any]]], arguments: tuple[str, ...]
) -> None:
    plain = serve(demo.target_path(), *PLAIN, *backend_of(arguments))
    wanted = ask_all(plain, prompts, 4, logprobs=True, top_logprobs=5)
    # The shipped draft's vision tower has one head, which two ranks cannot share.
    draft = demo.target_path() if "--tp-size" in arguments else demo.draft_path()
    server = serve(demo.target_path(), *PLAIN, *specvlm_arguments(draft), *arguments)
    for retention in (1.0, 0.1):
        options = {"custom_params": {"specvlm": {"retention": retention}}}
        for at_once in (1, 4):
            for one, other in zip(
                wanted, ask_all(server, prompts, at_once, **options), strict=True
            ):
                assert_same_but_for_ties(one, other)
                assert report(other)["cold"] is None
                assert report(other)["fallback"] is None
    described = ask_all(server, prompts[1:2], 1)[0]
    emitted, rounds = meta(described)["completion_tokens"] - 1, meta(described)["spec_verify_ct"]
    assert emitted / rounds >= 3.0, "the shipped pair accepts about four tokens a round"
    assert state(server)["draft_kv_tokens_in_use"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(CHAIN, marks=pytest.mark.slow, id="CPU"),
        *(on_gpu(case) for case in plan.SERVERS if case.name in ("defaults", "no overlap")),
    ],
)
def test_an_audit_finds_nothing_but_ties(
    serve: Any, prompts: list[list[dict[str, Any]]], arguments: tuple[str, ...]
) -> None:
    launch = (*PLAIN, *specvlm_arguments(demo.draft_path()), *arguments, "--specvlm-audit", "1")
    server = serve(demo.target_path(), *launch)
    before = settled(server)["audited"]
    for messages in prompts:
        ask_all(server, [messages], 1)
        settled(server)
    found = settled(server)
    assert found["audited"] - before == len(prompts)
    assert found["skipped"] == {}
    for mismatch in found["last_mismatches"]:
        assert 0 <= mismatch["gap"] <= TIE, mismatch


@pytest.mark.gpu
def test_a_draft_with_the_targets_weights_that_sees_everything_is_nearly_always_accepted(
    serve: Any, prompts: list[list[dict[str, Any]]]
) -> None:
    launch = (*PLAIN, *specvlm_arguments(demo.target_path(), retention=1.0), *CHAIN)
    answers = ask_all(serve(demo.target_path(), *launch), prompts, 4)
    tokens = sum(meta(answer)["completion_tokens"] - 1 for answer in answers)
    rounds = sum(meta(answer)["spec_verify_ct"] for answer in answers)
    # Six a round but for each answer's last one, and ties that draft and verify break apart.
    assert tokens / (rounds - len(answers)) >= 5.7
