"""Rounds: every configuration answers the same questions once, in an order that rotates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from specvlm_sglang.tools.bench.configurations import Configuration
from specvlm_sglang.tools.bench.workloads import Task, Workload
from specvlm_sglang.tools.client import Answer, ask, flush_cache, specvlm_state

Turn = tuple[str, str | None]
"""A question and its answer, None for the one that is being asked."""
Render = Callable[[Sequence[Turn]], str]
"""Makes a prompt, with one video before the first question, of a chat."""
_WARM_UP_TOKENS = 8
_PROBE_TOKENS = 48


@dataclass(frozen=True)
class Record:
    """One configuration's answers in one round of one workload.

    Attributes
    ----------
    workload, configuration
        Their names.
    batch
        Which servers lived together; ratios are taken within a batch.
    round
        Index of the round; the same index, the same questions.
    seconds
        From the first request to the end of the last.
    answers
        Per question its key (task name, index of the question) and the answer.
    phases
        Seconds and calls per phase of the server in this time; empty for plain decoding.
    """

    workload: str
    configuration: str
    batch: int
    round: int
    seconds: float
    answers: dict[tuple[str, int], Answer]
    phases: dict[str, dict[str, float]] = field(default_factory=dict)


def measure(
    url: str,
    configuration: Configuration,
    workload: Workload,
    tasks: Sequence[Task],
    render: Render,
    *,
    batch: int,
    index: int,
) -> Record:
    """Ask about all tasks at the same time, with empty caches.

    Where a workload asks several questions per video, the first fills the caches and is not
    measured.
    """
    flush_cache(url)
    chats = [_Chat(url, configuration, task, render) for task in tasks]
    measured = range(len(tasks[0].questions))
    with ThreadPoolExecutor(len(tasks)) as pool:
        if len(measured) > 1:
            list(pool.map(lambda chat: chat.ask(0), chats))
            measured = measured[1:]
        before = specvlm_state(url).get("phases", {})
        started = time.perf_counter()
        answers = list(pool.map(lambda chat: [chat.ask(number) for number in measured], chats))
        seconds = time.perf_counter() - started
    after = specvlm_state(url).get("phases", {})
    return Record(
        workload=workload.name,
        configuration=configuration.name,
        batch=batch,
        round=index,
        seconds=seconds,
        answers={
            (task.name, number): answer
            for task, given in zip(tasks, answers, strict=True)
            for number, answer in zip(measured, given, strict=True)
        },
        phases=difference(before, after),
    )


class _Chat:
    """Questions about one video, in order."""

    def __init__(self, url: str, configuration: Configuration, task: Task, render: Render) -> None:
        self._url = url
        self._configuration = configuration
        self._task = task
        self._render = render

    def ask(self, number: int) -> Answer:
        task = self._task
        earlier: list[Turn] = list(zip(task.questions[:number], task.history, strict=False))
        return ask(
            self._url,
            self._render([*earlier, (task.questions[number], None)]),
            [task.video],
            task.max_tokens,
            custom_params=self._configuration.custom_params,
        )


def warm_up(url: str, configuration: Configuration, task: Task, render: Render) -> None:
    """Answer a few tokens, unmeasured."""
    prompt = render([(task.questions[0], None)])
    ask(
        url,
        prompt,
        [task.video],
        _WARM_UP_TOKENS,
        custom_params=configuration.custom_params,
    )


def draft_slots(url: str, configuration: Configuration, task: Task, render: Render) -> int | None:
    """Slots of the draft's KV cache that one running request holds, from the server itself.

    An answer of its own, so that asking the server disturbs no measurement. None where the answer
    ended before the server could be asked.
    """
    found: list[int] = []
    ask(
        url,
        render([(task.questions[-1], None)]),
        [task.video],
        _PROBE_TOKENS,
        custom_params=configuration.custom_params,
        on_first=lambda: found.append(specvlm_state(url)["draft_kv_tokens_in_use"]),
    )
    return found[0] or None


def difference(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """What each phase took between two states of a server."""
    return {
        phase: {name: counts[name] - before.get(phase, {}).get(name, 0) for name in counts}
        for phase, counts in after.items()
    }


def rotated(configurations: Sequence[Configuration], index: int) -> list[Configuration]:
    """The order of round ``index``: each takes its turn at being first."""
    cut = index % len(configurations)
    return [*configurations[cut:], *configurations[:cut]]
