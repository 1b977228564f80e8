"""What was measured so far: one line a prompt and run, appended, so that nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.policies.prompts import SETS, Prepared

_Key = tuple[str, int, int]


class Record:
    """Rounds by prompt and setting.

    Parameters
    ----------
    file
        JSON lines; read where it exists, appended to.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._about: dict[_Key, dict[str, Any]] = {}
        self._rounds: dict[_Key, dict[str, int]] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        for line in file.read_text().splitlines() if file.exists() else ():
            self._take(json.loads(line))

    def _take(self, entry: dict[str, Any]) -> None:
        key = entry["set"], entry["clip"], entry["number"]
        self._about[key] = {name: entry[name] for name in ("kind", "video_tokens", "tokens")}
        self._rounds.setdefault(key, {}).update(entry["rounds"])

    def adopt(self, results: Path) -> None:
        """Take over what `complete` returned once, from a JSON file; it is not appended."""
        for name, part in json.loads(results.read_text()).items():
            numbers: dict[int, int] = {}
            for place, prompt in enumerate(part["prompts"]):
                clip = prompt["clip"]
                numbers[clip] = numbers.get(clip, -1) + 1
                rounds = {setting: found[place] for setting, found in part["rounds"].items()}
                self._take({"set": name, "number": numbers[clip], **prompt, "rounds": rounds})

    def is_done(self, name: str, clip: int, settings: Sequence[str]) -> bool:
        """Whether all prompts of a clip were measured; known only where a later clip's were too."""
        mine = [key for key in self._about if key[:2] == (name, clip)]
        later = any(key[0] == name and key[1] > clip for key in self._about)
        return (
            later and bool(mine) and all(self._rounds[key].keys() >= set(settings) for key in mine)
        )

    def of_clips(self, name: str, clips: int) -> int:
        """Prompts of a set's first clips."""
        return sum(key[0] == name and key[1] < clips for key in self._about)

    def has(self, name: str, clip: int, number: int, setting: str) -> bool:
        """Whether this was measured."""
        return setting in self._rounds.get((name, clip, number), {})

    def add(
        self, name: str, clip: int, number: int, prompt: Prepared, rounds: Mapping[str, int]
    ) -> None:
        """Keep the rounds of one prompt."""
        entry = {
            "set": name,
            "clip": clip,
            "number": number,
            "kind": prompt.kind,
            "video_tokens": len(prompt.video),
            # The first token comes from prefill and belongs to no round.
            "tokens": len(prompt.answer) - 1,
            "rounds": dict(rounds),
        }
        with self._file.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._take(entry)

    def complete(self, settings: Sequence[str]) -> dict[str, Any]:
        """Every prompt for which no setting is missing, of this run and earlier ones.

        Returns
        -------
        dict
            By set: ``prompts`` (clip, kind, video_tokens, tokens of each) and ``rounds`` (by
            setting, one number a prompt).
        """
        found: dict[str, Any] = {}
        for name in SETS:
            keys = [
                key
                for key in sorted(self._about)
                if key[0] == name and self._rounds[key].keys() >= set(settings)
            ]
            if keys:
                found[name] = {
                    "prompts": [{"clip": key[1], **self._about[key]} for key in keys],
                    "rounds": {
                        setting: [self._rounds[key][setting] for key in keys]
                        for setting in settings
                    },
                }
        return found
