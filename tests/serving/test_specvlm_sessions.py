"""Sessions of several turns, beside a plain server of the same target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.specvlm import (
    chat_prompt,
    launch_beside_plain,
    launch_plain,
    state,
    stream_through_a_preemption,
)
from tests.support.server import Server

pytestmark = pytest.mark.serving

QUESTIONS = ("What happens?", "And then?", "Is it red?")
STEPS = 3
COMPARED = ("prompt_tokens", "completion_tokens", "finish_reason")


@pytest.fixture
def servers(serve: Any, vl_target: Path) -> tuple[Server, Server]:
    """The plain one and the one under test, with nothing in their caches."""
    plain = serve(vl_target, *launch_plain())
    speculative = serve(vl_target, *launch_beside_plain(vl_target))
    for server in (plain, speculative):
        server.flush_cache()
    return plain, speculative


class Dialogue:
    """A session on one server; each turn goes on from the one before."""

    def __init__(self, server: Server, *, streaming: bool) -> None:
        self._server = server
        self._session = server.open_session(streaming=streaming)
        self.last: str | None = None

    def turn(
        self, question: str, video: Path | None = None, *, session: Any = None, **sampling: Any
    ) -> dict[str, Any]:
        """Ask; ``session`` has more ``session_params``."""
        params = {"id": self._session, "rid": self.last, **(session or {})}
        answer: dict[str, Any] = self._server.generate(
            chat_prompt(question, video=video is not None, is_first=self.last is None),
            request={
                "session_params": params,
                "video_data": None if video is None else [str(video)],
            },
            **sampling,
        )
        self.last = answer["meta_info"]["id"]
        return answer

    def close(self) -> None:
        self._server.close_session(self._session)


@pytest.fixture
def dialogues(
    servers: tuple[Server, Server], request: pytest.FixtureRequest
) -> Iterator[tuple[Dialogue, Dialogue]]:
    streaming = getattr(request, "param", False)
    both = [Dialogue(server, streaming=streaming) for server in servers]
    yield both[0], both[1]
    for dialogue in both:
        dialogue.close()


def same(plain: dict[str, Any], other: dict[str, Any]) -> None:
    assert other["output_ids"] == plain["output_ids"]
    assert other["text"] == plain["text"]
    for name in COMPARED:
        assert other["meta_info"][name] == plain["meta_info"][name], name


def overshoot(answer: dict[str, Any]) -> int:
    """Tokens that the last verify round accepted behind the answer's end."""
    meta = answer["meta_info"]
    histogram = meta["spec_correct_drafts_histogram"]
    emitted = 1 + sum((accepted + 1) * rounds for accepted, rounds in enumerate(histogram))
    return int(emitted) - int(meta["completion_tokens"])


def is_inside_a_round(index: int) -> bool:
    """Whether accepted tokens follow the answer's token ``index`` in its verify round."""
    return index > 0 and index % (STEPS + 1) != 0


def stop_for(server: Server, kind: str, video: Path | None) -> tuple[str, dict[str, Any]]:
    """A first question, and sampling parameters that end its answer inside a round."""
    questions = QUESTIONS if kind != "end token" else (*QUESTIONS, *map(chr, range(65, 91)))
    for question in questions:
        dialogue = Dialogue(server, streaming=False)
        ignore_eos = kind != "end token"
        answer = dialogue.turn(question, video, max_new_tokens=40, ignore_eos=ignore_eos)
        dialogue.close()
        ids = answer["output_ids"]
        fresh = [at for at in range(2, len(ids)) if ids[at] not in ids[:at]]
        at = next(at for at in fresh if is_inside_a_round(at))
        if kind == "stop token":
            return question, {"stop_token_ids": [ids[at]]}
        if kind == "stop string":
            return question, {"stop": [answer["text"][5:8]], "ignore_eos": True}
        if kind == "length":
            return question, {"max_new_tokens": at + 1, "ignore_eos": True}
        ends = answer["meta_info"]["finish_reason"]["type"] == "stop"
        if ends and is_inside_a_round(len(ids) - 1):
            return question, {}
    pytest.fail("no answer ends by itself inside a round")


@pytest.mark.parametrize(
    "dialogues", [False, True], ids=["session", "streaming session"], indirect=True
)
@pytest.mark.parametrize("media", ["text", "video"])
@pytest.mark.parametrize("kind", ["stop token", "stop string", "length", "end token"])
def test_turns_after_an_answer_that_ends_inside_an_accepted_run_are_those_of_plain_decoding(
    servers: tuple[Server, Server],
    dialogues: tuple[Dialogue, Dialogue],
    clip_paths: list[Path],
    media: str,
    kind: str,
) -> None:
    plain, speculative = dialogues
    video = clip_paths[0] if media == "video" else None
    question, stop = stop_for(servers[0], kind, video)
    turns = [
        (question, video, {"max_new_tokens": 40, **stop}),
        (QUESTIONS[1], None, {"max_new_tokens": 40, **stop}),
        (QUESTIONS[2], None, {"max_new_tokens": 20, "ignore_eos": True}),
    ]
    for number, (asked, shown, sampling) in enumerate(turns):
        expected = plain.turn(asked, shown, **sampling)
        answer = speculative.turn(asked, shown, **sampling)
        same(expected, answer)
        if number == 0:
            assert overshoot(answer) > 0
            ended = answer["meta_info"]["prompt_tokens"] + answer["meta_info"]["completion_tokens"]
        if number == 1:
            # Rows of tokens behind the stop are of no use to anybody.
            assert 0 < answer["meta_info"]["cached_tokens"] <= ended


@pytest.mark.parametrize(
    "params",
    [{"drop_previous_output": True}, {"offset": 20}, {"replace": True}],
    ids=lambda params: next(iter(params)),
)
def test_a_turn_that_rewrites_the_one_before_is_that_of_plain_decoding(
    servers: tuple[Server, Server], dialogues: tuple[Dialogue, Dialogue], params: dict[str, Any]
) -> None:
    question, stop = stop_for(servers[0], "stop token", None)
    for number in range(3):
        answers = [
            dialogue.turn(question, session=params if number else None, max_new_tokens=40, **stop)
            for dialogue in dialogues
        ]
        same(*answers)


@pytest.mark.parametrize(
    "dialogues", [False, True], ids=["session", "streaming session"], indirect=True
)
def test_each_turn_about_a_video_prunes_it_by_its_scores_and_leaves_no_draft_behind(
    servers: tuple[Server, Server], dialogues: tuple[Dialogue, Dialogue], clip_paths: list[Path]
) -> None:
    plain, speculative = dialogues
    pruned = {"custom_params": {"specvlm": {"retention": 0.5}}}
    for number, question in enumerate(QUESTIONS):
        video = None if number else clip_paths[1]
        sampling = {"max_new_tokens": 23, "ignore_eos": True}
        answer = speculative.turn(question, video, **sampling, **pruned)
        same(plain.turn(question, video, **sampling), answer)
        report = answer["meta_info"]["specvlm"]
        assert report["kept_video_tokens"] == report["video_tokens"] // 2 > 0
        assert report["cold"] is report["fallback"] is None
        assert report["scoring_seconds"] > 0
        assert state(servers[1])["draft_kv_tokens_in_use"] == 0


def test_a_streaming_session_survives_a_preemption(
    servers: tuple[Server, Server], clip_paths: list[Path]
) -> None:
    prompt = chat_prompt(QUESTIONS[0], video=True)
    expected = servers[0].generate(
        prompt, max_new_tokens=200, ignore_eos=True, request={"video_data": [str(clip_paths[0])]}
    )
    session = servers[1].open_session(streaming=True)
    chunks = stream_through_a_preemption(
        servers[1],
        prompt,
        clip_paths[0],
        request={"session_params": {"id": session}},
        retention=0.5,
    )
    servers[1].close_session(session)
    assert chunks[-1]["meta_info"]["num_retractions"] == 1
    assert [token for chunk in chunks for token in chunk["output_ids"]] == expected["output_ids"]
