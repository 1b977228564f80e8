"""Ready-made embeddings in the place where SGLang's models ask for theirs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_utils

from specvlm_sglang.host import embedding_override
from specvlm_sglang.host.embedding_override import embeddings_for_next_forward
from tests.support.hooks import unhooked


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with unhooked(("sglang.srt.managers.mm_utils", "prepare_mm_inputs")):
        embedding_override.install()
        yield


def ask(forwarded: dict[str, Any] | None = None) -> torch.Tensor:
    """As SGLang's models do; a batch without media is answered from the table.

    ``forwarded`` are the arguments that the language model will get.
    """
    table = torch.nn.Embedding.from_pretrained(torch.arange(12.0).view(6, 2))
    language_model = SimpleNamespace(get_input_embeddings=lambda: table)
    batch: Any = SimpleNamespace(
        forward_mode=SimpleNamespace(is_decode=lambda: True, is_target_verify=lambda: False),
        contains_mm_inputs=lambda: False,
        mm_inputs=None,
        input_embeds=None,
    )
    found: torch.Tensor = mm_utils.prepare_mm_inputs(
        input_ids=torch.tensor([1, 3]),
        forward_batch=batch,
        language_model=language_model,
        kwargs={} if forwarded is None else forwarded,
    )
    return found


PLAIN = [[2.0, 3.0], [6.0, 7.0]]


def test_without_an_override_sglangs_own_function_answers() -> None:
    assert ask().tolist() == PLAIN


def test_within_the_context_ours_answer_and_then_sglangs_again() -> None:
    given = torch.ones(5, 2)
    with embeddings_for_next_forward(given):
        assert ask() is given
        inner = torch.zeros(1, 2)
        with embeddings_for_next_forward(inner):
            assert ask() is inner
        assert ask() is given
    assert ask().tolist() == PLAIN


def test_deepstack_features_go_to_the_language_model_where_there_are_any() -> None:
    given, deepstack = torch.ones(5, 2), torch.ones(5, 6)
    forwarded: dict[str, Any] = {}
    with embeddings_for_next_forward(given, deepstack):
        assert ask(forwarded) is given
    assert forwarded == {"input_deepstack_embeds": deepstack}
    forwarded = {}
    with embeddings_for_next_forward(given):
        assert ask(forwarded) is given
    assert forwarded == {}


def test_a_failing_forward_pass_leaves_no_override_behind() -> None:
    def fail() -> None:
        with embeddings_for_next_forward(torch.ones(5, 2)):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert ask().tolist() == PLAIN


def test_another_thread_is_not_affected() -> None:
    seen = []
    with embeddings_for_next_forward(torch.ones(5, 2)):
        thread = threading.Thread(target=lambda: seen.append(ask().tolist()))
        thread.start()
        thread.join()
    assert seen == [PLAIN]


def test_installing_twice_wraps_once() -> None:
    first = mm_utils.prepare_mm_inputs
    embedding_override.install()
    assert mm_utils.prepare_mm_inputs is first
