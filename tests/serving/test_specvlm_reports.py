"""Reports of a server that streams disjoint segments (``--incremental-streaming-output``)."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.serving.specvlm import (
    assert_reports_of,
    chat_prompt,
    launch_beside_plain,
    stream_through_a_preemption,
)
from tests.support.server import Server

pytestmark = pytest.mark.serving


@pytest.fixture
def server(serve: Any, vl_target: Path) -> Server:
    found: Server = serve(vl_target, *launch_beside_plain(vl_target))
    return found


@pytest.mark.parametrize("detail", [False, True], ids=["report", "with detail"])
def test_every_segment_has_the_report_and_after_a_preemption_the_second_one(
    server: Server, clip_paths: list[Path], detail: bool
) -> None:
    prompt = chat_prompt("What happens?", video=True)
    chunks = stream_through_a_preemption(
        server, prompt, clip_paths[0], retention=0.5, detail=detail
    )
    lengths = list(accumulate(len(chunk["output_ids"]) for chunk in chunks))
    assert_reports_of(chunks, lengths, detail=detail)


def test_log_probabilities_are_still_sliced_by_segment(server: Server) -> None:
    sampling = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    chunks = list(
        server.stream(chat_prompt("What happens?"), sampling_params=sampling, return_logprob=True)
    )
    assert len(chunks) > 2
    for chunk in chunks:
        logprobs = chunk["meta_info"]["output_token_logprobs"]
        assert [token for _, token, _ in logprobs] == chunk["output_ids"]
        assert chunk["meta_info"]["specvlm"]["policy"] == "specvlm"
