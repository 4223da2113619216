"""Several sources of rows as one, each with its own format and folder of pictures."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from foveal.data.columns import NormalRow
from foveal.data.datasets import RowSource

__all__ = ["join_rows"]


def join_rows(sources: Sequence[RowSource]) -> RowSource:
    """One source with the rows of all, in order; a single one comes back as it is.

    Raises:
        ValueError: no source is given, or one is streamed.
    """
    if not sources:
        raise ValueError("there is no data to join; name at least one file or task")
    if len(sources) == 1:
        return sources[0]
    for source in sources:
        if source.is_streamed:
            raise ValueError(f"{source.name} is streamed; load it with streaming=False to join it")
    return _JoinedRows(_Joined(tuple(sources)), " + ".join(source.name for source in sources))


@dataclass(frozen=True, slots=True)
class _Joined:
    """Raw rows of sources, one after another."""

    sources: tuple[RowSource, ...]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Any:
        source, place = self.find(index)
        return source.rows[place]

    def find(self, index: int) -> tuple[RowSource, int]:
        """The source that holds a row, and the row's number there."""
        ends = list(accumulate(len(source) for source in self.sources))
        if not 0 <= index < ends[-1]:
            raise IndexError(index)
        number = bisect_right(ends, index)
        return self.sources[number], index - (ends[number] - len(self.sources[number]))


class _JoinedRows(RowSource):
    """Reads each row as its own source does; an error names that source."""

    def is_drawn(self, index: int) -> bool:
        source, place = self.rows.find(index)
        return source.is_drawn(place)

    def normal(self, row: Any, index: int) -> NormalRow:
        source, place = self.rows.find(index)
        try:
            return source.normal(row, place)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{source.name}: {error}") from error
