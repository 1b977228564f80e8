"""Shared by the SPECVLM serving tests: launch arguments, prompts, and expected answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from specvlm_sglang.tools.launch import specvlm_arguments
from tests.support import hf
from tests.support.messages import user
from tests.support.server import ChatAnswer, Server

FLOAT32 = ("--dtype", "float32", "--specvlm-exact-vision")
CHAIN = ("--speculative-num-steps", "3")
TREE = (
    "--speculative-num-steps",
    "4",
    "--speculative-eagle-topk",
    "4",
    "--speculative-num-draft-tokens",
    "16",
)
BESIDE_PLAIN = ("--enable-streaming-session", "--chunked-prefill-size", "32")
"""Of a plain and a SPECVLM server whose answers are compared field by field."""
NEW_TOKENS = 24
POLICY_FILE = Path(__file__).parents[2] / "examples" / "pruning_policy.py"
OWN_POLICY = "frame-peaks"
"""Every server here knows the example's policy beside the project's own."""


def launch(draft: Path | None, *more: str) -> tuple[str, ...]:
    """Launch arguments of a SPECVLM server with this draft; None: the target drafts for itself."""
    return (
        *FLOAT32,
        *specvlm_arguments(draft, policy_file=POLICY_FILE),
        "--enable-metrics",
        *more,
    )


def launch_plain() -> tuple[str, ...]:
    """Launch arguments of the plain server of `BESIDE_PLAIN`."""
    return (*FLOAT32, *BESIDE_PLAIN)


def launch_beside_plain(target: Path) -> tuple[str, ...]:
    """Launch arguments of its SPECVLM server, which drafts with the target's own weights.

    All that such a draft proposes is accepted where it sees everything: an answer that ends in a
    verify round has accepted tokens behind its end.
    """
    return launch(
        target,
        *CHAIN,
        *BESIDE_PLAIN,
        "--specvlm-retention",
        "1.0",
        "--incremental-streaming-output",
    )


def chat_prompt(question: str, *, video: bool = False, is_first: bool = True) -> str:
    """A user's turn and the beginning of the answer, as the tests' chat template renders them."""
    shown = "<|vision_start|><|video_pad|><|vision_end|>" if video else ""
    turn = f"<|im_start|>user\n{shown}{question}<|im_end|>\n<|im_start|>assistant\n"
    return turn if is_first else f"<|im_end|>\n{turn}"


@dataclass(frozen=True)
class Case:
    """A prompt with the tokens that transformers answers."""

    messages: tuple[dict[str, Any], ...]
    video_tokens: int
    expected: tuple[int, ...]


_answers: dict[tuple[Path, str], hf.Answer] = {}


def _expected(target: Path, messages: list[dict[str, Any]]) -> hf.Answer:
    key = (target, repr(messages))
    if key not in _answers:
        _answers[key] = hf.greedy(target, messages, NEW_TOKENS)
    return _answers[key]


def cases(target: Path, clip_paths: Sequence[Path], image_paths: Sequence[Path]) -> list[Case]:
    """Text, one video, a second turn, two videos, video and image in either order."""
    first, second, *_ = clip_paths
    image = image_paths[0]
    prompts = {
        "text": user("Which colours are there?"),
        "video": user(first, "What happens?"),
        "other video": user(second, "What happens, and where does the circle go then?"),
        "second turn": [
            *user(first, "What happens?"),
            {"role": "assistant", "content": "The red circle moves."},
            *user("And then?"),
        ],
        "two videos": user(first, "and", second, "Compare them."),
        "video, image": user(first, image, "Is it there?"),
        "image, video": user(image, second, "Is it there?"),
        "question first": user("Look at this:", first, "Now tell me."),
    }
    built = []
    for messages in prompts.values():
        answer = _expected(target, messages)
        built.append(Case(tuple(messages), _video_tokens(target, answer), tuple(answer.output_ids)))
    return built


@cache
def _video_token_id(target: Path) -> int:
    return int(hf.load_model(target).config.video_token_id)


def _video_tokens(target: Path, answer: hf.Answer) -> int:
    return answer.prompt_ids.count(_video_token_id(target))


def ask(server: Server, case: Case, **options: Any) -> ChatAnswer:
    """Send one case; options of SPECVLM's go into ``custom_params``."""
    own = ("retention", "policy", "draft_video_tokens")
    chosen = {key: options.pop(key) for key in own if key in options}
    if chosen:
        options["custom_params"] = {"specvlm": chosen}
    options = {"max_tokens": NEW_TOKENS, **options}
    return server.chat(case.messages, return_meta_info=True, **options)


def ask_all(server: Server, jobs: Sequence[tuple[Case, dict[str, Any]]], at_once: int) -> list[Any]:
    """Send many cases, ``at_once`` of them concurrently; answers in order."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda job: ask(server, job[0], **job[1]), jobs))


def meta(answer: ChatAnswer) -> dict[str, Any]:
    """SGLang's ``meta_info`` of an answer."""
    found: dict[str, Any] = answer.raw["choices"][0]["meta_info"]
    return found


def report(answer: ChatAnswer) -> dict[str, Any]:
    """SPECVLM's part of an answer's ``meta_info``."""
    found: dict[str, Any] = meta(answer)["specvlm"]
    return found


def state(server: Server) -> dict[str, Any]:
    """SPECVLM's part of ``/server_info``."""
    found: dict[str, Any] = server.server_info()["internal_states"][0]["specvlm"]
    return found


AUDIT_SECONDS = 300.0


def audit(server: Server) -> dict[str, Any]:
    """What ``/server_info`` says of the audit."""
    found: dict[str, Any] = state(server)["audit"]
    return found


def wait_for_audit(server: Server, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first audit state that is as wanted. Looking does not disturb a replay."""
    deadline = time.monotonic() + AUDIT_SECONDS
    while time.monotonic() < deadline:
        found = audit(server)
        if holds(found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"not seen in {AUDIT_SECONDS:g} s; last: {found}\n{server.log_tail()}")


def eventually_idle(server: Server) -> bool:
    """Whether the draft's pool becomes empty within 20 s."""
    for _ in range(40):
        if state(server)["draft_kv_tokens_in_use"] == 0:
            return True
        time.sleep(0.5)
    return False


def settled(server: Server) -> dict[str, Any]:
    """The audit's state once all is replayed."""
    return wait_for_audit(server, lambda found: found["replaying"] is None and not found["waiting"])


def stream_through_a_preemption(
    server: Server,
    prompt: str,
    video: Path,
    *,
    request: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """All chunks of an answer about a video that is prefilled a second time on its way.

    ``options`` are those of `specvlm_sglang.request`, ``request`` has more fields.
    """
    sampling = {"temperature": 0, "max_new_tokens": 200, "ignore_eos": True}
    sampling["custom_params"] = {"specvlm": options}
    chunks = []
    fields = {"video_data": [str(video)], "sampling_params": sampling, **(request or {})}
    for chunk in server.stream(prompt, **fields):
        chunks.append(chunk)
        if len(chunks) == 3:
            server.preempt_all()
    return chunks


def assert_reports_of(
    chunks: Sequence[dict[str, Any]], lengths: Sequence[int], *, detail: bool
) -> None:
    """Every chunk has the last report; with detail, one origin for each of ``lengths`` tokens."""
    reports = [chunk["meta_info"]["specvlm"] for chunk in chunks]
    last = chunks[-1]["meta_info"]
    assert last["num_retractions"] == 1
    # Two prefills took their own time. With a prefill's own token it is known only where detail was
    # asked for: otherwise the draft begins a round later.
    times = [found["scoring_seconds"] for found in reports]
    known = [time for time in times if time]
    assert len(set(known)) == 2
    assert known[-1] != known[0]
    # Pieces that wait for the client come together, and have what the last of them knows.
    assert times.count(0.0) <= (0 if detail else 2)
    if not detail:
        assert all("detail" not in found for found in reports)
        return
    assert [len(found["detail"]["origins"]) for found in reports] == list(lengths)
    targets = reports[-1]["detail"]["origins"].count("target")
    # Of each round but the last, whose own token the length limit may have cut, and each prefill.
    assert targets - 2 in (last["spec_verify_ct"] - 1, last["spec_verify_ct"])
