"""Requests made up by hypothesis: each is answered or refused in seconds, and the server goes on.

A failure prints its input; `pytest --hypothesis-seed=N` repeats a run of the slow test.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specvlm_sglang.tools import client
from tests.serving.specvlm import CHAIN, chat_prompt, launch
from tests.support import fuzz
from tests.support.server import Server

pytestmark = pytest.mark.serving

SECONDS = 30.0
"""On a machine where others compute too; alone an input takes a fraction of one."""
LONGEST_MESSAGE = 700
EVERY = 25
QUESTION = chat_prompt("Which colours are there?")
SECRET = "canary-7f3a9c"


@dataclass
class Target:
    """The server under test, with what must not happen to it."""

    server: Server
    media: list[str]
    listener: socket.socket
    answer: list[int]
    statuses: Counter[int] = field(default_factory=Counter)

    def try_one(self, request: tuple[str, dict[str, Any]]) -> None:
        route, body = request
        started = time.monotonic()
        response = requests.post(
            self.server.url + route,
            data=json.dumps(body).encode("utf-8", "surrogatepass"),
            headers={"Content-Type": "application/json"},
            timeout=SECONDS,
        )
        said = response.text
        self.statuses[response.status_code] += 1
        assert time.monotonic() - started < SECONDS
        assert response.status_code == 200 or 400 <= response.status_code < 500, said[:2000]
        assert SECRET not in said
        if response.status_code != 200:
            assert len(said) < LONGEST_MESSAGE, said[:2000]
            for trace in ("Traceback", 'File "', "site-packages", "Internal server error"):
                assert trace not in said
        if sum(self.statuses.values()) % EVERY == 0:
            self.check()

    def check(self) -> None:
        """It answers as before, holds nothing, and nobody has called the port that scripts name."""
        ids = self.server.generate(QUESTION, max_new_tokens=8)["output_ids"]
        assert ids == self.answer
        assert client.specvlm_state(self.server.url)["draft_kv_tokens_in_use"] == 0
        with pytest.raises(BlockingIOError):
            self.listener.accept()


@pytest.fixture(scope="module")
def target(
    serve: Any, vl_target: Path, vl_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    server: Server = serve(vl_target, *launch(vl_draft, *CHAIN))
    folder = tmp_path_factory.mktemp("fuzz")
    canary = folder / "canary.txt"
    canary.write_text(f"{SECRET}\n" * 100)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        media = fuzz.write_media(folder, canary, listener.getsockname()[1])
        # A request may name the port itself; scripts among the media must not.
        media = [one for one in media if not one.startswith("http://127")]
        answer = list(server.generate(QUESTION, max_new_tokens=8)["output_ids"])
        yield Target(server, media, listener, answer)


def fuzzed(target: Target, examples: int, **options: Any) -> Callable[[], None]:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        target.try_one(data.draw(fuzz.requests(target.media)))

    return run


def test_some_inputs_are_answered_or_refused(target: Target) -> None:
    fuzzed(target, 60, derandomize=True)()
    target.check()
    assert target.statuses[200] > 5
    assert target.statuses[400] > 5


@pytest.mark.slow
def test_a_thousand_inputs_are_answered_or_refused(target: Target) -> None:
    before = sum(target.statuses.values())
    fuzzed(target, 1000, print_blob=True)()
    target.check()
    assert sum(target.statuses.values()) - before >= 1000
    print(dict(target.statuses))
