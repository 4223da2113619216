"""Several sources of rows as one, and what may be one.

from foveal.data import mixture, task_rows
from foveal.tasks import get_task

train = mixture(
    ["geometry.parquet", hub_stream, task_rows(get_task("charts"), difficulty=2)],
    weights=[2, 1, 1],
)
GRPOTrainer(..., train_dataset=train, args=GRPOConfig(max_steps=500, ...))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.data.datasets import RowSource, load_rows
from foveal.data.feeds import Feed, FeedSettings, MixtureFeed, SetFeed, TaskFeed
from foveal.data.streams import StreamFeed

__all__ = ["Mixture", "TaskRows", "mixture", "open_feed", "open_source", "task_rows"]


@dataclass(frozen=True, slots=True)
class TaskRows:
    """Rows of a procedural task, made as they are needed."""

    task: Any
    difficulty: int
    seed: int

    @property
    def name(self) -> str:
        return f"the task {self.task.name}"


@dataclass(frozen=True, slots=True)
class Mixture:
    """Sources with the probabilities of drawing from them."""

    sources: tuple[Any, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return " + ".join(self.names)


def task_rows(task: Any, difficulty: int = 3, seed: int = 0) -> TaskRows:
    """Endless rows of a task, those of ``foveal.tasks.dataset`` with the same seed.

    Args:
        task: from ``foveal.tasks.get_task``, or any object with ``name`` and
            ``generate(seed, difficulty)``.
        difficulty: 1 to 5; with a curriculum, where it begins.
        seed: hold-out sets take another one.

    Raises:
        TypeError: ``task`` is no task.
    """
    if not _is_task(task):
        raise TypeError(
            f"a task is given as foveal.tasks.get_task(name), not as a {type(task).__name__}"
        )
    return TaskRows(task, difficulty, seed)


def mixture(
    sources: Sequence[Any],
    weights: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
) -> Mixture:
    """One source of training rows made of several.

    Which source a row comes from depends on the run's seed and the row's number alone.

    Args:
        sources: what ``load_rows`` opens, streams included, ``task_rows`` and mixtures.
        weights: how often each is drawn from, of any sum; alike if None, whatever the sizes.
        names: for the log (``source/NAME/reward``); the sources' own if None.

    Raises:
        ValueError: for no source, weights that are not one positive number each, or names that
            are not one each and distinct.
        TypeError, ValueError: as ``load_rows``.
    """
    opened = tuple(open_source(source) for source in sources)
    if not opened:
        raise ValueError("a mixture of nothing; give one source or more")
    given = [1.0] * len(opened) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(opened) or not all(math.isfinite(w) and w > 0 for w in given):
        raise ValueError(
            f"the weights of a mixture are {given} for {len(opened)} sources; give one positive "
            "number for each"
        )
    if names is not None and (len(names) != len(opened) or len(set(names)) < len(names)):
        raise ValueError(
            f"the names of a mixture are {list(names)} for {len(opened)} sources; give one each, "
            "all different"
        )
    chosen = _distinct([_short_name(s) for s in opened]) if names is None else list(names)
    return Mixture(opened, tuple(given), tuple(chosen))


def open_feed(dataset: Any, settings: FeedSettings) -> Feed:
    """The feed of a mixture, a task, a stream or a set.

    Args:
        dataset: a ``Mixture``, ``TaskRows``, task or ``RowSource``, or what ``load_rows`` opens.
        settings: for all of its parts.
    """
    source = open_source(dataset)
    if isinstance(source, Mixture):
        feeds = [open_feed(part, settings) for part in source.sources]
        for feed, name in zip(feeds, source.names, strict=True):
            feed.name = name
        return MixtureFeed(feeds, source.weights, settings.seed)
    if isinstance(source, TaskRows):
        return TaskFeed(source.task, source.difficulty, source.seed, settings)
    feed = StreamFeed(source, settings) if source.is_streamed else SetFeed(source, settings)
    feed.name = _short_name(source)
    return feed


def open_source(source: Any) -> Mixture | TaskRows | RowSource:
    """What training data may be, as one of three: a mixture, a task, or a set or stream."""
    if isinstance(source, Mixture | TaskRows | RowSource):
        return source
    return task_rows(source) if _is_task(source) else load_rows(source)


def _is_task(value: Any) -> bool:
    return callable(getattr(value, "generate", None)) and isinstance(
        getattr(value, "name", None), str
    )


def _short_name(source: Mixture | TaskRows | RowSource) -> str:
    if isinstance(source, TaskRows):
        return source.task.name
    return source.name.rstrip("/").rpartition("/")[2]


def _distinct(names: list[str]) -> list[str]:
    """Names with numbers after those that occur again."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    count: dict[str, int] = {}
    made = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        made.append(f"{name}_{count[name]}" if seen[name] > 1 else name)
    return made
