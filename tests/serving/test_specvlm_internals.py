"""Scores, kept tokens and draft logits in a real server, against transformers and the reference."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from reference.selection import select_video_tokens
from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.draft.kv_cache import GROWTH
from tests.serving import specvlm
from tests.serving.specvlm import CHAIN, ask, ask_all, launch, meta, report, state
from tests.support import hf, probe
from tests.support.faults import FAULTS, rid_of
from tests.support.server import Server

pytestmark = pytest.mark.serving

# float32 on both sides; the largest differences seen are a tenth of these.
SCORE_RTOL = 2e-4
LOGIT_ATOL = 2e-3


@pytest.fixture(scope="module")
def probed(
    serve: Any, vl_target: Path, vl_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Server, dict[str, str]]:
    environment = probe.install(tmp_path_factory.mktemp("probe"))
    # Chunks that cut videos and query rows apart.
    arguments = launch(vl_draft, *CHAIN, "--chunked-prefill-size", "16")
    return serve(vl_target, *arguments, **environment), environment


@pytest.fixture(scope="module")
def cases(vl_target: Path, clip_paths: list[Path], image_paths: list[Path]) -> list[specvlm.Case]:
    return specvlm.cases(vl_target, clip_paths, image_paths)


@pytest.fixture(scope="module")
def logit_atol() -> float:
    return LOGIT_ATOL


@cache
def load(directory: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def embedded(directory: Path, case: specvlm.Case) -> tuple[Any, torch.Tensor, torch.Tensor, Any]:
    """transformers' inputs, embeddings and M-RoPE ids of the full prompt, and the model."""
    model = load(directory)
    inputs = hf.model_inputs(directory, hf.render(directory, list(case.messages)))
    ids = inputs["input_ids"]
    with hf._conventions(True):
        embeddings = model.get_input_embeddings()(ids)
        for kind, token in (("video", "video_token_id"), ("image", "image_token_id")):
            pixels = inputs.get("pixel_values_videos" if kind == "video" else "pixel_values")
            if pixels is None:
                continue
            encode = getattr(model.model, f"get_{kind}_features")
            features = encode(pixels, inputs[f"{kind}_grid_thw"])
            features = getattr(features, "pooler_output", features)
            if isinstance(features, list | tuple):
                features = torch.cat(list(features))
            embeddings[ids == getattr(model.config, token)] = features
        positions, delta = hf.rope_index(directory, inputs)
    return inputs, embeddings, positions, (model, int(delta.reshape(-1)[0]))


def run(server: Server, environment: dict[str, str], case: specvlm.Case, **options: Any) -> Any:
    probe.clear(environment)
    answer = ask(server, case, **options)
    return answer, probe.records(environment)


@torch.no_grad()
def expected_scores(target: Path, case: specvlm.Case) -> np.ndarray:
    inputs, embeddings, positions, (model, _) = embedded(target, case)
    output = model.model.language_model(
        inputs_embeds=embeddings, position_ids=positions, output_attentions=True, use_cache=False
    )
    ids = inputs["input_ids"][0]
    video = torch.nonzero(ids == model.config.video_token_id)[:, 0]
    rows = slice(int(video[-1]) + 1, len(ids))
    maps = [layer[0].mean(0)[rows].mean(0) for layer in output.attentions]
    return torch.stack(maps).mean(0)[video].numpy()


def test_scores_equal_the_attention_of_transformers_and_select_as_the_reference(
    probed: tuple[Server, dict[str, str]], vl_target: Path, cases: list[specvlm.Case]
) -> None:
    server, environment = probed
    for case in cases:
        if not case.video_tokens:
            continue
        for _ in range(2):  # cold, then out of the radix cache
            _, records = run(server, environment, case, retention=0.3)
            scores = next(record["scores"] for record in records if record["kind"] == "scores")
            np.testing.assert_allclose(
                scores.numpy(), expected_scores(vl_target, case), rtol=SCORE_RTOL
            )
            prefill = next(record for record in records if record["kind"] == "prefill")
            kept = select_video_tokens(scores.numpy(), 0.3, SpecVLMConfig.top_p)
            inputs, _, positions, _ = embedded(vl_target, case)
            columns = kept_columns(inputs, kept, vl_target)
            assert torch.equal(prefill["mrope_positions"][:, :-1], positions[:, 0, columns])


def kept_columns(inputs: Any, kept: np.ndarray, directory: Path) -> torch.Tensor:
    ids = inputs["input_ids"][0]
    is_video = ids == load(directory).config.video_token_id
    video = torch.nonzero(is_video)[:, 0]
    return torch.cat([torch.nonzero(~is_video)[:, 0], video[torch.from_numpy(kept)]]).sort().values


@pytest.mark.parametrize("retention", [0.1, 0.5, 1.0])
@torch.no_grad()
def test_draft_logits_equal_transformers_on_the_pruned_prompt_at_prefill_and_in_every_round(
    probed: tuple[Server, dict[str, str]],
    vl_target: Path,
    vl_draft: Path,
    cases: list[specvlm.Case],
    retention: float,
    logit_atol: float,
) -> None:
    server, environment = probed
    rounds = in_parts = 0
    for case in cases:
        answer, records = run(server, environment, case, retention=retention)
        in_parts += sum(record.get("in_parts", False) for record in records)
        inputs, embeddings, positions, (model, delta) = embedded(vl_draft, case)
        scores = [record["scores"].numpy() for record in records if record["kind"] == "scores"]
        kept = (
            select_video_tokens(scores[0], retention, SpecVLMConfig.top_p)
            if scores
            else np.arange(case.video_tokens, dtype=np.int64)
        )
        columns = kept_columns(inputs, kept, vl_draft)
        emitted = [answer.output_ids[0]]
        length = inputs["input_ids"].shape[1]
        for record in records:
            if record["kind"] in ("scores", "pool"):
                continue
            if record["kind"] == "extend":
                emitted += record["tokens"].tolist()
                rounds += 1
            generated = torch.arange(length, length + len(emitted)) + delta
            hidden = model.model.language_model(
                inputs_embeds=torch.cat(
                    [
                        embeddings[:, columns],
                        model.get_input_embeddings()(torch.tensor([emitted])),
                    ],
                    dim=1,
                ),
                position_ids=torch.cat(
                    [positions[:, :, columns], generated.expand(3, 1, -1)], dim=2
                ),
                use_cache=False,
            ).last_hidden_state
            expected = model.lm_head(hidden[0, -1])[: record["logits"].shape[-1]]
            torch.testing.assert_close(record["logits"], expected, atol=logit_atol, rtol=1e-3)
        assert emitted[: len(answer.output_ids)] == answer.output_ids
    assert rounds >= 3 * len(cases)
    # The server's chunks of 16 tokens are the draft's too.
    assert in_parts >= sum(case.video_tokens > 0 for case in cases) * (retention == 1)


def test_the_draft_pool_holds_the_pruned_lengths_in_every_round_and_a_little_ahead(
    probed: tuple[Server, dict[str, str]], cases: list[specvlm.Case]
) -> None:
    server, environment = probed
    probe.clear(environment)
    jobs = [
        (case, {"retention": retention, "ignore_eos": True})
        for case in cases
        for retention in (0.1, 0.5)
    ]
    answers = ask_all(server, jobs, at_once=8)
    rounds = [record for record in probe.records(environment) if record["kind"] == "pool"]
    dropped = {
        meta(answer)["id"]: report(answer)["video_tokens"] - report(answer)["kept_video_tokens"]
        for answer in answers
    }
    assert max(len(record["allocated"]) for record in rounds) > 4
    for record in rounds:
        # Of each request: what the target holds, without what was pruned, and one slot more.
        pruned = [tokens + 1 - dropped[rid] for rid, tokens in record["allocated"].items()]
        assert sum(pruned) <= record["in_use"] <= sum(pruned) + GROWTH * len(pruned)


@pytest.mark.parametrize(
    ("step", "retention"),
    [("spans", 0.1), ("scores", 0.1), ("draft prefill", 0.1), ("a later part", 1.0)],
)
def test_a_failure_on_the_drafts_side_costs_a_request_its_draft_and_nothing_else(
    probed: tuple[Server, dict[str, str]], cases: list[specvlm.Case], step: str, retention: float
) -> None:
    server, environment = probed
    server.flush_cache()
    with probe.failing(environment, step):
        jobs = [(case, {"retention": retention}) for case in cases]
        answers = ask_all(server, jobs, at_once=4)
    for case, answer in zip(cases, answers, strict=True):
        assert tuple(answer.output_ids) == case.expected
        if case.video_tokens:
            assert report(answer)["cold"] == f"injected into {step}"
    assert state(server)["draft_kv_tokens_in_use"] == 0
    answer = ask(server, cases[1])
    assert tuple(answer.output_ids) == cases[1].expected
    assert report(answer)["cold"] is None


def test_faults_at_all_seams_at_once_change_no_answer_and_lose_no_slot(
    probed: tuple[Server, dict[str, str]], cases: list[specvlm.Case]
) -> None:
    """Each alone, and what it shows: tests/serving/test_faults.py."""
    server, _ = probed
    with_video = [case for case in cases if case.video_tokens]
    jobs = [
        (with_video[place % len(with_video)], {"retention": 0.3, "rid": rid_of(name)})
        for place, name in enumerate(FAULTS)
    ]
    jobs += [(case, {}) for case in cases]
    before = state(server)
    for (case, _), answer in zip(jobs, ask_all(server, jobs, at_once=8), strict=True):
        assert tuple(answer.output_ids) == case.expected
    after = state(server)
    cold = sum(fault.shows == "cold" for fault in FAULTS.values())
    assert after["cold_at_prefill"] - before["cold_at_prefill"] >= cold
    assert after["went_cold"] > before["went_cold"]
    assert after["draft_kv_tokens_in_use"] == 0
    assert after["draft_kv_tokens_free"] == after["draft_kv_tokens"]
    answer = ask(server, cases[1])
    assert tuple(answer.output_ids) == cases[1].expected
    assert report(answer)["cold"] is None
