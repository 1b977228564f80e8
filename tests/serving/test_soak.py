"""The load of `specvlm soak` on a server of the other SPECVLM tests: nothing differs or is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.tools.soak.load import Question
from specvlm_sglang.tools.soak.run import soak
from tests.serving import specvlm
from tests.serving.specvlm import CHAIN, ask, launch
from tests.support.server import Server

pytestmark = pytest.mark.serving

SECONDS = 15


@pytest.fixture(scope="module")
def server(serve: Any, vl_target: Path, vl_draft: Path) -> Server:
    started: Server = serve(vl_target, *launch(vl_draft, *CHAIN))
    return started


def test_a_mixed_load_with_cuts_and_aborts_changes_no_answer_and_leaves_nothing(
    server: Server, vl_target: Path, clip_paths: list[Path], image_paths: list[Path]
) -> None:
    asked, expected = [], {}
    options: dict[str, Any] = {"max_tokens": specvlm.NEW_TOKENS}
    for number, case in enumerate(specvlm.cases(vl_target, clip_paths, image_paths)):
        answer = ask(server, case)
        assert tuple(answer.output_ids) == case.expected
        for name, more in ((f"case {number}", {}), (f"case {number}, twice", {"n": 2})):
            asked.append(Question(name, case.messages, {**options, **more}))
            expected[name] = (answer.text,) * more.get("n", 1)
        asked.append(Question("sampled", case.messages, options, is_greedy=False))
    record = soak(server.url, server.processes, asked, expected, seconds=SECONDS, concurrency=8)
    shown = json.dumps(record.as_dict(), indent=1)
    assert record.is_good, shown
    # A fifth is cut or aborted; the rest is compared.
    assert record.requests > 20, shown
    assert record.taken_off > 0, shown
    assert record.compared > record.requests / 4, shown
