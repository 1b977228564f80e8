"""Every sampling field: answered under SPECVLM exactly as by a plain server, alone and in company.

The draft is the target itself, so that most tokens come out of accepted runs: a field that a run
ignores shows. `fields` says what is tried with which field, or why a field is not tried.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import specvlm_sglang
from tests.serving import fields, specvlm
from tests.serving.answers import PATHS, Answer, accepted, ask, ask_all, differences
from tests.serving.every_field import BASE, Case, Prompt, Prompts, body_of, cases, decisions
from tests.support import clips, hf
from tests.support.messages import user
from tests.support.server import ChatAnswer, Server

pytestmark = pytest.mark.serving

SHIPPED_TARGET = Path(specvlm_sglang.__file__).parent / "demo" / "models" / "target"
SERVED = (
    "--enable-custom-logit-processor",
    "--sampling-defaults",
    "model",
)
CHAIN = ("--speculative-num-steps", "5")
SHAPES = {
    "chain": CHAIN,
    "tree": specvlm.TREE,
    # 0, 1, 3 or 5 in every round: rounds without a draft among the others.
    "steps at random": (*CHAIN, "--speculative-adaptive"),
}
QUESTIONS = {
    fields.DESCRIBE: "Describe the video.",
    fields.LOOSE: "Say something about a red circle and a blue square.",
    fields.SHORT: "What does the red circle do after second two, and then?",
}
ALONE, IN_COMPANY = "alone", "eight at once"
ON_ONE, ON_OTHERS = "each field on one medium", "on the other media"
FAST = {(ON_ONE, "tree", IN_COMPANY)}
PARTS = [
    pytest.param(part, marks=[pytest.mark.slow] * (part == ON_OTHERS))
    for part in (ON_ONE, ON_OTHERS)
]
RUNS = [
    pytest.param(*run, marks=[pytest.mark.slow] * (run not in FAST))
    for run in itertools.product((ON_ONE, ON_OTHERS), SHAPES, (ALONE, IN_COMPANY))
]
SAMPLED_EVERY = 4
"""One sampled request beside so many compared ones, where eight run at once."""


@pytest.fixture(scope="module")
def target(checkpoint_dir: Path) -> Path:
    """The shipped target, whose checkpoint asks for greedy decoding with a repetition penalty."""
    directory = checkpoint_dir / "penalised-target"
    shutil.copytree(SHIPPED_TARGET, directory)
    config = directory / "generation_config.json"
    defaults = {"repetition_penalty": 1.05, "top_k": 1, "do_sample": True}
    config.write_text(json.dumps({**json.loads(config.read_text()), **defaults}))
    return directory


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ...]]:
    """What the prompts are about."""
    folder = tmp_path_factory.mktemp("media")
    return {
        "text": (),
        "image": (clips.write_image(folder / "image.png"),),
        "video": (clips.write_clip(folder / "clip.mp4"),),
    }


def _key(api: str, body: dict[str, Any]) -> str:
    return json.dumps([api, body], sort_keys=True)


class Plain:
    """The server whose answers are right; each is asked for once."""

    def __init__(self, serve: Any, target: Path) -> None:
        self._serve = serve
        self._target = target
        self._answers: dict[str, Answer] = {}

    @property
    def server(self) -> Server:
        """Running; it may have been stopped in between."""
        arguments = (*specvlm.FLOAT32, "--enable-metrics", *SERVED)
        server: Server = self._serve(self._target, *arguments)
        return server

    def __call__(self, api: str, body: dict[str, Any]) -> Answer:
        key = _key(api, body)
        if key not in self._answers:
            self._answers[key] = ask(self.server, api, body)
        return self._answers[key]

    def answer_at_once(self, asked: list[Case]) -> None:
        """Ask for all that was not asked for yet, eight at a time: plain decoding in company.

        What asks for no token waits to be asked for alone: where others share its pass, SGLang's
        plain decoding sends a log probability of a token that is not there.
        """
        jobs = [(case.api, case.body) for case in asked if not _wants_no_token(case.body)]
        missing = {key: job for job in jobs if (key := _key(*job)) not in self._answers}
        answers = ask_all(self.server, list(missing.values()))
        self._answers |= dict(zip(missing, answers, strict=True))


def _wants_no_token(body: dict[str, Any]) -> bool:
    sampling = body.get("sampling_params")
    return isinstance(sampling, dict) and sampling.get("max_new_tokens") == 0


@pytest.fixture(scope="module")
def plain(serve: Any, target: Path) -> Plain:
    return Plain(serve, target)


@pytest.fixture(scope="module")
def prompts(plain: Plain, target: Path, media: dict[str, tuple[Path, ...]]) -> Prompts:
    """Each question about each medium, with its plain answer."""
    decode = AutoTokenizer.from_pretrained(target).decode
    found = {}
    for medium, files in media.items():
        for question, words in QUESTIONS.items():
            messages = user(*files, words)
            answer = plain.server.chat(messages, **BASE)
            beyond = plain.server.chat(messages, **BASE, ignore_eos=True).output_ids
            seen = fields.Seen(answer.prompt_ids, answer.output_ids, beyond, messages, decode)
            native: dict[str, Any] = {"input_ids": answer.prompt_ids}
            if files:
                text = hf.render(target, messages).text
                native = {"text": text, f"{medium}_data": str(files[0])}
            found[medium, question] = Prompt(seen, native)
    return found


def chosen(prompts: Prompts, part: str) -> list[Case]:
    """The cases of a part."""
    return [case for case in cases(prompts) if case.first == (part == ON_ONE)]


def listed(found: list[tuple[str, list[str]]], asked: int) -> str:
    """All differences, two lines of each answer."""
    lines = [f"{name}: {line}" for name, lines in found for line in lines[:2]]
    return "\n".join([f"{len(found)} of {asked} differ:", *lines])


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_request_says_something_about_its_field_on_a_plain_server(
    plain: Plain, prompts: Prompts, part: str
) -> None:
    tried = chosen(prompts, part)
    mute = []
    for case in tried:
        with_field, without = plain(case.api, case.body), plain(case.api, case.without)
        if with_field.status != 200:
            mute.append((case.name, [str(with_field.more)[:300]]))
        elif case.keeps and with_field.choices != without.choices:
            mute.append((case.name, [f"{without.choices} becomes {with_field.choices}"]))
        elif not case.keeps and not differences(without, with_field):
            mute.append((case.name, ["the same without the field"]))
    assert not mute, listed(mute, len(tried))


def served(serve: Any, target: Path, shape: str) -> Server:
    """A SPECVLM server whose draft is the target itself."""
    pace = {"SPECVLM_PACE": "random:7"} if shape == "steps at random" else {}
    server: Server = serve(target, *specvlm.launch(target, *SHAPES[shape], *SERVED), **pace)
    return server


def sampled(prompts: Prompts, chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A request whose answer is left to chance, for company."""
    prompt = prompts[chance.choice(sorted(prompts))]
    sent = {
        "temperature": chance.choice([0.7, 1.0, 1.5]),
        "top_k": -1,
        chance.choice(["top_p", "min_p"]): chance.choice([0.3, 0.8]),
        chance.choice(["frequency_penalty", "presence_penalty"]): chance.choice([-1.0, 1.0]),
        "repetition_penalty": chance.choice([0.9, 1.0, 1.4]),
        "min_tokens": chance.choice([0, 12]),
        "logit_bias": {str(chance.randrange(400)): chance.choice([-5.0, 5.0])},
    }
    return "chat", body_of("chat", prompt, sent)


def in_company(server: Server, part: list[Case], prompts: Prompts) -> list[Answer]:
    """The answers to all cases, eight at once in another order and among sampled requests."""
    chance = random.Random(0)
    jobs: list[tuple[int | None, tuple[str, dict[str, Any]]]] = []
    for number, place in enumerate(chance.sample(range(len(part)), len(part))):
        jobs.append((place, (part[place].api, part[place].body)))
        if number % SAMPLED_EVERY == 0:
            jobs.append((None, sampled(prompts, chance)))
    compared = {}
    answers = ask_all(server, [job for _, job in jobs])
    for (place, _), answer in zip(jobs, answers, strict=True):
        if place is None:
            assert answer.status == 200, answer.more
        else:
            compared[place] = answer
    return [compared[place] for place in range(len(part))]


def drafted_nothing(case: Case, answer: Answer) -> list[str]:
    """Why a chat about a video was decoded without a draft, if it should have had one."""
    about_video = (case.api, case.medium) == ("chat", "video")
    if not about_video or "return_meta_info" not in case.body:
        return []
    if "custom_logit_processor" in case.body:
        return []
    limit = case.body.get("max_completion_tokens", case.body.get("max_tokens"))
    if limit is not None and limit <= 2:
        return []  # Nothing is drafted for one token more.
    cold = specvlm.report(ChatAnswer("", [], [], "", answer.raw))["cold"]
    return [] if cold is None else [f"drafted nothing: {cold}"]


@pytest.mark.parametrize(("part", "shape", "way"), RUNS)
def test_every_field_is_answered_as_by_a_plain_server(
    serve: Any, plain: Plain, prompts: Prompts, target: Path, part: str, shape: str, way: str
) -> None:
    asked = chosen(prompts, part)
    if way == IN_COMPANY:
        plain.answer_at_once(asked)
    right = [plain(case.api, case.body) for case in asked]
    server = served(serve, target, shape)
    if way == ALONE:
        answers = [ask(server, case.api, case.body) for case in asked]
    else:
        answers = in_company(server, asked, prompts)
    wrong = [
        (case.name, lines)
        for case, expected, answer in zip(asked, right, answers, strict=True)
        if (lines := differences(expected, answer) + drafted_nothing(case, answer))
    ]
    tokens, rounds = accepted(answers)
    if tokens <= 2 * rounds:
        wrong.append((shape, [f"mean accept length {tokens / rounds:.2f}: faults could hide"]))
    assert not wrong, listed(wrong, len(asked))


@pytest.mark.parametrize("shape", [pytest.param("chain", marks=pytest.mark.slow), "tree"])
def test_what_is_refused_names_the_field_and_costs_nobody_else(
    serve: Any, plain: Plain, prompts: Prompts, target: Path, shape: str
) -> None:
    video, text = (prompts[medium, fields.DESCRIBE] for medium in ("video", "text"))
    right = plain("chat", body_of("chat", video, {}))
    server = served(serve, target, shape)
    asked, wrong = 0, []
    for api in PATHS:
        for name, decision in decisions(api):
            if isinstance(decision, fields.Refused):
                asked += 1
                sent = {**decision.beside, name: decision.value}
                answer = ask(server, api, body_of(api, text, sent))
                if answer.status != 400 or decision.named not in str(answer.more):
                    line = f"status {answer.status}: {str(answer.more)[:200]}"
                    wrong.append((f"{shape}, {api}: {name}={decision.value}", [line]))
    assert not wrong, listed(wrong, asked)
    assert not differences(right, ask(server, "chat", body_of("chat", video, {})))
