"""Rows whose columns have other names than any known format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["renamed"]


def renamed(rows: Any, names: Mapping[str, str]) -> Any:
    """The same rows, their columns under other names, read as before: on demand.

    Args:
        rows: a sequence of row dicts, or an iterable of them.
        names: old name -> new name. A row without the old column stays as it is; one with both
            keeps the renamed one, so that the column of the same name is replaced.

    Raises:
        ValueError: two columns would get one name.
    """
    if len(set(names.values())) < len(names):
        raise ValueError(f"rename is {dict(names)}: two columns would get one name. Choose one")
    if hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
        return _Sequence(rows, dict(names))
    if isinstance(rows, Iterator):
        return (_row(row, names) for row in rows)
    keeps_state = hasattr(rows, "state_dict") and hasattr(rows, "load_state_dict")
    return (_Stateful if keeps_state else _Stream)(rows, dict(names))


def _row(row: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(row, Mapping):
        return row  # to be blamed with its number, by whoever reads it
    moved = {names[old]: row[old] for old in names if old in row}
    return {name: value for name, value in row.items() if name not in names} | moved


class _Sequence:
    def __init__(self, rows: Any, names: Mapping[str, str]) -> None:
        self._rows, self._names = rows, names

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return _row(self._rows[index], self._names)


class _Stream:
    def __init__(self, rows: Any, names: Mapping[str, str]) -> None:
        self._rows, self._names = rows, names
        if hasattr(rows, "_ex_iterable"):
            # Whether it has a shuffle buffer is seen there (``foveal.data.streams``).
            self._ex_iterable = rows._ex_iterable
        if hasattr(rows, "set_epoch"):
            self.set_epoch = rows.set_epoch

    def __iter__(self) -> Iterator[Any]:
        return (_row(row, self._names) for row in self._rows)


class _Stateful(_Stream):
    def state_dict(self) -> Any:
        return self._rows.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._rows.load_state_dict(state)
