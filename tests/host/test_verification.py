"""What SGLang's sampling is given to verify; a recorder stands in for the sampling itself."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor
from sglang.srt.sampling.sampling_batch_info import ProcessorEntry
from sglang.srt.sampling.sampling_params import SamplingParams

from reference.penalties import Penalties, penalise, penalise_nodes
from reference.trees import DraftTree
from specvlm_sglang.host import verification
from specvlm_sglang.lossless.emitted import EmittedTokens
from specvlm_sglang.lossless.parameters import looks_back
from tests.support.draft_trees import DraftedTrees, draft

VOCABULARY = 40
ROW = 3


def request(output: list[int], row: int = ROW, **sampling: Any) -> SimpleNamespace:
    tokenizer = SimpleNamespace(additional_stop_token_ids={7}, eos_token_id=5)
    return SimpleNamespace(
        sampling_params=SamplingParams(**sampling),
        eos_token_ids={5, 6},
        tokenizer=tokenizer,
        output_ids=array("q", output),
        kv=SimpleNamespace(req_pool_idx=row),
    )


class Round:
    """One verification of ``reqs``; `run` returns what SGLang's own sampling would see."""

    def __init__(self, reqs: list[SimpleNamespace], trees: DraftedTrees, **info: Any) -> None:
        self.emitted = EmittedTokens(8, VOCABULARY, "cpu")
        for req in reqs:
            self.emitted.begin(
                req.kv.req_pool_idx,
                looks_back(req),
                req.output_ids[:-1],
                torch.tensor(req.output_ids[-1:]),
            )
        self.trees = trees
        _, child, sibling = trees.links
        self.verify_input = SimpleNamespace(
            draft_token=trees.tokens.flatten(),
            retrieve_next_token=child,
            retrieve_next_sibling=sibling,
            topk=trees.topk,
            spec_steps=trees.steps,
            draft_token_num=trees.nodes,
        )
        self.info = SimpleNamespace(
            **{
                "acc_additive_penalties": torch.full((len(reqs), VOCABULARY), 9.0),
                "acc_scaling_penalties": torch.full((len(reqs), VOCABULARY), 9.0),
                "has_custom_logit_processor": False,
                "logit_bias": None,
                **info,
            }
        )
        self.batch = SimpleNamespace(
            reqs=reqs,
            forward_mode=SimpleNamespace(is_idle=lambda: False),
            req_pool_indices=torch.tensor([req.kv.req_pool_idx for req in reqs]),
            req_pool_indices_cpu=torch.tensor([req.kv.req_pool_idx for req in reqs]),
            sampling_info=self.info,
        )
        generator = torch.Generator().manual_seed(1)
        self.raw = torch.randn(len(reqs) * trees.nodes, VOCABULARY, generator=generator)

    def run(self, grammar_mask: Any = None, accept: Any = None) -> torch.Tensor:
        logits = self.raw.clone()
        self.seen_mask: Any = "not called"

        def recorded(verify_input: Any, batch: Any, output: Any, mask: Any = None) -> Any:
            self.seen_mask = mask
            return accept or (
                torch.zeros(len(logits), dtype=torch.int32),
                torch.ones(len(batch.reqs), dtype=torch.int32),
                torch.zeros((len(batch.reqs), self.trees.steps + 1), dtype=torch.int32),
            )

        output = SimpleNamespace(next_token_logits=logits)
        with verification.judged_by(self.emitted):
            verification._exact(recorded)(
                self.verify_input, self.batch, output, grammar_mask=grammar_mask
            )
        return logits


def with_root(output: list[int], trees: DraftedTrees, number: int) -> list[int]:
    return [*output, int(trees.tokens[number, 0])]


def test_nodes_are_judged_by_their_own_request_and_sglangs_vectors_are_not_used() -> None:
    trees = draft(2, (2, 3, 6), vocabulary=12)
    outputs = [with_root([4, 4, 9], trees, 0), with_root([1], trees, 1)]
    reqs = [
        request(outputs[0], 3, frequency_penalty=1.0, repetition_penalty=1.2),
        request(outputs[1], 5),
    ]
    step = Round(reqs, trees)
    judged = step.run().view(2, trees.nodes, VOCABULARY)
    tree = DraftTree((0, *outputs[0]), trees.tokens[0].numpy(), trees.parents(0))
    raw = step.raw.view(2, trees.nodes, VOCABULARY)
    expected = penalise_nodes(
        tree, raw[0].double().numpy(), 1, Penalties(frequency=1.0, repetition=1.2)
    )
    np.testing.assert_allclose(judged[0].double().numpy(), expected, atol=1e-5)
    assert torch.equal(judged[1], raw[1])
    assert step.info.acc_additive_penalties is step.info.acc_scaling_penalties is None


def test_what_a_round_accepted_is_counted_for_the_next() -> None:
    trees = draft(1, (1, 2, 3), vocabulary=12)
    output = with_root([], trees, 0)
    step = Round([request(output, frequency_penalty=1.0)], trees)
    accepted = (
        torch.tensor([11, 11, 2], dtype=torch.int32),
        torch.tensor([2], dtype=torch.int32),
        torch.tensor([[0, 1, -1]], dtype=torch.int32),
    )
    step.run(accept=accepted)
    again = step.run()[0] - step.raw[0]
    expected = penalise(np.zeros(VOCABULARY), [*output, 11, 11], Penalties(frequency=1.0))
    np.testing.assert_allclose(again.double().numpy(), expected, atol=1e-5)


def test_a_batch_without_such_requests_goes_to_sglang_as_it_is() -> None:
    trees = draft(1, (1, 2, 3), vocabulary=12)
    step = Round([request(with_root([], trees, 0), temperature=0.5)], trees)
    mask = object()
    assert torch.equal(step.run(grammar_mask=mask), step.raw)
    assert step.seen_mask is mask


def test_a_preempted_request_is_prefilled_with_the_penalties_of_what_it_emitted() -> None:
    output = [4, 4, 9]
    emitted = EmittedTokens(8, VOCABULARY, "cpu")
    info = SimpleNamespace(
        acc_additive_penalties=torch.zeros((3, VOCABULARY)),
        acc_scaling_penalties=torch.ones((3, VOCABULARY)),
    )
    reqs = [
        request(output, frequency_penalty=1.0, repetition_penalty=1.2, min_new_tokens=5),
        request(output),
        request([], frequency_penalty=1.0),
    ]
    verification.resume(info, reqs, emitted)
    raw = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2))
    logits = raw + info.acc_additive_penalties[0]
    judged = torch.where(
        logits < 0,
        logits * info.acc_scaling_penalties[0],
        logits / info.acc_scaling_penalties[0],
    )
    expected = penalise(raw.double().numpy(), output, Penalties(frequency=1.0, repetition=1.2))
    expected[[5, 6, 7]] = -np.inf
    np.testing.assert_allclose(judged.double().numpy(), expected, atol=1e-5)
    assert not info.acc_additive_penalties[1:].any()
    assert (info.acc_scaling_penalties[1:] == 1).all()


def test_every_stop_token_of_sglangs_is_withheld() -> None:
    asked = looks_back(request([1], min_new_tokens=3, stop_token_ids=[9]))
    assert asked is not None
    assert asked.stop_tokens == (5, 6, 7, 9)
    assert looks_back(request([1], stop_token_ids=[9], temperature=0.7)) is None


class Bans:
    """A grammar that forbids one token."""

    def apply(self, logits: torch.Tensor) -> None:
        logits[:, 2] = -torch.inf


class Info(SimpleNamespace):
    def __len__(self) -> int:
        return 2


@pytest.fixture
def processed() -> Round:
    trees = draft(2, (2, 3, 6), vocabulary=12)
    reqs = [request(with_root([], trees, 0), 3), request(with_root([], trees, 1), 5)]
    entry = ProcessorEntry(DisallowedTokensLogitsProcessor(), [1], torch.tensor([1]))
    step = Round(
        reqs,
        trees,
        has_custom_logit_processor=True,
        custom_logit_processor={1: entry},
        custom_params=[None, {"token_ids": [0, 1]}],
        logit_bias=torch.eye(2, VOCABULARY),
        device="cpu",
    )
    step.info = step.batch.sampling_info = Info(**vars(step.info))
    return step


def test_custom_processors_see_one_row_a_request_after_bias_and_grammar(
    processed: Round,
) -> None:
    links = processed.verify_input.retrieve_next_token.clone()
    judged = processed.run(grammar_mask=Bans()).view(2, -1, VOCABULARY)
    raw = processed.raw.view(2, -1, VOCABULARY)
    assert judged[1, 0, [0, 1, 2]].isneginf().all()
    # Its other nodes are cut off, the other request's tree stays whole.
    assert processed.verify_input.retrieve_next_token[1, 0] == -1
    assert torch.equal(processed.verify_input.retrieve_next_token[0], links[0])
    assert torch.allclose(judged[0, :, 0], raw[0, :, 0] + 1)
    assert judged[0, :, 2].isneginf().all()
    assert processed.seen_mask is processed.info.logit_bias is None
