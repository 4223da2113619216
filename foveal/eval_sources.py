"""What an evaluation reads: several sources of rows, each with the rewards that judge it.

    opened = open_sources(["nlvr/train.parquet", "task:shapes"], rows=100)
    judged = judged_sources(opened, ["exact_answer", ":boxes=boxes_iou"])
    check_sources(judged)          # every row and every reward, before weights are loaded

A source is called by its file (``nlvr/train``), its folder, hub id or task, or as the user says:
``NAME=PATH``. A reward is for all files, or ``SOURCE=REWARD``, ``SOURCE:TASK=REWARD``,
``:TASK=REWARD`` for rows whose column ``task`` says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foveal.data import NormalRow, RowSource, load_rows
from foveal.inspection import check_rows
from foveal.rewards import RewardCaller, RewardFunction, resolve

TASK = "task:"
TASK_ROWS = 200
"""Rows of each difficulty that are made of a task unless the user says how many."""

_NAMED = re.compile(r"([\w.-]+)=(.+)")
# A reward's own settings, as in number_within(rel_tol=0.1), stand after its parenthesis.
_ADDRESSED = re.compile(r"([^=:(]*)(?::([^=(]*))?=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Opened:
    """Rows under a name that is unique in its run."""

    name: str
    data: str
    """As the user wrote it, without the name."""
    rows: RowSource

    @property
    def task(self) -> str | None:
        """Name of the procedural task that made the rows; None for a file."""
        return self.data.removeprefix(TASK) if self.data.startswith(TASK) else None


@dataclass(frozen=True, slots=True)
class EvalSource:
    """Rows and who judges them; the first reward of a row says whether an answer is right."""

    name: str
    rows: RowSource
    rewards: tuple[RewardFunction, ...]
    """For rows whose task is not in ``by_task``."""
    by_task: Mapping[str, tuple[RewardFunction, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, as text, for the file."""

    def rewards_of(self, row: NormalRow) -> tuple[RewardFunction, ...]:
        """The rewards of a row; empty if nothing was said about its task."""
        return self.by_task.get(_task_of(row), self.rewards)


def open_sources(
    data: Sequence[str],
    *,
    rows: int | None = None,
    split: str | None = None,
    difficulty: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Opened]:
    """Open each of ``data``.

    Args:
        data: files, folders, hub ids or ``task:NAME``, each with or without ``NAME=`` before it.
        rows: only the first so many of each; of a task, of each difficulty.
        split: of all that is no task.
        difficulty: of all tasks.
        seed: of the tasks' rows.

    Raises:
        ValueError: for two sources with one name, settings that no source has, and what
            ``load_rows`` and tasks refuse.
    """
    named = [_split_name(text) for text in data]
    names = Counter(name for name, _ in named)
    for name, count in names.items():
        if count > 1:
            first = next(text for one, text in named if one == name)
            raise ValueError(
                f"{count} sources are called {name!r}; give them names of their own, such as "
                f"--data first={first}"
            )
    are_tasks = [text.startswith(TASK) for _, text in named]
    if split is not None and all(are_tasks):
        raise ValueError(f"--split is {split!r}, and a task has no splits; leave it out")
    if difficulty and not any(are_tasks):
        raise ValueError("--difficulty is for task:NAME; rows of a file are as they are")
    return [
        Opened(
            name,
            text,
            open_rows(text, rows=rows, difficulty=difficulty, seed=seed)
            if is_task
            else open_rows(text, rows=rows, split=split),
        )
        for (name, text), is_task in zip(named, are_tasks, strict=True)
    ]


def open_rows(
    data: str,
    *,
    rows: int | None = None,
    split: str | None = None,
    difficulty: Sequence[int] | None = None,
    seed: int = 0,
) -> RowSource:
    """Rows of one file, folder, hub id or ``task:NAME``.

    Raises:
        ValueError: as ``open_sources``.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"--rows is {rows}; it must be at least 1")
    if data.startswith(TASK):
        if split is not None:
            raise ValueError(f"--split is {split!r}, and a task has no splits; leave it out")
        return _task_rows(data.removeprefix(TASK), rows or TASK_ROWS, difficulty, seed)
    if difficulty:
        raise ValueError("--difficulty is for task:NAME; rows of a file are as they are")
    source = load_rows(data, split)
    return source if rows is None else replace(source, rows=_Head(source.rows, rows))


def _split_name(text: str) -> tuple[str, str]:
    """Name and data of ``NAME=DATA`` or ``DATA``."""
    named = _NAMED.fullmatch(text)
    # A folder such as "lang=en" is there, and then it is no name.
    if named is not None and not Path(text).expanduser().exists():
        return named[1], named[2]
    if text.startswith(TASK):
        return text.removeprefix(TASK), text
    path, real = Path(text), Path(text).expanduser()
    name = text
    if real.is_file():
        name = f"{path.parent.name}/{path.stem}" if path.parent.name else path.stem
    elif real.is_dir():
        name = real.resolve().name
    # These would end the name within a --reward.
    return re.sub("[:=(]", "_", name), text


def _task_rows(name: str, count: int, difficulty: Sequence[int] | None, seed: int) -> RowSource:
    from foveal.tasks import dataset

    levels: list[dict[str, int]] = [{"difficulty": level} for level in difficulty or ()]
    made = [row for level in levels or [{}] for row in dataset(name, count, seed, **level)]
    return replace(load_rows(made), name=f"{TASK}{name}")


@dataclass(frozen=True, slots=True)
class _Head:
    """The first rows of a sequence of rows."""

    rows: Any
    most: int

    def __len__(self) -> int:
        return min(self.most, len(self.rows))

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index >= len(self):
            raise IndexError(index)
        return self.rows[index]


@dataclass(frozen=True, slots=True)
class _Address:
    """A reward and which rows it is for."""

    source: str | None
    task: str | None
    reward: str


def judged_sources(opened: Sequence[Opened], rewards: Sequence[str] | None) -> list[EvalSource]:
    """Give each source its rewards.

    A reward without an address judges all files (and tasks where there is no file); a task
    brings its own. ``SOURCE=REWARD`` takes the place of both, for rows of a task
    ``SOURCE:TASK=REWARD``, and before that ``:TASK=REWARD``.

    Raises:
        ValueError: for an unknown source or reward, a source without a reward, and a reward
            that judges nothing.
    """
    addresses = [_address(text) for text in rewards or ()]
    known = [source.name for source in opened]
    for one in addresses:
        if one.source not in (None, *known) and not (one.source == "" and one.task is not None):
            raise ValueError(
                f"--reward is for {one.source!r}, and no source is called so; the sources are "
                f"{', '.join(map(repr, known))}"
            )
    only_tasks = all(source.task is not None for source in opened)
    judged = [_judged(source, addresses, only_tasks) for source in opened]
    general = [one.reward for one in addresses if one.source is None]
    used = [name for source in judged for name in source.settings["rewards"]]
    if unused := [name for name in general if name not in used]:
        raise ValueError(
            f"--reward {unused[0]} judges nothing: every source has rewards of its own; leave it "
            "out, or write --reward SOURCE=REWARD"
        )
    return judged


def _address(text: str) -> _Address:
    found = _ADDRESSED.fullmatch(text)
    return _Address(found[1], found[2], found[3]) if found else _Address(None, None, text)


def _judged(source: Opened, addresses: Sequence[_Address], only_tasks: bool) -> EvalSource:
    general = source.task is None or only_tasks
    names = [a.reward for a in addresses if a.task is None and a.source == source.name] or [
        a.reward for a in addresses if a.source is None and general
    ]
    by_task: dict[str, list[str]] = {}
    for task in dict.fromkeys(a.task for a in addresses if a.task is not None):
        for address in (source.name, ""):
            found = [a.reward for a in addresses if (a.source, a.task) == (address, task)]
            if found:
                by_task[task] = found
                break
    if not names and not by_task and source.task is None:
        raise ValueError(
            f"--reward is missing for {source.name}; name one, such as --reward exact_answer, "
            f"or --reward {source.name}=exact_answer for this source alone"
        )
    functions = tuple(resolve(name) for name in names)
    if not names and source.task is not None:
        functions = (_own_reward(source.task),)
    return EvalSource(
        source.name,
        source.rows,
        functions,
        {task: tuple(resolve(name) for name in found) for task, found in by_task.items()},
        {
            "name": source.name,
            "data": source.data,
            "rows": len(source.rows),
            "rewards": names or ([f"the task's own ({source.task})"] if source.task else []),
            "by_task": by_task,
        },
    )


def _own_reward(task: str) -> RewardFunction:
    from foveal.tasks import get_task

    return get_task(task).reward


RowCheck = Callable[[EvalSource, NormalRow, int], None]
"""Source, row and its number in the source."""


def check_sources(
    sources: Sequence[EvalSource], also: RowCheck | None = None, *, show_progress: bool = False
) -> None:
    """Read every row, before weights are loaded.

    Args:
        sources: from ``judged_sources``.
        also: called with every row that can be read; raises for what it refuses.
        show_progress: draw a bar.

    Raises:
        ValueError: for rows that cannot be used, tasks without a reward, rewards for tasks that
            do not occur, and columns that a reward needs and the rows do not have.
    """
    seen: Counter[str] = Counter()
    for source in sources:
        seen += _check(source, also, show_progress)
    wanted = {task for source in sources for task in source.by_task}
    if absent := sorted(wanted - seen.keys()):
        raise ValueError(
            f"--reward is for the task {absent[0]!r}, which no row has; the tasks are "
            f"{', '.join(sorted(seen)) or 'none (there is no column task)'}"
        )


def _check(source: EvalSource, also: RowCheck | None, show_progress: bool) -> Counter[str]:
    """Check one source; its tasks and how many rows have them."""
    tasks: Counter[str] = Counter()
    checked: set[tuple[int, ...]] = set()

    def functions_of(row: NormalRow, index: int) -> tuple[RewardFunction, ...]:
        functions = source.rewards_of(row)
        tasks[_task_of(row)] += 1
        if also is not None:
            also(source, row, index)
        key = tuple(map(id, functions))
        if functions and key not in checked:
            RewardCaller(list(functions)).check_columns(row.columns)
            checked.add(key)
        return functions

    check_rows(source.rows, functions_of, show_progress=show_progress)
    bare = {} if source.rewards else {t: n for t, n in tasks.items() if t not in source.by_task}
    if bare:
        task, count = next(iter(bare.items()))
        raise ValueError(
            f"{source.name}: no reward judges {count} rows of the task {task!r}; add --reward "
            f"{source.name}:{task}=REWARD, or --reward {source.name}=REWARD for all the others"
        )
    tasks.pop("", None)
    return tasks


def _task_of(row: NormalRow) -> str:
    task = row.columns.get("task")
    return "" if task is None else str(task)
