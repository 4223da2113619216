"""Procedural visual tasks with exact answers: as many rows as wanted, from a seed, offline.

    from foveal.tasks import dataset, get_task
    rows = dataset("shapes", n=1000, seed=0, difficulty=3)   # TRL's and ours, ready to train on
    reward_funcs = [get_task("shapes").reward]      # or, for a mixture of tasks, ["task_reward"]

A row holds ``images``, ``problem`` (with its ``<image>`` marker), ``answer``, ``task``,
``difficulty`` and ``metadata``, from which ``reference_answer`` solves the row again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, Protocol

from foveal.tasks.base import DIFFICULTIES, DrawnTask, tolerant_reward
from foveal.tasks.candles import CandlesTask
from foveal.tasks.cells import CellsTask
from foveal.tasks.charts import ChartsTask
from foveal.tasks.circuits import CircuitsTask
from foveal.tasks.clocks import ClocksTask
from foveal.tasks.drawings import DrawingsTask
from foveal.tasks.drawn_rows import DrawnRows, tagged
from foveal.tasks.gauges import GaugesTask
from foveal.tasks.gears import GearsTask
from foveal.tasks.geometry import GeometryTask
from foveal.tasks.inclines import InclinesTask
from foveal.tasks.mixed import task_reward
from foveal.tasks.molecules import MoleculesTask
from foveal.tasks.optics import OpticsTask
from foveal.tasks.pulleys import PulleysTask
from foveal.tasks.read_text import ReadTextTask
from foveal.tasks.relations import RelationsTask
from foveal.tasks.shapes import ShapesTask, shapes_reward
from foveal.tasks.stars import StarsTask
from foveal.tasks.tables import TablesTask
from foveal.tasks.textbook import TextbookTask
from foveal.tasks.zoom import ZoomTask

__all__ = [
    "TASKS",
    "Task",
    "dataset",
    "drawn_rows",
    "DrawnRows",
    "tagged",
    "get_task",
    "task_reward",
    "missing_package",
    "ShapesTask",
    "shapes_reward",
    "DrawnTask",
    "tolerant_reward",
    "CandlesTask",
    "CellsTask",
    "ChartsTask",
    "CircuitsTask",
    "ClocksTask",
    "GaugesTask",
    "DrawingsTask",
    "GearsTask",
    "GeometryTask",
    "InclinesTask",
    "MoleculesTask",
    "OpticsTask",
    "PulleysTask",
    "StarsTask",
    "TextbookTask",
    "TablesTask",
    "ZoomTask",
    "ReadTextTask",
    "RelationsTask",
]

_ROWS_PER_SEED = 2**32


class Task(Protocol):
    """What a task family offers; one object of the registry."""

    @property
    def name(self) -> str: ...

    def generate(self, seed: int, difficulty: int = 3) -> dict[str, Any]: ...

    def reference_answer(self, metadata: dict[str, Any]) -> str: ...

    def reward(self, prompts: Any, completions: Any, **columns: Any) -> list[float]: ...


_ALL: tuple[Task, ...] = (
    ShapesTask(),
    ChartsTask(),
    GeometryTask(),
    CircuitsTask(),
    CellsTask(),
    GaugesTask(),
    CandlesTask(),
    StarsTask(),
    ClocksTask(),
    MoleculesTask(),
    GearsTask(),
    DrawingsTask(),
    InclinesTask(),
    PulleysTask(),
    OpticsTask(),
    TextbookTask(),
    TablesTask(),
    ZoomTask(),
    ReadTextTask(),
    RelationsTask(),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        ValueError: for an unknown name; names the nearest one and lists all.
    """
    if name in TASKS:
        return TASKS[name]
    near = get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no task is called {name!r}; {hint}There are: {', '.join(sorted(TASKS))}")


def missing_package(task: Task) -> str | None:
    """The optional package that ``task`` draws with, if it is not installed; else None."""
    needed = task.needs if isinstance(task, DrawnTask) else None
    return needed if needed is not None and find_spec(needed) is None else None


def dataset(name: str, n: int, seed: int = 0, difficulty: int = 3) -> list[dict[str, Any]]:
    """``n`` rows of a task. Data sets of two seeds share no row seed; a longer one begins with
    the shorter one's rows.

    Raises:
        ValueError: for an unknown task or difficulty, a negative seed, or ``n`` below 1.
        ImportError: where the package that draws the task is not installed.
    """
    return list(drawn_rows(name, n, seed, (difficulty,)))  # pyright: ignore[reportArgumentType]


def drawn_rows(
    name: str,
    n: int,
    seed: int = 0,
    difficulties: Sequence[int] = (3,),
    completion: Callable[[dict[str, Any], int], str] | None = None,
) -> DrawnRows:
    """The rows of :func:`dataset`, each drawn when it is read, and of several difficulties in turn.

    Args:
        completion: ``(row, number) -> text`` that supervised training is to write, such as
            ``foveal.tasks.tagged``; None leaves the column out.

    Raises:
        ValueError: as :func:`dataset`.
    """
    if not 1 <= n < _ROWS_PER_SEED:
        raise ValueError(f"n is {n}; a data set has 1 row or more")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    for level in difficulties or (None,):
        if level not in DIFFICULTIES:
            raise ValueError(f"difficulty is {level!r}; choose one of {list(DIFFICULTIES)}")
    first = seed * _ROWS_PER_SEED
    return DrawnRows(get_task(name).generate, n, first, tuple(difficulties), completion)
