"""Faults in a probed server (`tests.support.probe`), chosen by each request through its ``rid``.

A request whose id is `rid_of` of one of `FAULTS` meets that fault once, at one of our seams. Others
in its batch meet it only where they share the pass that fails.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_MARK = "fault"
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong, and what a client sees of it.

    Attributes
    ----------
    seam
        Where: one of the names that `faulty` asks for.
    error
        What is raised there; None: the seam's values are spoiled with ``value``.
    value
        Written over what the seam computes.
    shows
        "cold": the report says why there is no draft; "fallback": it says that the scores were of
        no use; "lost": a draft was lost while running; "nothing": only the answer is to be right.
    """

    seam: str
    error: type[Exception] | None = None
    value: Any = None
    shows: str = "cold"


def _nonsense(make: Callable[[int, int], Any]) -> Callable[..., Any]:
    return lambda inputs, budget: make(inputs.n, budget)


def _raise(n: int, budget: int) -> Any:
    raise ZeroDivisionError("injected into a policy")


FAULTS: dict[str, Fault] = {
    "layout-type": Fault("layout", TypeError),
    "layout-index": Fault("layout", IndexError),
    "layout-memory": Fault("layout", MemoryError),
    "scores-raise": Fault("scores", RuntimeError),
    "scores-memory": Fault("scores", torch.OutOfMemoryError),
    "scores-nan": Fault("scores", value=float("nan"), shows="fallback"),
    "scores-inf": Fault("scores", value=float("inf"), shows="fallback"),
    "policy-raises": Fault("policy", value=_nonsense(_raise)),
    "policy-text": Fault("policy", value=_nonsense(lambda n, budget: "all of them")),
    "policy-floats": Fault("policy", value=_nonsense(lambda n, budget: torch.rand(budget))),
    "policy-short": Fault("policy", value=_nonsense(lambda n, budget: torch.arange(budget - 1))),
    "policy-outside": Fault("policy", value=_nonsense(lambda n, k: torch.arange(k) + n)),
    "policy-negative": Fault("policy", value=_nonsense(lambda n, k: -1 - torch.arange(k))),
    "policy-twice": Fault("policy", value=_nonsense(lambda n, k: torch.zeros(k).long())),
    "encoder-raise": Fault("encoder", RuntimeError),
    "encoder-memory": Fault("encoder", torch.OutOfMemoryError),
    "encoder-short": Fault("encoder", value=(slice(1, None), slice(None))),
    "encoder-narrow": Fault("encoder", value=(slice(None), slice(1, None))),
    "pool-raise": Fault("pool", RuntimeError),
    "prefill-raise": Fault("prefill", RuntimeError),
    "prefill-memory": Fault("prefill", torch.OutOfMemoryError),
    "prefill-nan": Fault("prefill", value=float("nan"), shows="nothing"),
    "draft-raise": Fault("draft", RuntimeError, shows="lost"),
    "draft-memory": Fault("draft", torch.OutOfMemoryError, shows="lost"),
    "draft-nan": Fault("draft", value=float("nan"), shows="nothing"),
    "draft-inf": Fault("draft", value=float("inf"), shows="nothing"),
    "extend-raise": Fault("extend", RuntimeError, shows="lost"),
    "extend-memory": Fault("extend", torch.OutOfMemoryError, shows="lost"),
    "extend-nan": Fault("extend", value=float("nan"), shows="nothing"),
    "metrics-gone": Fault("metrics", OSError, shows="nothing"),
    "report-raise": Fault("report", KeyError, shows="no report"),
}


def rid_of(name: str) -> str:
    """A new request id that meets this fault."""
    return f"{_MARK}:{name}:{next(_numbers)}"


class _Armed:
    """Which faults are due: those of the requests at hand, each once."""

    def __init__(self) -> None:
        self._met: set[str] = set()
        self._rids: Sequence[str] = ()

    @contextmanager
    def at_hand(self, rids: Sequence[str]) -> Iterator[None]:
        before, self._rids = self._rids, rids
        try:
            yield
        finally:
            self._rids = before

    def meet(self, seam: str, rids: Sequence[str] | None = None) -> Any:
        """Raise the fault that is due at ``seam``, or return its value; None where none is."""
        for rid in self._rids if rids is None else rids:
            mark, _, rest = str(rid).partition(":")
            fault = FAULTS.get(rest.partition(":")[0]) if mark == _MARK else None
            if fault is None or fault.seam != seam or rid in self._met:
                continue
            self._met.add(rid)
            if fault.error is not None:
                raise fault.error(f"injected into {seam}")
            return fault.value
        return None


def faulty(worker_class: type) -> type:
    """A SPECVLM worker class whose seams ask for faults."""

    class FaultyWorker(worker_class):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            armed = self._armed = _Armed()
            _spoil_requests(self.requests, armed)
            _spoil_scores(self.scorer, armed)
            _spoil_start(self._start, armed)
            _spoil_draft(self._draft_worker, armed)
            _spoil_metrics(self.observer, armed)

        def _arm_scores(self, batch: Any) -> Any:
            with self._armed.at_hand([req.rid for req in batch.reqs]):
                return super()._arm_scores(batch)

        def _forward_prefill_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
            with self._armed.at_hand([req.rid for req in batch.reqs]):
                return super()._forward_prefill_batch(batch, *args, **kwargs)

        def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
            super().alloc_memory_pool(*args, **kwargs)
            kv, armed = self._draft_worker.kv, self._armed
            admit = kv.admit

            def admitted(*arguments: Any, **options: Any) -> Any:
                armed.meet("pool")
                return admit(*arguments, **options)

            kv.admit = admitted

    return FaultyWorker


def _spoil_requests(requests: Any, armed: _Armed) -> None:
    family, read = requests._family, requests._read
    videos = family.videos

    def noted_read(req: Any) -> Any:
        with armed.at_hand([req.rid]):
            return read(req)

    def spoiled_videos(item: Any) -> Any:
        armed.meet("layout")
        return videos(item)

    requests._read, family.videos = noted_read, spoiled_videos


def _spoil_scores(scorer: Any, armed: _Armed) -> None:
    from specvlm_sglang.scoring.running import RowsOfPass

    arm, add = scorer.arm, RowsOfPass.add

    def noted_arm(passes: Any) -> None:
        passes = list(passes)
        for (scores, *_), rid in zip(passes, armed._rids, strict=True):
            scores.rid = rid
        arm(passes)

    def spoiled_add(self: Any, *arguments: Any) -> None:
        value = armed.meet("scores", [self.scores.rid])
        add(self, *arguments)
        if value is not None:
            self.scores.total.fill_(value)

    scorer.arm, RowsOfPass.add = noted_arm, spoiled_add  # type: ignore[method-assign]


def _spoil_start(start: Any, armed: _Armed) -> None:
    from specvlm_sglang.pruning import selection

    prompt, find = start._prompt, selection.find_policy

    def noted_prompt(one: Any, *arguments: Any) -> Any:
        with armed.at_hand([one.req.rid]):
            return prompt(one, *arguments)

    def spoiled_find(name: str) -> Any:
        choose, policy = armed.meet("policy"), find(name)
        return policy if choose is None else dataclasses.replace(policy, choose=choose, checks=True)

    start._prompt, selection.find_policy = noted_prompt, spoiled_find  # type: ignore[assignment]


def _spoil_draft(draft: Any, armed: _Armed) -> None:
    features, runner = draft.features, draft.draft_runner
    of, encode, forward = features.of, features._family.encode, runner.forward
    parts, drafted, extended = draft._forward_parts, draft._draft, draft._draft_extend_for_decode
    stage = ["none"]

    @contextmanager
    def in_stage(name: str, reqs: Sequence[Any]) -> Iterator[None]:
        stage[0] = name
        try:
            with armed.at_hand([req.rid for req in reqs]):
                yield
        finally:
            stage[0] = "none"

    def spoiled_encode(model: Any, item: Any) -> Any:
        where = armed.meet("encoder")
        encoded = encode(model, item)
        return encoded if where is None else encoded[where]

    def uncached(item: Any) -> Any:
        if any(str(rid).startswith(f"{_MARK}:encoder") for rid in armed._rids):
            features.clear()
        return of(item)

    def spoiled_forward(*arguments: Any, **options: Any) -> Any:
        value = armed.meet(stage[0])
        output = forward(*arguments, **options)
        if value is not None:
            output.logits_output.next_token_logits.fill_(value)
        return output

    def noted_parts(batch: Any, given: Any) -> Any:
        with in_stage("prefill", [batch.reqs[part.index] for part in given]):
            return parts(batch, given)

    def noted_draft(batch: Any) -> Any:
        with in_stage("draft", batch.reqs):
            return drafted(batch)

    def noted_extend(batch: Any, *arguments: Any, **options: Any) -> Any:
        with in_stage("extend", batch.reqs):
            return extended(batch, *arguments, **options)

    features.of, features._family.encode, runner.forward = uncached, spoiled_encode, spoiled_forward
    draft._forward_parts, draft._draft = noted_parts, noted_draft
    draft._draft_extend_for_decode = noted_extend


def _spoil_metrics(observer: Any, armed: _Armed) -> None:
    metrics = observer._metrics
    if metrics is None:
        return
    finished = metrics.finished_prefill

    def spoiled(report: Any) -> None:
        armed.meet("metrics")
        finished(report)

    metrics.finished_prefill = spoiled


def spoil_reports() -> None:
    """Spoil the reports of responses in this process, the tokenizer manager's."""
    from specvlm_sglang.host.video_requests import receipt

    armed, kept = _Armed(), receipt.kept

    def spoiled(obj: Any) -> Any:
        armed.meet("report", [str(getattr(obj, "rid", ""))])
        return kept(obj)

    receipt.kept = spoiled
