"""What every measurement notes about itself, and the file that it goes to.

A record is a flat dictionary with at least ``benchmark``, ``case``, ``system``, ``card``,
``versions``, ``commit`` and ``command``; the first three together are its name.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
GIB = 1 << 30

Record = dict[str, Any]


def commit(given: str | None = None) -> str:
    """The commit that is measured, marked if the tree differs from it. Ask before measuring.

    Args:
        given: the answer, for a machine that has the files without their history.

    Raises:
        RuntimeError: if git cannot tell.
    """
    if given is not None:
        return given
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"git cannot name the commit of {REPOSITORY} ({error}); name it with --commit"
        ) from error
    return described.stdout.strip()


def installed_versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "transformers", "peft")}


def card() -> str:
    """Name of the GPU, or the number and kind of the CPU's cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def command_line(script: str, arguments: Sequence[str]) -> str:
    """The command that repeats a run, from the repository's root."""
    return shlex.join(["python", f"benchmarks/{script}", *arguments])


def origin(script: str, arguments: Sequence[str], measured: str | None) -> Record:
    """Where a measurement comes from; ask before measuring.

    Args:
        script: of benchmarks.
        arguments: of the command line.
        measured: the commit, for a machine that has the files without their history.

    Raises:
        RuntimeError: if git cannot name the commit.
    """
    return {
        "card": card(),
        "versions": installed_versions(),
        "commit": commit(measured),
        "command": command_line(script, arguments),
    }


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Put records into a file, each in the place of the one with its name; others stay.

    The file is replaced in one move, so an interrupted run leaves the old one.
    """
    known: list[Record] = json.loads(path.read_text()) if path.exists() else []
    merged = {_name(record): record for record in [*known, *records]}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(list(merged.values()), indent=2) + "\n")
    new.replace(path)


def _name(record: Record) -> tuple[str, str, str]:
    return record["benchmark"], record["case"], record["system"]
