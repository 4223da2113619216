"""What learning runs read: NLVR's pictures that the cold start did not use, and drawn tasks.

    count_train, count_held_out      how many objects
    boxes_train, boxes_held_out      where they are
    mixture_held_out                 drawn rows of three tasks at two levels

A picture's hash alone says to which part it belongs, so no picture is in two of them, in whichever
order and in how many rows it comes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from cold_start_data import HELD_OUT_SEED, half_of, instructed, write_half

from foveal.data import load_rows
from foveal.tasks import get_task

TASKS = ("count", "boxes")
HELD_OUT_OF_256 = 64
"""A quarter of the second half's pictures is held out."""
DRAWN_TASKS, DRAWN_LEVELS, DRAWN_ROWS = ("shapes", "cells", "clocks"), (1, 2, 3), 40
"""Held-out rows of the mixture: so many of each task at each level."""


def write_data(source: Path | None, folder: Path, drawn_rows: int = DRAWN_ROWS) -> list[Path]:
    """Write what is not there yet.

    Args:
        source: parquet file of the NLVR pack, or the ``nlvr_second_half.parquet`` of a cold start;
            None writes drawn rows alone.
        folder: made if need be.
        drawn_rows: of each task and level.

    Returns:
        The files that are there now.

    Raises:
        ValueError: if ``source`` is no file, or leaves a part without rows.
    """
    if source is not None and not source.is_file():
        raise ValueError(f"there is no file {source}; give the NLVR pack's train.parquet by --nlvr")
    files: list[Path] = []
    if source is not None:
        rows = [dict(row) for row in _raw(source)]
        for task in (task for task in TASKS if any(row["task"] == task for row in rows)):
            for part in ("train", "held_out"):
                files.append(_write(folder / f"{task}_{part}.parquet", part_of(rows, task, part)))
    files.append(_write(folder / "mixture_held_out.parquet", drawn_held_out(drawn_rows)))
    return files


def part_of(rows: list[dict[str, Any]], task: str, part: str) -> list[dict[str, Any]]:
    """Rows of a task in "start", "train" or "held_out", with the task's instruction."""
    return [instructed(row) for row in rows if row["task"] == task and part_name(row) == part]


def part_name(row: dict[str, Any]) -> str:
    """The part of a row, from the bytes of its picture alone."""
    if half_of(row) == 0:
        return "start"
    # Another byte than the one that halves.
    place = hashlib.sha256(row["images"][0]["bytes"]).digest()[1]
    return "held_out" if place < HELD_OUT_OF_256 else "train"


def drawn_held_out(count: int) -> list[dict[str, Any]]:
    """``count`` rows of each drawn task at each level, pictures as PNG."""
    rows = []
    # Index by index, so that the first rows, too, are of every task and level.
    for index, level, task in product(range(count), DRAWN_LEVELS, DRAWN_TASKS):
        row = get_task(task).generate(HELD_OUT_SEED + index, level)
        held = io.BytesIO()
        row["images"][0].save(held, format="PNG")
        images = [{"bytes": held.getvalue(), "path": f"{task}-{level}-{index}.png"}]
        kept = {key: row[key] for key in ("problem", "answer", "task", "difficulty")}
        rows.append({"images": images, **kept})
    return rows


def _raw(source: Path) -> Iterator[dict[str, Any]]:
    rows = load_rows(source).rows
    return (dict(rows[index]) for index in range(len(rows)))


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if not rows:
        raise ValueError(f"no row is left for {path.name}; give a larger set by --nlvr")
    if not path.is_file():
        part = path.with_suffix(".part")
        write_half(part, rows)
        part.replace(path)
    return path
