"""Checkpoints that are whole or absent, and the search for the last whole one.

A checkpoint is written into a staging folder, with a manifest of every file's size and hash, and
renamed into place at the end: a crash leaves the staging folder, never half a checkpoint under a
checkpoint's name. A resume compares files with the manifest before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

MANIFEST = "manifest.json"
STAGING = ".saving"
_NAME = re.compile(r"checkpoint-(\d+)")


def write_manifest(folder: Path) -> None:
    """List every file of ``folder`` with its size and SHA-256, and flush all to the disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            sha256 = _sha256(file)
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, sha256]
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was written."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing"
    try:
        files = json.loads(manifest.read_text())
    except ValueError:
        return f"{MANIFEST} cannot be read"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        with path.open("rb") as file:
            if _sha256(file) != sha256:
                return f"{name} has other contents than were written"
    return None


def staging(run_folder: Path) -> Path:
    """An empty place to write a checkpoint in; what an earlier crash left there is gone."""
    folder = run_folder / STAGING
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def publish(staged: Path, final: Path) -> None:
    """Give a staged checkpoint its name, in one step as others see it."""
    write_manifest(staged)
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)
    shutil.rmtree(staged.parent, ignore_errors=True)


def checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [p for p in run_folder.glob("checkpoint-*") if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def rotate(run_folder: Path, newest: str, keep: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond ``keep``; the newest and the best one stay.

    A checkpoint of a later step than the newest comes from before a resume: it is older.
    """
    if not keep or keep < 1:
        return
    protected = {newest, Path(best).name if best else newest}
    found = checkpoints(run_folder)
    last_step = step_of(run_folder / newest)
    order = sorted(found, key=lambda p: (step_of(p) <= last_step, step_of(p)))
    spare = [folder for folder in order if folder.name not in protected]
    for folder in spare[: max(0, len(found) - keep)]:
        shutil.rmtree(folder)


def choose(wanted: str | os.PathLike[str] | bool, run_folder: Path) -> tuple[Path, list[str]]:
    """The checkpoint to resume from, and a message for each damaged one that was passed over.

    Args:
        wanted: a checkpoint folder, or True for the last one of the run.
        run_folder: where the run's checkpoints lie.

    Raises:
        ValueError: if there is none, or none is whole.
    """
    if wanted is True:
        candidates = checkpoints(run_folder)[::-1]
    else:
        first = Path(str(wanted))
        if not first.is_dir():
            raise ValueError(f"resume_from_checkpoint names {first}, which is no folder")
        earlier = [p for p in checkpoints(first.parent) if step_of(p) < step_of(first)]
        candidates = [first, *earlier[::-1]]
    if not candidates:
        raise ValueError(
            f"there is no checkpoint in {run_folder}; train without resume_from_checkpoint first"
        )
    notices = []
    for folder in candidates:
        wrong = damage(folder)
        if wrong is None:
            return folder, notices
        notices.append(f"{folder} is damaged: {wrong}")
    raise ValueError("no checkpoint to resume from is whole: " + "; ".join(notices))
