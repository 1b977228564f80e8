"""A request's whole life on `fake_cuda` tensors: prefill, scores, selection, draft, verify, end.

    python -m tests.support.fake_cuda_round < cases.json

reads a list of `Case` fields and prints what each did, step by step, and what the mode makes of
some lines that are known. Real are the worker, the draft worker, SGLang's speculative worker,
batches, pools, tables and attention metadata; the two models are those of `fake_cuda_models`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import traceback
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.support import fake_cuda
from tests.support.fake_cuda import FakeCuda, Seen, on_the_host
from tests.support.fake_cuda_models import ROWS, SAMPLING, Case, ModelWorker, Runner

TARGET_TOKENS = 8192
VIDEO, TEXT = (340, 10, 300), 25
"""A prompt's length, its video's first token and tokens; another prompt's length."""


def run(cases: Sequence[Case]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run these cases in a process of their own.

    Returns
    -------
    list of dict
        What each did: ``steps`` by name, and ``error``, None or a traceback.
    dict
        What was noted of each of `KNOWN_LINES`.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fake_cuda_round"],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return found["cases"], found["known lines"]


def _assign(index: Any) -> None:
    torch.zeros(4, device="cuda")[index] = 1.0


KNOWN_LINES: dict[str, Callable[[], Any]] = {
    "one element is assigned": lambda: _assign(2),
    "a range is assigned": lambda: _assign(slice(2, 3)),
    "a list of places is assigned": lambda: _assign([0, 2]),
    "a value is read": lambda: torch.zeros(4, device="cuda")[0].item(),
    "values are listed": lambda: torch.zeros(4, device="cuda").tolist(),
    "a mask selects": lambda: torch.zeros(4, device="cuda")[torch.ones(4, device="cuda") > 0],
    "a pageable copy": lambda: torch.zeros(4).to("cuda", non_blocking=True),
    "a pinned copy that blocks": lambda: torch.zeros(4).pin_memory().to("cuda"),
    "a pinned copy": lambda: torch.zeros(4).pin_memory().to("cuda", non_blocking=True),
    "a tensor made of a list": lambda: torch.tensor([1, 2], device="cuda"),
    "two devices": lambda: torch.zeros(4, device="cuda") + torch.zeros(4),
}
"""What the host waits for on a GPU, what it does not, and what fails there."""


def _note_known_lines(mode: FakeCuda) -> dict[str, str]:
    noted = {}
    for name, line in KNOWN_LINES.items():
        seen = mode.start()
        try:
            line()
        except RuntimeError:
            noted[name] = "fails"
        else:
            noted[name] = "waits" if seen.waits else "goes on"
    return noted


def _plain(seen: Seen) -> dict[str, Any]:
    waits: Counter[tuple[bool, str, str, str, str]] = Counter()
    for what, nearest, ours in seen.waits:
        if nearest is None:
            waits[False, "", what, "", str(ours)] += 1
        else:
            waits[nearest.ours, nearest.where, what, str(nearest), str(ours)] += 1
    keys = ("ours", "where", "what", "line", "our_line")
    return {
        "waits": [
            {**dict(zip(keys, wait, strict=True)), "times": times} for wait, times in waits.items()
        ],
        "ours": [f"{name} | {place}" for name, place in seen.ours],
        "launches": seen.launches,
        "mixes": seen.mixes,
    }


class Server:
    """One case: a worker, and a batch of requests that it serves."""

    def __init__(self, case: Case, mode: FakeCuda) -> None:
        self.case, self.mode = case, mode
        self.steps: dict[str, Any] = {}
        arguments = _arguments(case)
        runner = Runner(case, mode, arguments, False, None)
        length = runner.model_config.context_len
        ModelWorker.made = partial(Runner, case, mode, arguments, True, length)
        self.target = ModelWorker(runner=runner)
        self.worker = self._start(arguments)
        self.draft = self.worker._draft_worker

    def _start(self, arguments: Any) -> Any:
        from sglang.srt.managers.overlap_utils import FutureMap, decide_needs_cpu_seq_lens
        from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig

        runner = self.target.model_runner
        worker = runner.spec_algorithm.create_worker(arguments)(arguments, 0, 1234, self.target)
        runner.allocate(TARGET_TOKENS)
        known = {"max_total_num_tokens": TARGET_TOKENS, "max_running_requests": ROWS}
        names = {field.name for field in dataclasses.fields(MemoryPoolConfig)}
        worker.alloc_memory_pool(
            memory_pool_config=MemoryPoolConfig(
                **{name: value for name, value in known.items() if name in names}
            ),
            req_to_token_pool=runner.req_to_token_pool,
            token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        )
        runner.start_attention()
        if self.case.backend == "fa3" and self.case.topk == 1:
            # Brings what lets a chain do without a mask.
            runner.attn_backend.init_cuda_graph_state(ROWS, ROWS * 4)
        worker.init_attention_backends()
        draft = worker._draft_worker
        draft.cuda_graph_runner = draft.cuda_graph_runner_for_draft_extend = None
        if self.case.draft is None:
            # A copy of the target's, which notes what it does for itself.
            draft.draft_runner.passes, draft.draft_runner.read = [], set()
        else:
            draft.draft_runner.attn_backend.forward_extend = lambda *_, **__: None
        self.futures = FutureMap(
            "cuda",
            runner.spec_algorithm,
            runner.req_to_token_pool,
            decide_needs_cpu_seq_lens(worker.spec_v2_attn_backends),
        )
        return worker

    # Requests and batches.

    def request(self, row: int, policy: str | None, sampling: str, *, detail: bool = False) -> Any:
        """A request in this row; of text without a policy."""
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        with on_the_host():
            length = TEXT if policy is None else VIDEO[0]
            options: dict[str, Any] = {"detail": detail}
            if policy is not None:
                options["policy"] = policy
            parameters = SamplingParams(
                max_new_tokens=64,
                custom_params={"specvlm": options},
                **SAMPLING[sampling],
            )
            tokenizer = SimpleNamespace(additional_stop_token_ids=None, eos_token_id=3)
            parameters.normalize(tokenizer)
            ids = array("q", range(5, 5 + length))
            req = Req(f"{policy}-{row}", "", ids, parameters, vocab_size=512, eos_token_ids={3})
            req.tokenizer = tokenizer
            req.full_untruncated_fill_ids = array("q", ids)
            req.extend_end = length
            req.kv = SimpleNamespace(req_pool_idx=row, kv_allocated_len=length + 32)
            if policy is not None:
                req.multimodal_inputs = self._video(row)
        return req

    def _video(self, key: int) -> Any:
        from sglang.srt.managers.schedule_batch import (
            Modality,
            MultimodalDataItem,
            MultimodalInputs,
        )

        length, first, tokens = VIDEO
        frames = 3
        family = self.draft.family.name
        newline = family == "LLaVA-OneVision"
        spans = [(first, first + tokens - 1 + newline)]
        if family in ("Qwen3-VL", "GLM-V", "InternVL"):
            # What is between the frames would be text.
            edges = range(first, first + tokens + 1, tokens // frames)
            spans = [(start, stop - 1) for start, stop in pairwise(edges)]
        item = MultimodalDataItem(
            modality=Modality.VIDEO,
            feature=torch.zeros((4 * tokens, 1176)),
            offsets=spans,
            hash=key,
            model_specific_data={
                "video_grid_thw": torch.tensor([[frames, 20, 20]]),
                "video_grid": (frames, 10, 10),
            },
        )
        inputs = MultimodalInputs(mm_items=[item])
        if self.worker._has_mrope:
            inputs.mrope_positions = torch.arange(length).expand(3, -1).clone()
            inputs.mrope_position_delta = torch.tensor([[-200]])
        return inputs

    def _number(self, req: Any) -> None:
        """Positions of what was generated before a retraction, as SGLang appends them."""
        inputs = req.multimodal_inputs
        if inputs is None or inputs.mrope_positions is None:
            return
        with on_the_host():
            known = inputs.mrope_positions
            places = torch.arange(known.shape[1], req.extend_end)
            more = (places + inputs.mrope_position_delta).expand(3, -1)
            inputs.mrope_positions = torch.cat([known, more], dim=1)

    def _batch(self, reqs: Sequence[Any], mode: Any, **fields: Any) -> Any:
        from sglang.srt.managers.schedule_batch import ScheduleBatch
        from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

        batch = ScheduleBatch.__new__(ScheduleBatch)
        for one in dataclasses.fields(ScheduleBatch):
            value = None if one.default is dataclasses.MISSING else one.default
            if one.default_factory is not dataclasses.MISSING:
                value = one.default_factory()
            setattr(batch, one.name, value)
        runner = self.target.model_runner
        batch.reqs, batch.device, batch.forward_mode = list(reqs), "cuda", mode
        batch.model_config, batch.spec_algorithm = runner.model_config, runner.spec_algorithm
        batch.req_to_token_pool = runner.req_to_token_pool
        batch.token_to_kv_pool_allocator = runner.token_to_kv_pool_allocator
        batch.enable_overlap, batch.has_grammar, batch.return_logprob = True, False, False
        batch.multimodal_inputs = [req.multimodal_inputs for req in reqs]
        batch.req_pool_indices = torch.empty(len(reqs), dtype=torch.int64, device="cuda")
        with on_the_host():
            batch.req_pool_indices_cpu = torch.tensor([req.kv.req_pool_idx for req in reqs])
        for name, value in fields.items():
            setattr(batch, name, value)
        sampling = SamplingBatchInfo.from_schedule_batch(batch, runner.model_config.vocab_size)
        batch.sampling_info = sampling.copy_for_forward()
        return batch

    # Steps.

    def prefill(self, name: str, reqs: Sequence[Any]) -> None:
        """Prefill ``reqs``, whole."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        lengths = [req.extend_end for req in reqs]
        size, tokens = len(reqs), sum(lengths)
        with on_the_host():
            host_lengths = torch.tensor(lengths)
        batch = self._batch(
            reqs,
            ForwardMode.EXTEND,
            input_ids=torch.empty(tokens, dtype=torch.int64, device="cuda"),
            seq_lens=torch.empty(size, dtype=torch.int64, device="cuda"),
            seq_lens_cpu=host_lengths,
            seq_lens_sum=tokens,
            orig_seq_lens=torch.empty(size, dtype=torch.int32, device="cuda"),
            out_cache_loc=torch.empty(tokens, dtype=torch.int64, device="cuda"),
            prefix_lens=[0] * size,
            extend_lens=lengths,
            extend_num_tokens=tokens,
            extend_logprob_start_lens=[0] * size,
        )
        self._step(name, batch)

    def begin(self, name: str, reqs: Sequence[Any]) -> None:
        """The first round after a prefill: the drafts of ``reqs`` begin at its head."""
        self.round(name, reqs)
        for req in reqs:
            report = req.specvlm.report
            if report.pending or report.cold is not None:
                raise AssertionError(f"{req.rid} has no draft: {report.cold}")

    def round(self, name: str, reqs: Sequence[Any], grow: int = 0) -> None:
        """Draft and verify once; the target has allocated ``grow`` more slots for each request."""
        from sglang.srt.managers.overlap_utils import resolve_forward_inputs
        from sglang.srt.model_executor.forward_batch_info import ForwardMode
        from sglang.srt.speculative.eagle_info import EagleDraftInput

        drafted = EagleDraftInput()
        batch = self._batch(
            reqs,
            ForwardMode.DECODE,
            spec_info=drafted,
            seq_lens=torch.empty(len(reqs), dtype=torch.int64, device="cuda"),
            input_ids=None,
        )
        drafted.future_indices = batch.req_pool_indices
        for req in reqs:
            req.kv.kv_allocated_len += grow
        if self.futures.needs_cpu_seq_lens:
            with on_the_host():
                batch.seq_lens_cpu = torch.tensor([req.kv.kv_allocated_len - 32 for req in reqs])
                batch.seq_lens_sum = int(batch.seq_lens_cpu.sum())
        else:
            self.futures.resolve_seq_lens_cpu(batch)
        resolve_forward_inputs(batch, self.futures)
        self._step(name, batch)

    def _step(self, name: str, batch: Any) -> None:
        seen = self.mode.start()
        output = self.worker.forward_batch_generation(
            batch,
            on_publish=partial(self.futures.publish, batch.req_pool_indices),
            grammar_barrier=None,
        )
        self._note(name, seen)
        from sglang.srt.managers.overlap_utils import RelayPayload

        relayed = RelayPayload.from_draft_input(output.next_draft_input)
        self.futures.stash(batch.req_pool_indices, relayed)

    def _note(self, name: str, seen: Seen) -> None:
        runners = {"target": self.target.model_runner, "draft": self.draft.draft_runner}
        passes = {who: runner.passes for who, runner in runners.items()}
        read = self.draft.draft_runner.read
        self.steps[name] = {
            **_plain(seen),
            "passes": passes,
            "addresses": self._addresses(),
            "captured": sorted(read),
        }
        for runner in runners.values():
            runner.passes, runner.read = [], set()

    def _addresses(self) -> dict[str, int]:
        """Where that lies which every round reads."""
        kv, worker = self.draft.kv, self.worker
        tensors = {
            "offsets": kv.offsets,
            "draft M-RoPE": kv.mrope_deltas.table,
            "draft table": kv.req_to_token_pool.req_to_token,
            "draft columns": getattr(kv, "_columns", kv.offsets),
            "draft keys": self.draft.draft_runner.token_to_kv_pool.get_key_buffer(0),
            "draft embedding": self.draft.draft_runner.model.embedding.weight,
            "target M-RoPE": worker.mrope_deltas.table,
            "target table": self.target.model_runner.req_to_token_pool.req_to_token,
        }
        return {name: tensor.data_ptr() for name, tensor in tensors.items()}

    def live(self) -> None:
        """Prefill, rounds, and what happens between rounds."""
        kv = self.draft.kv
        usual = self.case.policies[0] if self.case.policies else None
        for policy in self.case.policies:
            first = [self.request(1, policy, "greedy"), self.request(2, None, "greedy")]
            self.prefill(f"prefill by {policy}", first)
            self.begin(f"beginning by {policy}", first)
        for sampling in self.case.sampling:
            reqs = [self.request(1, usual, sampling), self.request(2, None, sampling)]
            self.prefill(f"prefill {sampling}", reqs)
            self.begin(f"beginning {sampling}", reqs)
            self.round(f"growing round {sampling}", reqs, grow=4)
            self.round(f"round {sampling}", reqs)
        kv.free(1)
        self.round("round after an abort", reqs)
        detailed = [self.request(3, usual, "greedy", detail=True)]
        self.prefill("prefill with detail", detailed)
        for row in (1, 2):
            kv.free(row)
        self.round("round without a draft", reqs)
        for req in reqs:
            req.output_ids.extend([7, 8])
            req.refresh_fill_ids()
            req.extend_end = len(req.full_untruncated_fill_ids)
            self._number(req)
        self.prefill("prefill after a retraction", reqs)
        self.begin("beginning after a retraction", reqs)
        self.round("round after a retraction", reqs)
        seen = self.mode.start()
        kv.clear()
        kv.reset_allocator()
        self.worker.clear_cache_pool()
        self._note("flush", seen)
        again = [self.request(1, usual, "greedy"), self.request(2, None, "greedy")]
        self.prefill("prefill after a flush", again)
        self.begin("beginning after a flush", again)
        self.round("round after a flush", again)


def _arguments(case: Case) -> Any:
    from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish
    from sglang.srt.server_args import prepare_server_args

    line = {
        "--model-path": case.target,
        "--speculative-algorithm": "SPECVLM",
        "--attention-backend": case.backend,
        "--dtype": "bfloat16",
        "--page-size": str(case.page),
        "--speculative-num-steps": "3",
        "--speculative-eagle-topk": str(case.topk),
    }
    if case.draft is not None:
        line["--speculative-draft-model-path"] = case.draft
    arguments = prepare_server_args([part for pair in line.items() for part in pair])
    arguments.resolve_once()
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0))
    get_parallel().override_permanently(tp_group=SimpleNamespace(world_size=1))
    return arguments


def _without_compilers(mode: FakeCuda) -> None:
    """What SGLang and FlashInfer would compile is noted as launched."""
    from sglang.srt.speculative import eagle_utils, eagle_worker_v2, standalone_worker_v2

    import specvlm_sglang.worker as ours

    def load(name: Any, *_: Any, **__: Any) -> Any:
        return fake_cuda.Module(mode, str(name))

    modules: list[tuple[str, Any]] = list(sys.modules.items())
    for name, module in modules:
        if name.startswith("sglang") and "load_jit" in vars(module):
            module.load_jit = load

    from flashinfer.jit.core import JitSpec

    flashinfer: Any = JitSpec
    flashinfer.build_and_load = lambda spec, *_, **__: fake_cuda.Module(mode, spec.name)

    def probabilities(logits: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        mode.kernel("probabilities", [logits, *arguments, *named.values()])
        return torch.empty_like(logits)

    for name in ("sampling_softmax", "top_k_renorm_prob", "top_p_renorm_prob"):
        setattr(eagle_utils, name, probabilities)
    alone = {"draft_pp_context", "draft_tp_context"}
    alone |= {"speculative_moe_backend_context", "speculative_moe_a2a_backend_context"}
    for one in (eagle_worker_v2, standalone_worker_v2, ours):
        for name in alone & set(vars(one)):
            setattr(one, name, lambda *_, **__: nullcontext())


def main() -> None:
    """Run the cases on the standard input."""
    cases = [Case(**fields) for fields in json.load(sys.stdin)]
    mode = fake_cuda.pretend((9, 0))
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.speculative import standalone_worker_v2

    _without_compilers(mode)
    found = []
    for case in cases:
        steps: dict[str, Any] = {}
        error = None
        os.environ["SPECVLM_POSITIONS"] = case.positions or ""
        with mock.patch.object(standalone_worker_v2, "TpModelWorker", ModelWorker), mode:
            try:
                server = Server(case, mode)
                steps = server.steps
                server.live()
            except Exception:
                error = traceback.format_exc()
        found.append({"steps": steps, "error": error})
    with mode:
        known = _note_known_lines(mode)
    print(json.dumps({"cases": found, "known lines": known}))


if __name__ == "__main__":
    main()
