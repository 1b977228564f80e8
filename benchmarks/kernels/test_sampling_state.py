"""What the exact sampling state costs a verify round on the host.

    pytest benchmarks/kernels/test_sampling_state.py

The hook round SGLang's ``eagle_sample``, whose own work is left out: batches in which nobody asks
for a penalty or a minimum (what every other batch pays), and batches in which all ask for all. The
vocabulary is Qwen2.5's.
"""

from array import array
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.sampling.sampling_params import SamplingParams

from specvlm_sglang.host import verification
from specvlm_sglang.lossless.emitted import EmittedTokens
from specvlm_sglang.lossless.parameters import looks_back
from tests.support.draft_trees import draft

SHAPES = {"chain of 6": (1, 5, 6), "tree of 26": (4, 5, 26)}
BATCHES = (1, 8, 32)
VOCABULARY = 152_064
ASKED = {
    "nobody asks": {},
    "all ask": {"repetition_penalty": 1.05, "frequency_penalty": 0.2, "min_new_tokens": 8},
}


def request(row, sampling):
    return SimpleNamespace(
        sampling_params=SamplingParams(**sampling),
        eos_token_ids={5, 6},
        tokenizer=SimpleNamespace(additional_stop_token_ids=None, eos_token_id=5),
        output_ids=array("q", [1, 2, 3]),
        kv=SimpleNamespace(req_pool_idx=row),
    )


def round_of(shape, batch, sampling):
    """One call of the hook, and what SGLang's sampling returns in it."""
    trees = draft(batch, SHAPES[shape], vocabulary=VOCABULARY, seed=batch)
    reqs = [request(row, sampling) for row in range(batch)]
    emitted = EmittedTokens(batch, VOCABULARY, "cpu")
    for row, req in enumerate(reqs):
        emitted.begin(row, looks_back(req), req.output_ids[:-1], torch.tensor([3]))
    _, child, sibling = trees.links
    verify_input = SimpleNamespace(
        draft_token=trees.tokens.flatten(),
        retrieve_next_token=child,
        retrieve_next_sibling=sibling,
        topk=trees.topk,
        spec_steps=trees.steps,
        draft_token_num=trees.nodes,
    )
    sampled = (
        torch.zeros(batch * trees.nodes, dtype=torch.int32),
        torch.full((batch,), 4, dtype=torch.int32),
        torch.zeros((batch, trees.steps + 1), dtype=torch.int32),
    )
    arguments = (
        verify_input,
        SimpleNamespace(
            reqs=reqs,
            forward_mode=SimpleNamespace(is_idle=lambda: False),
            req_pool_indices=torch.arange(batch),
            sampling_info=SimpleNamespace(has_custom_logit_processor=False, logit_bias=None),
        ),
        SimpleNamespace(next_token_logits=torch.zeros(batch * trees.nodes, VOCABULARY)),
    )
    hook = verification._exact(lambda *_: sampled)

    def run():
        with verification.judged_by(emitted):
            return hook(*arguments)

    return run, sampled


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("asked", ASKED)
def test_hook(benchmark, asked, shape, batch):
    benchmark.group = f"sampling state {batch} x {shape}, {asked}"
    run, sampled = round_of(shape, batch, ASKED[asked])
    assert benchmark(run) is sampled
