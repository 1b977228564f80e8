"""SGLang's scheduler in a process of its own, driven step by step: a server without HTTP.

    python -m tests.support.one_process < job.json

Prompts are token ids; all of a group are handed in together. Real are the scheduler, its pools and
queues, the models and the worker; there is no tokenizer and no network, so a start takes half of
a server's time. With several ranks each runs in its own process, all on the same job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from specvlm_sglang.host import ranks as host_ranks
from specvlm_sglang.tools.server import free_port

STEPS = 2000
PATIENCE_SECONDS = 5.0
"""Of a rank that failed."""


def run(
    model: Path,
    arguments: Sequence[str],
    groups: Sequence[Sequence[Sequence[int]]],
    *,
    new_tokens: int,
    hidden: float = 0.0,
    ranks: int = 1,
    failing: Mapping[int, str] | None = None,
) -> list[dict[str, Any]]:
    """Serve these groups of prompts one after another.

    Parameters
    ----------
    model, arguments
        Checkpoint and launch arguments.
    groups
        Prompts that are there at once, by group.
    new_tokens
        Of each answer at most.
    hidden
        Share of the prompt tokens, drawn at random, that a target that drafts for itself does not
        read.
    ranks
        ``--tp-size``.
    failing
        By rank, the method of its draft worker that raises once, at its first call. A rank that
        fails waits `PATIENCE_SECONDS` for the others.

    Returns
    -------
    list of dict
        Of each rank: ``answers`` by group, each with ``ids``, ``histogram`` and ``cold``;
        ``free``, KV slots before and after each group; ``went_cold``, drafts that were lost;
        ``pace``, what the policy of steps knows, None without ``--speculative-adaptive``.

    Raises
    ------
    RuntimeError
        A rank ended with an error; with the last words of all that did.
    """
    line = ["--model-path", str(model), *arguments]
    if ranks > 1:
        line += ["--tp-size", str(ranks), "--dist-init-addr", f"127.0.0.1:{free_port()}"]
    started = []
    for rank in range(ranks):
        job = {
            "line": line,
            "groups": groups,
            "new_tokens": new_tokens,
            "hidden": hidden,
            "rank": rank,
            "failing": (failing or {}).get(rank),
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.one_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(job))
        child.stdin.close()
        child.stdin = None
        started.append(child)
    said = [child.communicate() for child in started]
    failed = [
        errors[-3000:] for child, (_, errors) in zip(started, said, strict=True) if child.returncode
    ]
    if failed:
        raise RuntimeError("\n".join(failed))
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


class _Driver:
    """A scheduler and what is handed to it."""

    def __init__(self, line: Sequence[str], rank: int) -> None:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.managers.scheduler import Scheduler, configure_scheduler_process
        from sglang.srt.runtime_context import SpawnRanks, publish
        from sglang.srt.server_args import PortArgs, prepare_server_args

        arguments = prepare_server_args(list(line))
        arguments.resolve_once()
        ports = PortArgs.init_new(arguments)
        publish(
            arguments,
            role="scheduler",
            ranks=SpawnRanks(world_rank=rank, dp_rank=None, gpu_id=0),
        )
        configure_scheduler_process(
            arguments,
            0,
            display_tp_rank=None,
            display_dp_rank=None,
            display_moe_ep_rank=None,
        )
        self.scheduler: Any = Scheduler(arguments, ports)

    def hide(self, share: float) -> None:
        """Let drafts leave out tokens of any kind; the first and the last ones stay."""
        kv = self.scheduler.draft_worker.draft_worker.kv
        begin = kv.begin

        def begin_with_less(row: int, kept: torch.Tensor, filled: int, delta: int) -> None:
            chance = torch.rand(kept.shape[0], generator=torch.Generator().manual_seed(filled))
            stays = chance >= share
            stays[0] = True
            stays[-4:] = True
            begin(row, kept[stays], filled, delta)

        kv.begin = begin_with_less

    def fail(self, method: str) -> None:
        """Let this method of the draft worker raise once."""
        draft = self.scheduler.draft_worker.draft_worker
        original = getattr(draft, method)
        host_ranks.PATIENCE_SECONDS = PATIENCE_SECONDS

        def failing(*arguments: Any, **options: Any) -> Any:
            setattr(draft, method, original)
            raise ZeroDivisionError(f"injected into {method}")

        setattr(draft, method, failing)

    def serve(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[dict[str, Any]]:
        """Answers to prompts that are there at once."""
        scheduler, reqs = self.scheduler, []
        for number, prompt in enumerate(prompts):
            scheduler.handle_generate_request(self._request(f"{number}", prompt, new_tokens))
            reqs.append(scheduler.waiting_queue[-1])
        for _ in range(STEPS):
            plan = scheduler.get_next_batch_to_run(
                running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
            )
            scheduler.running_batch, batch = plan.running_batch, plan.batch_to_run
            if batch:
                scheduler.process_batch_result(batch, scheduler.run_batch(batch))
            scheduler.last_batch = batch
            if not batch and all(req.finished() for req in reqs):
                break
        scheduler.flush_cache(empty_cache=False)
        return [
            {
                "ids": list(req.output_ids_through_stop),
                "histogram": req.spec_correct_drafts_histogram,
                "cold": req.specvlm.report.cold if hasattr(req, "specvlm") else None,
            }
            for req in reqs
        ]

    def went_cold(self) -> int:
        """Drafts that were lost."""
        return int(self.scheduler.draft_worker.observer.totals.went_cold)

    def free_slots(self) -> int:
        """KV slots of the target that nobody holds."""
        return int(self.scheduler.token_to_kv_pool_allocator.available_size())

    def pace(self) -> dict[str, Any] | None:
        """What ``/server_info`` shows of the policy that chooses steps."""
        pace = self.scheduler.draft_worker.pace
        return None if pace is None else dict(pace.state())

    def _request(self, rid: str, prompt: Sequence[int], new_tokens: int) -> Any:
        import inspect

        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        sampling = SamplingParams(temperature=0, max_new_tokens=new_tokens, ignore_eos=True)
        sampling.normalize(self.scheduler.tokenizer)
        fields = inspect.signature(TokenizedGenerateReqInput).parameters
        nothing = {
            name: None for name, one in fields.items() if one.default is inspect.Parameter.empty
        }
        given: dict[str, Any] = {
            "rid": rid,
            "input_text": "",
            "input_ids": array("q", prompt),
            "sampling_params": sampling,
            "return_logprob": False,
            "logprob_start_len": -1,
            "top_logprobs_num": 0,
            "stream": False,
        }
        return TokenizedGenerateReqInput(**nothing | given)


def main() -> None:
    """Do the job on the standard input."""
    job = json.load(sys.stdin)
    driver = _Driver(job["line"], job["rank"])
    if job["hidden"]:
        driver.hide(job["hidden"])
    if job["failing"]:
        driver.fail(job["failing"])
    answers, free = [], [driver.free_slots()]
    with torch.no_grad():
        for group in job["groups"]:
            answers.append(driver.serve(group, job["new_tokens"]))
            free.append(driver.free_slots())
    found = {"answers": answers, "free": free}
    found |= {"went_cold": driver.went_cold(), "pace": driver.pace()}
    print(json.dumps(found), flush=True)
    # Its sockets and threads would wait for a server that is not there.
    os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
