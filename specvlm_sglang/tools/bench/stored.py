"""Records as JSON, and back: for a later run to compare with, and to go on after an end."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from specvlm_sglang.tools.bench.measure import Record
from specvlm_sglang.tools.client import Answer
from specvlm_sglang.tools.errors import ToolError

_ANSWER = {field.name for field in fields(Answer)}


def pack(record: Record) -> dict[str, Any]:
    """Everything of a record, JSON-ready."""
    answers = [
        {"task": task, "question": question, **asdict(answer)}
        for (task, question), answer in record.answers.items()
    ]
    return {**vars(record), "answers": answers}


def unpack(data: dict[str, Any]) -> Record:
    """A record of `pack`, or of ``results.json``, where answers have lengths instead of tokens."""
    answers = {}
    for row in data["answers"]:
        ids = row["ids"] if "ids" in row else [0] * row["tokens"]
        known = {name: value for name, value in row.items() if name in _ANSWER}
        given = {**known, "ids": tuple(ids), "text": row.get("text", "")}
        answers[row["task"], row["question"]] = Answer(**given)
    return Record(**{**data, "answers": answers})


class Journal:
    """What a run has measured so far, a line each, so that it can go on after an end.

    Parameters
    ----------
    path
        File of the journal; None keeps none.
    settings
        What the run measures, JSON-ready; a journal of others is refused.
    resume
        Whether to go on where the file ends; otherwise it is begun anew.

    Raises
    ------
    ToolError
        The journal belongs to other settings, or is none.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], *, resume: bool) -> None:
        self._path = path
        self.records: list[Record] = []
        self.slots: dict[tuple[str, str], int] = {}
        self.servers: dict[str, dict[str, Any]] = {}
        self.batches: set[int] = set()
        if path is None:
            return
        if resume and path.exists():
            self._read(path, settings)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": settings}) + "\n")

    def add_record(self, record: Record) -> None:
        """Keep a measurement."""
        self.records.append(record)
        self._append({"record": pack(record)})

    def add_slots(self, workload: str, configuration: str, slots: int) -> None:
        """Keep the draft KV slots of one request."""
        self.slots[workload, configuration] = slots
        self._append({"slots": [workload, configuration, slots]})

    def end_batch(self, batch: int, servers: dict[str, dict[str, Any]]) -> None:
        """Keep what the servers of a batch took; they need not be started again."""
        self.servers |= servers
        self.batches.add(batch)
        self._append({"batch": batch, "servers": servers})

    def measured(self, batch: int, workload: str, index: int, configurations: set[str]) -> bool:
        """Whether a round has an answer of each; one that was cut off is forgotten.

        Ratios are those of one round, which must not be torn between two lives of a server.
        """

        def of_round(record: Record) -> bool:
            return (record.batch, record.workload, record.round) == (batch, workload, index)

        if configurations <= {r.configuration for r in self.records if of_round(r)}:
            return True
        self.records = [record for record in self.records if not of_round(record)]
        return False

    def _append(self, line: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _read(self, path: Path, settings: dict[str, Any]) -> None:
        lines = _lines(path)
        found = lines[0].get("settings") if lines else None
        if found is None:
            raise ToolError(f"--resume: {path} is no journal of a run")
        for name, value in json.loads(json.dumps(settings)).items():
            if found.get(name) != value:
                raise ToolError(
                    f"--resume: {path} was begun with {name} {found.get(name)}, not {value}"
                )
        seen: dict[tuple[int, str, int, str], Record] = {}
        for line in lines[1:]:
            if "record" in line:
                record = unpack(line["record"])
                key = (record.batch, record.workload, record.round, record.configuration)
                # A round that was cut off is measured again as a whole: the later one counts.
                seen[key] = record
            elif "slots" in line:
                workload, configuration, slots = line["slots"]
                self.slots[workload, configuration] = slots
            elif "batch" in line:
                self.batches.add(line["batch"])
                self.servers |= line["servers"]
        self.records = list(seen.values())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; a last one that was being written when the run ended is dropped."""
    text = path.read_text()
    whole, _, rest = text.rpartition("\n")
    if rest:
        path.write_text(whole + "\n" if whole else "")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except json.JSONDecodeError:
        raise ToolError(f"--resume: {path} is no journal of a run") from None
