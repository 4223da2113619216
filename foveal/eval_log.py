"""Answered rows on disk as they come, so that an evaluation that was stopped goes on.

    log = AnswerLog.begin(log_path(out), settings, resume=True)
    log.known                # rows that need no answer
    log.append(results)      # one line a row, on the disk when it returns
    log.remove()             # the result file holds it all

The first line holds the settings; answers under other settings are never mixed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveal.eval_result import PromptResult, prompt_from

FORMAT = "foveal-eval-rows-1"
_MISSING = object()


def log_path(out: Path) -> Path:
    """Where the rows of the result ``out`` are kept until it is whole."""
    return out.with_name(out.name + ".rows.jsonl")


@dataclass(frozen=True, slots=True)
class AnswerLog:
    """An append-only file of answered rows."""

    path: Path
    known: dict[tuple[str, int], PromptResult]
    """By source and row number, those that were there when it was opened."""

    @classmethod
    def begin(cls, path: Path, settings: Mapping[str, Any], *, resume: bool) -> AnswerLog:
        """Start a file, or open the one that an interrupted run left. Nothing is written yet.

        Args:
            path: of the file.
            settings: what every answer depends on; plain values.
            resume: go on with a file that is there; without one, start.

        Raises:
            ValueError: for a file that is there and not to be resumed, one of other settings, and
                one that is damaged elsewhere than in its last line.
        """
        if not path.exists():
            return cls(path, {})
        if not resume:
            raise ValueError(
                f"{path} holds rows that an interrupted run answered; add --resume to go on from "
                "them, or delete the file to start anew"
            )
        header, *lines = _lines(path) or [{}]
        if not header:
            return cls(path, {})
        if header.get("format") != FORMAT:
            raise ValueError(
                f"{path} is no file of answered rows (its format is not {FORMAT!r}); move it away, "
                "or choose another --out"
            )
        check_settings(path, header["settings"], settings)
        read = [prompt_from(entry) for entry in lines]
        return cls(path, {(result.source, result.index): result for result in read})

    def keep(
        self, kept: Mapping[tuple[str, int], PromptResult], settings: Mapping[str, Any]
    ) -> None:
        """Write the file anew, with the settings and ``kept``: what ``append`` adds to."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        header = {"format": FORMAT, "settings": settings}
        _write(part, "w", [header, *map(asdict, kept.values())])
        part.replace(self.path)

    def append(self, results: Sequence[PromptResult]) -> None:
        """Add rows; they are on the disk when it returns."""
        _write(self.path, "a", [asdict(result) for result in results])

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


def check_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError for the first setting that differs, with both values."""
    # As they come back from a file: no tuples, no integer keys.
    now = json.loads(json.dumps(now))
    for name in {**before, **now}:
        one, other = before.get(name, _MISSING), now.get(name, _MISSING)
        if one != other:
            raise ValueError(
                f"{path} was written with {name} {_shown(one)}, and now it is {_shown(other)}; "
                "give --resume with the same settings, or another --out"
            )


def _shown(value: Any) -> str:
    return "not given" if value is _MISSING else json.dumps(value)


def _write(path: Path, mode: str, entries: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
    with path.open(mode, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a last line that was cut off is left out."""
    *whole, rest = path.read_bytes().split(b"\n")
    del rest  # empty, or what a crash left of a line
    found = []
    for number, line in enumerate(whole, 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} cannot be read ({error}); delete the lines from there on "
                "to answer their rows anew"
            ) from error
        if not isinstance(entry, dict):
            raise ValueError(f"line {number} of {path} is no object; delete the file")
        found.append(entry)
    return found
