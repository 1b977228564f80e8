"""What is asked, read from a folder or a file of JSON lines, and what was answered before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specvlm_sglang.policies import check_retention, check_tokens
from specvlm_sglang.tools.errors import ToolError

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts"),
    *(".wmv", ".flv", ".ogv", ".3gp", ".mxf", ".gif"),
)
"""Names that a folder's videos end with; a file of JSON lines may name any."""
_FIELDS = ("video", "question", "id", "max_tokens", "retention", "policy")


@dataclass(frozen=True)
class Job:
    """One question about one video.

    Attributes
    ----------
    name
        Unique in a run; answers are found again by it.
    video
        A file.
    question
        What is asked.
    max_tokens
        Length limit of the answer.
    specvlm
        ``custom_params.specvlm`` of the request; empty: the server's own settings.
    """

    name: str
    video: Path
    question: str
    max_tokens: int
    specvlm: dict[str, Any]


def read_jobs(
    source: Path, question: str | None, max_tokens: int, specvlm: dict[str, Any]
) -> list[Job]:
    """The jobs of a folder or file, in order.

    Parameters
    ----------
    source
        As the command's argument. Paths in a file are relative to it.
    question, max_tokens, specvlm
        For all that say nothing of their own.

    Raises
    ------
    ToolError
        Nothing to ask; a line that is no such object; two of one id. The message names the line.
    """
    if source.is_dir():
        jobs = list(_of_folder(source, question, max_tokens, specvlm))
    elif source.is_file():
        jobs = list(_of_file(source, question, max_tokens, specvlm))
    else:
        raise ToolError(f"{source}: no such folder or file")
    if not jobs:
        what = f"videos ({', '.join(SUFFIXES)})" if source.is_dir() else "lines"
        raise ToolError(f"{source} has no {what}")
    seen: set[str] = set()
    for job in jobs:
        if job.name in seen:
            raise ToolError(f"{source}: id {job.name!r} comes twice; give each line its own")
        seen.add(job.name)
    return jobs


def _of_folder(
    folder: Path, question: str | None, max_tokens: int, specvlm: dict[str, Any]
) -> Iterator[Job]:
    if question is None:
        raise ToolError(f"{folder} is a folder: say with --question what to ask")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield Job(str(path.relative_to(folder)), path, question, max_tokens, specvlm)


def _of_file(
    file: Path, question: str | None, max_tokens: int, specvlm: dict[str, Any]
) -> Iterator[Job]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _of_line(line, file.parent, question, max_tokens, specvlm)
        except (ValueError, ToolError) as error:
            raise ToolError(f"{file}:{number}: {error}") from None


def _of_line(
    line: str, folder: Path, question: str | None, max_tokens: int, specvlm: dict[str, Any]
) -> Job:
    entry = json.loads(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("video"), str):
        raise ToolError('a line is an object with "video", a path')
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        raise ToolError(f"no field {unknown[0]!r}; a line takes {', '.join(_FIELDS)}")
    asked = entry.get("question", question)
    if not isinstance(asked, str) or not asked:
        raise ToolError('"question" is missing, and --question is not given')
    tokens = entry.get("max_tokens", max_tokens)
    check_tokens(tokens, "max_tokens")
    own = {name: entry[name] for name in ("retention", "policy") if name in entry}
    if "retention" in own:
        check_retention(own["retention"], "retention")
    name = str(entry.get("id", f"{entry['video']} | {asked}" if "question" in entry else ""))
    return Job(name or entry["video"], folder / entry["video"], asked, tokens, {**specvlm, **own})


def answered_before(out: Path, jobs: Sequence[Job]) -> set[str]:
    """Names of the jobs that ``out`` has an answer to; those that failed are asked again.

    Raises
    ------
    ToolError
        A line of ``out`` is no answer of this command, or one to another question.
    """
    if not out.exists():
        return set()
    by_name = {job.name: job for job in jobs}
    found = set()
    for number, line in enumerate(out.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            name, question, answer = entry["id"], entry["question"], entry.get("answer")
        except (ValueError, KeyError, TypeError):
            raise ToolError(f"--out {out}:{number} is no answer of this command") from None
        job = by_name.get(name)
        if answer is None or job is None:
            continue
        if question != job.question:
            raise ToolError(
                f"--out {out}:{number} answers another question about {name!r} "
                f"({question!r}, not {job.question!r}): name another file"
            )
        found.add(name)
    return found
