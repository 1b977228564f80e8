"""A plugin for tests only: a server that also writes down what its SPECVLM worker computed.

`install` makes a directory that looks like an installed distribution with an SGLang plugin. With it
on ``PYTHONPATH`` the server runs a worker that dumps, per completed prompt, the scores, the kept
tokens, the draft's logits at prefill and those of every later draft-extend pass: all that happens
between `clear` and `records`. `failing` makes it raise in one of its steps instead,
`corrupt_a_token` makes its verification let a wrong token through, and requests can choose faults
of their own (`tests.support.faults`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.support import faults

DUMP_VARIABLE = "SPECVLM_TEST_DUMP"
_LISTENING = "listening"
_CORRUPT = "corrupt"


def install(directory: Path) -> dict[str, str]:
    """Write the fake distribution and return the environment of a probed server."""
    repository = Path(__file__).resolve().parents[2]
    metadata = directory / "specvlm_test_probe-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: specvlm-test-probe\n")
    (metadata / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nspecvlm_test_probe = tests.support.probe:register\n"
    )
    dump = directory / "dump"
    dump.mkdir(exist_ok=True)
    return {"PYTHONPATH": f"{directory}{os.pathsep}{repository}", DUMP_VARIABLE: str(dump)}


def records(environment: dict[str, str]) -> list[dict[str, Any]]:
    """What the server wrote, in order; it writes no more."""
    (Path(environment[DUMP_VARIABLE]) / _LISTENING).unlink(missing_ok=True)
    files = sorted(Path(environment[DUMP_VARIABLE]).glob("*.pt"), key=lambda path: int(path.stem))
    return [torch.load(path, map_location="cpu") for path in files]


def clear(environment: dict[str, str]) -> None:
    """Forget what was written, and begin to write."""
    (Path(environment[DUMP_VARIABLE]) / _LISTENING).touch()
    for path in Path(environment[DUMP_VARIABLE]).glob("*.pt"):
        path.unlink()


@contextmanager
def failing(environment: dict[str, str], step: str) -> Iterator[None]:
    """Make ``step`` raise in the server: "spans", "scores", "draft prefill" or "a later part"."""
    marker = Path(environment[DUMP_VARIABLE]) / f"fail {step}"
    marker.touch()
    try:
        yield
    finally:
        marker.unlink()


def corrupt_a_token(environment: dict[str, str]) -> None:
    """Make the next round of verification accept another token than the target's own, once."""
    (Path(environment[DUMP_VARIABLE]) / _CORRUPT).touch()


def register() -> None:
    """Entry point: give SPECVLM a worker that writes to ``SPECVLM_TEST_DUMP``."""
    from specvlm_sglang.algorithm import SpecVLMAlgorithm

    original = SpecVLMAlgorithm.create_worker

    def create_worker(self: Any, server_args: Any) -> type:
        return faults.faulty(_probed(original(self, server_args)))

    faults.spoil_reports()
    SpecVLMAlgorithm.create_worker = create_worker  # type: ignore[method-assign]


def _copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.clone()


def _probed(worker_class: type) -> type:
    directory = Path(os.environ[DUMP_VARIABLE])

    def write(**values: Any) -> None:
        if not (directory / _LISTENING).exists():
            return
        number = 1 + max((int(path.stem) for path in directory.glob("*.pt")), default=0)
        torch.save(values, directory / "part")
        (directory / "part").rename(directory / f"{number}.pt")

    def maybe_fail(step: str) -> None:
        if (directory / f"fail {step}").exists():
            raise ValueError(f"injected into {step}")

    class ProbedWorker(worker_class):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            draft = self._draft_worker
            forward_parts = draft._forward_parts
            extend = draft._draft_extend_for_decode
            family = self.requests._family
            videos = family.videos

            def checked_videos(item: Any) -> Any:
                maybe_fail("spans")
                return videos(item)

            def dumped_parts(batch: Any, parts: Any) -> torch.Tensor:
                maybe_fail("draft prefill")
                if any(part.start for part in parts):
                    maybe_fail("a later part")
                logits = forward_parts(batch, parts)
                for row, part in enumerate(parts):
                    if part.is_last:
                        write(
                            kind="prefill",
                            rid=batch.reqs[part.index].rid,
                            logits=logits[row].clone(),
                            input_ids=part.prompt.input_ids.clone(),
                            mrope_positions=_copy(part.prompt.mrope_positions),
                            positions=_copy(part.prompt.positions),
                            in_parts=part.start > 0,
                            first=part.prompt.first,
                        )
                return logits

            def dumped_extend(batch: Any, result: Any, **options: Any) -> None:
                runner = draft.draft_runner
                forward = runner.forward
                seen = []

                def spy(*args: Any, **kwargs: Any) -> Any:
                    output = forward(*args, **kwargs)
                    seen.append(output.logits_output.next_token_logits.clone())
                    return output

                runner.forward = spy
                try:
                    extend(batch, result, **options)
                finally:
                    runner.forward = forward
                write(
                    kind="pool",
                    in_use=draft.kv.slots_in_use,
                    allocated={req.rid: req.kv.kv_allocated_len for req in batch.reqs},
                )
                width = draft.speculative_num_draft_tokens
                # Without any draft in the batch there is no pass.
                for row, req in enumerate(batch.reqs if seen else ()):
                    count = int(result.accept_lens[row])
                    tokens = result.next_token_ids.view(len(batch.reqs), width)[row, :count]
                    write(
                        kind="extend",
                        rid=req.rid,
                        tokens=tokens.clone(),
                        logits=seen[0].view(len(batch.reqs), width, -1)[row, count - 1].clone(),
                    )

            family.videos = checked_videos
            draft._forward_parts = dumped_parts
            draft._draft_extend_for_decode = dumped_extend
            keys_of, means = self.scorer.running._keys_of, self.scorer.means
            kept = self._start._kept

            def checked_keys(layer_id: int) -> torch.Tensor:
                maybe_fail("scores")
                return keys_of(layer_id)

            def dumped_means(*arguments: Any) -> dict[str, torch.Tensor]:
                found = means(*arguments)
                write(kind="scores", rid=self._scoring, scores=found["scores"].clone())
                return found

            def noted_kept(one: Any, *arguments: Any) -> Any:
                self._scoring = one.req.rid
                return kept(one, *arguments)

            self.scorer.running._keys_of, self.scorer.means = checked_keys, dumped_means
            self._start._kept = noted_kept

        def verify(self, batch: Any, **options: Any) -> Any:
            result = super().verify(batch, **options)
            marker = directory / _CORRUPT
            if marker.exists():
                marker.unlink()
                result.next_token_ids[0] = 40 + (result.next_token_ids[0] + 1) % 40
            return result

    return ProbedWorker
