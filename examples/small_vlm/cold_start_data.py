"""What the small model learns to see from: drawn pictures, and half of NLVR's.

    describe   shapes in a grid, all to be named with their cells: dozens of tokens that only the
               picture explains, which is what an untrained vision tower needs most
    shapes     the task itself: counting and locating
    cells, clocks
    list, count, locate
               drawn pictures of NLVR's kind (``cold_start_scenes.py``)
    nlvr       counting, boxes, and statements that are true or false, on the first half of the
               pictures

Answers stand in <answer> tags. In a share of the rows a short sentence comes before them: what is
seen. Reinforcement learning finds out in which cases that helps.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cold_start_scenes import COUNT_INSTRUCTION, LOCATE_INSTRUCTION, counted, listed, located

from foveal.data import RowSource, join_rows, load_rows
from foveal.tasks import DrawnRows, get_task

SHARES = {
    "list": 0.25, "count": 0.06, "locate": 0.15,
    "describe": 0.14, "shapes": 0.12, "cells": 0.08, "clocks": 0.12,
    "nlvr": 0.08,
}  # fmt: skip
"""Of the rows. Without NLVR the others share its part."""
LEVELS = (1, 2, 3)
SCENES = {"list": listed, "count": counted, "locate": located}
SENTENCE_SHARE = {"shapes": 0.5, "cells": 0.3, "clocks": 0.3}
"""Of a task's rows that say what is seen before they answer; of counted scenes some do, too."""
TRAIN_SEED, HELD_OUT_SEED = 0, 2**50
"""First seeds of drawn rows."""
LIST_QUESTION = (
    "<image>Name every shape with its cell, A1 top left to D4 bottom right, line by line."
)
INSTRUCTIONS = {
    "count": COUNT_INSTRUCTION,
    "true_false": COUNT_INSTRUCTION,
    "boxes": LOCATE_INSTRUCTION,
}
"""How NLVR's tasks are to be answered."""


def training_rows(count: int, nlvr: Path | None) -> RowSource:
    """About ``count`` rows in the proportions of ``SHARES``; pictures are drawn as rows are read.

    Args:
        nlvr: parquet file of the pack, or None to do without.
    """
    shares = {name: share for name, share in SHARES.items() if name != "nlvr" or nlvr}
    unit = count / sum(shares.values())
    parts = [
        replace(load_rows(drawn(name, round(unit * share), TRAIN_SEED)), name=name)
        for name, share in shares.items()
        if name != "nlvr"
    ]
    if nlvr is not None:
        first = [with_completion(row) for row in nlvr_half(nlvr, 0)]
        wanted = round(unit * shares["nlvr"])
        parts.append(replace(load_rows(Repeated(first, wanted)), name="nlvr"))
    return join_rows(parts)


def drawn(name: str, count: int, first_seed: int) -> DrawnRows:
    """Rows of a task, of "describe" or of ``SCENES``, with completions."""
    if name == "describe" or name in SCENES:
        make = SCENES.get(name, describe)
        return DrawnRows(make, max(1, count), first_seed, LEVELS, written)
    return DrawnRows(get_task(name).generate, max(1, count), first_seed, LEVELS, completion)


def describe(seed: int, difficulty: int) -> dict[str, Any]:
    """A picture of shapes, all of which are asked for."""
    row = get_task("shapes").generate(seed, difficulty)
    return {**row, "problem": LIST_QUESTION, "answer": named(row["metadata"]["objects"])}


def written(row: dict[str, Any], _: int) -> str:
    """What a row wants written: its completion, else its bare answer."""
    return row.get("completion", row["answer"])


def named(objects: list[dict[str, Any]]) -> str:
    """``red circle A1, blue square C2``, line by line; "nothing" without objects."""
    inside = sorted(objects, key=lambda thing: (thing["cell"][1], thing["cell"][0]))
    names = [f"{o['colour']} {o['shape']} {'ABCD'[o['cell'][0]]}{o['cell'][1] + 1}" for o in inside]
    return ", ".join(names) or "nothing"


def completion(row: dict[str, Any], index: int) -> str:
    """The tagged answer, after a sentence in the task's share of the rows."""
    tagged = f"<answer>{row['answer']}</answer>"
    share = SENTENCE_SHARE[row["task"]]
    return f"{sentence(row)} {tagged}" if random.Random(index).random() < share else tagged


def sentence(row: dict[str, Any]) -> str:
    """What is seen, in one sentence."""
    if row["task"] == "shapes":
        asked = row["metadata"]
        fitting = [
            thing
            for thing in asked["objects"]
            if asked["colour"] in (None, thing["colour"])
            and asked["shape"] in (None, thing["shape"])
        ]
        return f"I see {named(fitting)}."
    if row["task"] == "clocks":
        return f"The hands give {row['answer']}."
    return f"I count {row['answer']}."


# -- NLVR


def nlvr_half(path: Path, half: int) -> Iterator[dict[str, Any]]:
    """Rows of NLVR's tasks whose pictures fall into one half, with the task's instruction.

    The half is a bit of the picture's hash, so that no picture is in both.

    Args:
        path: parquet file of the pack.
        half: 0 for supervised training, 1 for what comes after it.
    """
    rows = load_rows(path).rows
    for index in range(len(rows)):
        row = dict(rows[index])
        if row["task"] in INSTRUCTIONS and half_of(row) == half:
            yield instructed(row)


def instructed(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose problem says how to answer; once, however often this is called."""
    instruction, problem = INSTRUCTIONS[row["task"]], row["problem"].rstrip()
    return row if problem.endswith(instruction) else {**row, "problem": f"{problem} {instruction}"}


def half_of(row: dict[str, Any]) -> int:
    """0 or 1, from the bytes of the row's picture alone."""
    return hashlib.sha256(row["images"][0]["bytes"]).digest()[0] & 1


def with_completion(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the pack with its bare answer, or its bare boxes, to write."""
    answer = row["answer"]
    if row["task"] == "boxes":
        boxes = [thing["bbox_2d"] for thing in json.loads(answer)]
        answer = json.dumps(boxes, separators=(",", ":"))
    return {**row, "completion": f"<answer>{answer}</answer>"}


def write_half(path: Path, rows: list[dict[str, Any]]) -> None:
    """A parquet file of raw rows, for ``foveal train`` and ``foveal eval``."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


class Repeated:
    """A sequence of ``count`` rows that goes through others again and again."""

    draws_rows = True  # nothing is gained by reading each of them a dozen times ahead

    def __init__(self, rows: list[dict[str, Any]], count: int) -> None:
        self.rows, self.count = rows, max(1, count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.rows[index % len(self.rows)]
