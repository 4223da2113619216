"""Rows that come in order only: a stream of the hub, a file read line by line, a generator.

Rows are read in blocks of ``FeedSettings.buffer``; shuffling is within a block, so that memory is
bounded and a resumed run needs no more than the block's beginning and the place in it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from foveal.data.datasets import RowSource
from foveal.data.feeds import Fed, Feed, FeedSettings

__all__ = ["StreamFeed"]


class StreamFeed(Feed):
    """Rows of a streamed ``RowSource``; when it ends it begins again, if it can.

    A resumed run goes to the block that it was in: by the iterable's ``load_state_dict`` where it
    has one that is exact, else by reading on from its beginning.

    Args:
        rows: its ``rows`` are any iterable of row dicts.
        settings: of which ``buffer``, ``shuffle`` and ``seed`` count.
    """

    def __init__(self, rows: RowSource, settings: FeedSettings) -> None:
        self.rows, self.settings = rows, settings
        self.name = rows.name
        self._keeps_state = _keeps_state(rows.rows)
        self._pass = 0
        self._start = 0
        """Rows of this pass before the block."""
        self._start_state: Any = None
        """The iterable's own state there, if it keeps one."""
        self._block: list[Any] = []
        self._place = 0
        self._reader: Iterator[Any] | None = None
        self._used = False

    def draw(self) -> Fed:
        if self._place == len(self._block):
            self._next_block()
        number = self._order()[self._place]
        self._place += 1
        index = self._start + number
        return Fed(self.rows.normal(self._block[number], index), self.name, None)

    def _order(self) -> list[int]:
        order = list(range(len(self._block)))
        if self.settings.shuffle:
            random.Random(f"{self.settings.seed}/{self._pass}/{self._start}").shuffle(order)
        return order

    def _next_block(self) -> None:
        # Before its first row an iterable may still hold the state of the pass before.
        if self._block and self._keeps_state:
            self._start_state = self.rows.rows.state_dict()
        self._start += len(self._block)
        self._place = 0
        self._read_block()
        if not self._block:
            if self._start == 0:
                raise ValueError(f"{self.name} is empty: it has no rows. Check the file and split")
            self._begin_pass(self._pass + 1)
            self._read_block()

    def _read_block(self) -> None:
        if self._reader is None:
            self._begin_pass(self._pass)
        assert self._reader is not None
        self._block = list(islice(self._reader, self.settings.buffer))

    def _begin_pass(self, number: int, state: Any = None) -> None:
        rows = self.rows.rows
        if self._used and isinstance(rows, Iterator):
            raise ValueError(
                f"{self.name} is an iterator that can be read once, and {self._start} rows of it "
                "are used up. Give an object whose __iter__ begins anew, more rows, or lower "
                "max_steps"
            )
        if hasattr(rows, "set_epoch"):
            rows.set_epoch(number)
        if self._keeps_state and (state is not None or hasattr(rows, "_ex_iterable")):
            rows.load_state_dict(state)  # None makes those of the datasets library forget
        self._reader, self._used = iter(rows), True
        self._pass, self._start, self._block, self._place = number, 0, [], 0
        self._start_state = state

    def state_dict(self) -> dict[str, Any]:
        return {
            "pass": self._pass,
            "start": self._start,
            "place": self._place,
            "rows": self._start_state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        number, start = state["pass"], state["start"]
        is_here = (self._pass, self._start) == (number, start) and self._block
        if not is_here and (start or number or self._used):
            self._seek(number, start, state["rows"])
        elif not is_here:
            self._block = []
        if state["place"] and not self._block:
            self._read_block()
        self._place = state["place"]

    def _seek(self, number: int, start: int, own: Any) -> None:
        """Go to where a block begins."""
        rows = self.rows.rows
        if self._keeps_state and own is not None:
            self._begin_pass(number, own)
        else:
            behind = self._start + len(self._block)
            once = self._used and isinstance(rows, Iterator)
            if not (once and self._pass == number and behind <= start):
                self._begin_pass(number)
                behind = 0
            assert self._reader is not None
            skipped = sum(1 for _ in islice(self._reader, start - behind))
            if skipped < start - behind:
                raise ValueError(
                    f"{self.name} ended after {behind + skipped} rows, and the checkpoint was made "
                    f"after {start}. Resume with the data that the run began with"
                )
        self._start, self._block = start, []


def _keeps_state(rows: Any) -> bool:
    """Whether ``rows.load_state_dict`` brings back exactly what would have come next."""
    if not (hasattr(rows, "state_dict") and hasattr(rows, "load_state_dict")):
        return False
    return not hasattr(rows, "_ex_iterable") or not _shuffles(rows._ex_iterable)


def _shuffles(iterable: Any) -> bool:
    """Whether a pipeline of the datasets library has a shuffle buffer, which its state lacks."""
    if "BufferShuffled" in type(iterable).__name__:
        return True
    inner = [
        getattr(iterable, "ex_iterable", None),
        *(getattr(iterable, "ex_iterables", None) or []),
    ]
    return any(_shuffles(part) for part in inner if part is not None)
