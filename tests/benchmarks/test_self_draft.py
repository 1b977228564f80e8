"""The benchmark of self-drafting: what it counts and shows; its servers are not started."""

from pathlib import Path

import pytest

from benchmarks import self_draft
from benchmarks.self_draft import (
    POLICIES,
    RETENTIONS,
    Answer,
    Setting,
    ask,
    settings,
    summary,
    table,
)
from benchmarks.tinyvid.clips import Prompt

SHOWN = Setting("specvlm", 0.1)


def answers(*texts_and_rounds: tuple[str, int]) -> list[Answer]:
    return [Answer(text, 21, rounds) for text, rounds in texts_and_rounds]


def test_accept_length_leaves_out_the_first_token_and_wrong_answers_are_counted_in_both_forms():
    plain = answers(("a", 0), ("b", 0))
    line = summary(SHOWN, answers(("a", 4), ("b", 4)), answers(("a", 10), ("x", 10)), plain)
    assert line["accept_length_self"] == 5.0
    assert line["accept_length_model"] == 2.0
    assert line["answers_unlike_plain"] == 1


def test_the_table_has_a_line_a_setting():
    line = summary(SHOWN, answers(("a", 4)), answers(("a", 10)), answers(("a", 0)))
    assert table([line]).splitlines()[-1] == "| specvlm | 0.1 | 5.00 | 2.00 | 0 |"


def test_fewer_layers_that_draft_have_a_column_each_and_their_wrong_answers_count():
    plain = answers(("a", 0))
    line = summary(SHOWN, plain, answers(("a", 10)), plain, {2: answers(("x", 8))})
    assert line["accept_length_2_layers"] == 2.5
    assert line["answers_unlike_plain"] == 1
    head, _, row = table([line]).splitlines()
    assert head.endswith("| draft model | 2 layers | answers unlike plain's |")
    assert row.endswith("| 2.00 | 2.50 | 1 |")


@pytest.mark.parametrize("setting", [None, Setting("none", 1.0)])
def test_a_plain_server_is_asked_without_our_options(monkeypatch, setting):
    asked = {}

    def chat(url, messages, max_tokens, **fields):
        asked.update(fields)
        meta = {} if setting is None else {"spec_verify_ct": 3}
        choice = {"message": {"content": "yes"}, "meta_info": meta}
        return {"choices": [choice], "usage": {"completion_tokens": 7}}

    monkeypatch.setattr(self_draft, "chat", chat)
    monkeypatch.setattr(self_draft, "messages_of", lambda clip, question: [question])
    prompt = Prompt(None, Path("clip.mp4"), 2, "caption", "What?", "", "plain")
    found = ask("http://127.0.0.1:1", prompt, setting)
    assert found == Answer("yes", 7, 0 if setting is None else 3)
    assert asked == ({} if setting is None else {"custom_params": {"specvlm": setting._asdict()}})


def test_every_policy_is_asked_at_every_retention_and_the_whole_video_once():
    found = settings(POLICIES, RETENTIONS)
    assert found.count(Setting("none", 1.0)) == 1
    assert len(set(found)) == len(found) == 1 + 9
