"""Tables on disk: which files a folder holds, and their rows.

json, jsonl and csv are read here rather than by the datasets library: rows may then differ in
their columns and types ("image" a text in one and a list in the next), "007" stays "007", and an
error names the line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

__all__ = ["EXTENSIONS", "find_tables", "read_tables", "split_of"]

_SPLIT = re.compile(r"(?<![a-z])(train|test|validation|valid|val|dev)(?![a-z])")
_SAME_SPLIT = {"valid": "validation", "val": "validation", "dev": "validation"}
_NOT_DATA = {"dataset_info.json", "dataset_infos.json"}


def find_tables(folder: Path) -> dict[str, list[Path]]:
    """Data files under ``folder`` by split, all of one extension.

    Metadata of an image folder goes before all other files, then ``EXTENSIONS`` in order.

    Returns:
        split -> files in the order of their names; empty if there are none.
    """
    found = sorted(_visible_tables(folder))
    found = [file for file in found if file.stem == "metadata"] or found
    extension = next(
        (e for e in EXTENSIONS if any(file.suffix.lower() == e for file in found)), None
    )
    tables: dict[str, list[Path]] = {}
    for file in found:
        if file.suffix.lower() == extension:
            tables.setdefault(split_of(file, folder), []).append(file)
    return tables


def split_of(file: Path, folder: Path) -> str:
    """Split of a file in ``folder``: by its own name, or by a folder's between; else "train"."""
    inside = file.relative_to(folder)
    for part in (inside.stem, *reversed(inside.parent.parts)):
        match = _SPLIT.search(part.lower())
        if match:
            return _SAME_SPLIT.get(match[1], match[1])
    return "train"


def read_tables(files: list[Path], streaming: bool) -> Any:
    """Rows of ``files``, one after the other.

    Returns:
        Parquet: a ``datasets.Dataset`` (memory-mapped) or ``IterableDataset``. Others: a list of
        dicts or, streamed, an iterable of them. In an image folder the columns ``file_name`` and
        ``file_names`` become ``image`` and ``images``.

    Raises:
        ValueError: a file is damaged; the message names the line.
    """
    if files[0].suffix.lower() == ".parquet":
        if files[0].stem == "metadata":
            return [_name_pictures(row) for row in _load_parquet(files, streaming=False)]
        return _load_parquet(files, streaming)
    streamed = _TextRows(tuple(files))
    return streamed if streaming else list(streamed)


@dataclass(frozen=True, slots=True)
class _TextRows:
    """Rows of json, jsonl or csv files, read anew by each iteration."""

    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return chain.from_iterable(self._read(file) for file in self.files)

    def _read(self, file: Path) -> Iterator[dict[str, Any]]:
        rows = _TEXT_READERS[file.suffix.lower()](file)
        return map(_name_pictures, rows) if file.stem == "metadata" else rows


def _visible_tables(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in EXTENSIONS and not hidden and file.name not in _NOT_DATA:
            yield file


def _load_parquet(files: list[Path], streaming: bool) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    names = [str(file) for file in files]
    try:
        return load_dataset("parquet", data_files=names, split="train", streaming=streaming)
    except (DatasetsError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"{', '.join(names)} cannot be read as parquet ({type(cause).__name__}: {cause}). "
            f"Write the file again."
        ) from error


def _read_json(file: Path) -> Iterator[dict[str, Any]]:
    text = file.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        # Data sets on the hub often call JSON lines ".json".
        yield from _read_lines(file)
        return
    for number, row in enumerate(_parse(text, f"{file}")):
        yield _object(row, f"{file}, row {number}")


def _read_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield _object(_parse(line, where), where)


def _read_csv(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{file}, line {reader.line_num}: more fields than the header has "
                        f"({len(reader.fieldnames or ())}). Put text with commas in quotes."
                    )
                yield row
        except csv.Error as error:
            raise ValueError(
                f"{file}, line {reader.line_num}: not CSV ({error}). Write the file again, or "
                f"use jsonl or parquet."
            ) from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON ({error}). A .json file holds one list of objects, a .jsonl file "
            f"one object a line."
        ) from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: a {type(row).__name__} where a row is expected. A row is a JSON object: "
            f"column name -> value."
        )
    return row


def _name_pictures(row: dict[str, Any]) -> dict[str, Any]:
    named = dict(row)
    for given, meant in (("file_name", "image"), ("file_names", "images")):
        if named.get(given) is not None:
            named.setdefault(meant, named[given])
    return named


_TEXT_READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
}
EXTENSIONS = (".parquet", *_TEXT_READERS)
"""Of files that can be read, in the order in which a folder is searched for them."""
