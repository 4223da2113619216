"""From what a user names (files, folders, hub ids, objects) to a ``RowSource``.

A ``RowSource`` reads rows on demand: a picture is decoded when its row is, never before, so that a
damaged one is reported with its row and a large set costs no memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveal.data.columns import NormalRow, normalise_row
from foveal.data.files import EXTENSIONS, find_tables, read_tables, split_of
from foveal.data.renaming import renamed

__all__ = ["RowSource", "load_rows"]

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows of one data set, normalised as they are read."""

    rows: Any
    """Raw rows: column name -> value, pictures as they are stored. A sequence, or only an
    iterable if streamed."""
    name: str
    """Where the rows came from, for messages."""
    base_dir: Path | None = None
    """Folder that relative picture paths start from."""

    @property
    def is_streamed(self) -> bool:
        """Whether rows come in order only, their number unknown."""
        return not (hasattr(self.rows, "__len__") and hasattr(self.rows, "__getitem__"))

    def __len__(self) -> int:
        self._need_random_access()
        return len(self.rows)

    def is_drawn(self, index: int) -> bool:
        """Whether a row is made when it is asked for, so that reading it ahead is work lost."""
        return getattr(self.rows, "draws_rows", False)

    def __getitem__(self, index: int) -> NormalRow:
        """Row ``index``, pictures decoded. Raises what ``normalise_row`` raises."""
        self._need_random_access()
        if not 0 <= index < len(self.rows):
            raise IndexError(f"{self.name} has {len(self.rows)} rows, numbered from 0; not {index}")
        return self.normal(self.rows[index], index)

    def __iter__(self) -> Iterator[NormalRow]:
        """Rows in order, each decoded as it is reached."""
        index = -1
        for index, row in enumerate(self.rows):
            yield self.normal(row, index)
        if index < 0:
            raise _empty(self.name)

    def normal(self, row: Any, index: int) -> NormalRow:
        """A raw row of this source, normalised. Raises what ``normalise_row`` raises."""
        if not isinstance(row, Mapping):
            raise TypeError(
                f"row {index} of {self.name} is of type {type(row).__name__}. "
                f"A row is a dict: column name -> value."
            )
        return normalise_row(row, index, base_dir=self.base_dir)

    def _need_random_access(self) -> None:
        if self.is_streamed:
            raise TypeError(
                f"{self.name} is streamed: it has no length and no numbered rows. Iterate over "
                f"it, or load it with streaming=False."
            )


def load_rows(
    spec: Any,
    split: str | None = None,
    streaming: bool = False,
    *,
    rename: Mapping[str, str] | None = None,
    image_dir: str | os.PathLike[str] | None = None,
) -> RowSource:
    """Opens a data set.

    Args:
        spec: a ``datasets.Dataset``, ``IterableDataset`` or ``DatasetDict``, a list of dicts,
            other sequence of them or (streamed) any iterable of them; or the name of a parquet,
            json, jsonl or csv file, of a folder of such files, of an image folder with
            ``metadata.jsonl`` or ``metadata.csv``, of a folder written by ``save_to_disk``, or
            of a data set on the Hugging Face hub.
        split: which split, "train[:100]" and "train[-10%:]" included. None means "train", or
            the only one there is. In a folder, splits are told by file and folder names.
        streaming: read rows in order, nothing ahead.
        rename: column of the data -> column of a known format, such as
            ``{"question": "problem", "img": "image"}``.
        image_dir: folder that relative picture paths start from; that of the data if None.

    Raises:
        ValueError: nothing has that name, the set is empty, the extension or split is unknown,
            a file is damaged.
        TypeError: ``spec`` is none of the above.
    """
    source = _load(spec, split, streaming)
    if image_dir is not None:
        source = replace(source, base_dir=Path(os.path.expanduser(image_dir)))
    return replace(source, rows=renamed(source.rows, rename)) if rename else source


def _load(spec: Any, split: str | None, streaming: bool) -> RowSource:
    if not isinstance(spec, (str, os.PathLike)):
        return _from_object(spec, split)
    path = Path(os.path.expanduser(spec))
    if path.is_file():
        return _from_file(path, split, streaming)
    if path.is_dir():
        return _from_folder(path, split, streaming)
    known = path.suffix.lower() in EXTENSIONS
    if isinstance(spec, str) and _HUB_ID.fullmatch(spec) and not known:
        return _from_hub(spec, split, streaming)
    raise ValueError(
        f"there is no file or folder {str(spec)!r} (looked for {path.absolute()}). "
        f"Correct the path."
    )


def _from_object(spec: Any, split: str | None, name: str = "the data set") -> RowSource:
    if isinstance(spec, Mapping):
        splits = {str(key): rows for key, rows in spec.items()}
        if not all(_is_split(rows) for rows in splits.values()):
            raise TypeError(
                f"a dict with the keys {sorted(splits)} is no data set. Give a list of row dicts, "
                f"or datasets.Dataset.from_dict(..)."
            )
        chosen = _choose_split(list(splits), split, name)
        return _source(_cut(splits[chosen], split), name)
    if split is not None:
        raise ValueError(
            f"split={split!r} was given with one data set of type {type(spec).__name__}. "
            f"Leave it out, or select rows before."
        )
    if not _is_rows(spec) and not _is_stream(spec):
        raise TypeError(
            f"rows cannot be read from a {type(spec).__name__}. Give a datasets.Dataset, a list "
            f"of dicts, any other iterable of them, a file or folder, or a hub id."
        )
    return _source(spec, name)


def _is_rows(value: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping)):
        return False
    is_array = hasattr(value, "dtype") or hasattr(value, "dtypes")
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return _is_dataset(value) or (sized and not is_array)


def _is_stream(value: Any) -> bool:
    is_array = hasattr(value, "dtype") or hasattr(value, "dtypes")
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return (
        hasattr(value, "__iter__")
        and not isinstance(value, (str, bytes, Mapping))
        and not (is_array or sized)
    )


def _is_split(value: Any) -> bool:
    # A list of texts is a column: {"problem": [..]} is a table on its side.
    return _is_dataset(value) or (
        _is_rows(value) and all(isinstance(row, Mapping) for row in value[:1])
    )


def _is_dataset(value: Any) -> bool:
    # Known by name: lists of rows need no import of the library.
    made_in = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    return "datasets" in made_in and hasattr(value, "features")


def _from_file(path: Path, split: str | None, streaming: bool) -> RowSource:
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(
            f"{path} has the extension {path.suffix!r}. Files that can be read: "
            f"{', '.join(EXTENSIONS)}."
        )
    own = split_of(path, path.parent)
    if split is not None and _base_name(split) not in ("train", own):
        raise ValueError(f"{path} is one file; it has no split {split!r}. Leave the split out.")
    return _source(_cut(read_tables([path], streaming), split), str(path), path.parent)


def _from_folder(folder: Path, split: str | None, streaming: bool) -> RowSource:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        saved = load_from_disk(str(folder))
        splits = saved if isinstance(saved, Mapping) else {"train": saved}
        return _from_object(splits, split, str(folder))
    tables = find_tables(folder)
    if not tables:
        raise ValueError(
            f"{folder} holds no file that can be read ({', '.join(EXTENSIONS)}). A folder of "
            f"pictures needs metadata.jsonl beside them, with file_name, problem and answer in "
            f"each line."
        )
    files = tables[_choose_split(list(tables), split, str(folder))]
    base_dir = Path(os.path.commonpath([file.parent for file in files]))
    return _source(_cut(read_tables(files, streaming), split), str(folder), base_dir)


def _from_hub(name: str, split: str | None, streaming: bool) -> RowSource:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        loaded = load_dataset(name, split=split, streaming=streaming)
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no file or folder here, and as a data set of the hub it could not be "
            f"loaded ({type(error).__name__}: {error}). Correct the name, or load it with "
            f"datasets.load_dataset and pass the result."
        ) from error
    return _from_object(loaded, None, name)


def _choose_split(names: list[str], split: str | None, where: str) -> str:
    if split is not None and _base_name(split) in names:
        return _base_name(split)
    if split is None and ("train" in names or len(names) == 1):
        return "train" if "train" in names else names[0]
    asked = "no split was named" if split is None else f"there is no split {split!r}"
    raise ValueError(f"{where}: {asked}. Choose one of {', '.join(sorted(names)) or 'none'}.")


def _base_name(split: str) -> str:
    return split.partition("[")[0]


def _cut(rows: Any, split: str | None) -> Any:
    if split is None or "[" not in split:
        return rows
    from datasets import ReadInstruction

    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise ValueError(f"split {split!r} cannot be cut from streamed rows. Use streaming=False.")
    try:
        (cut,) = ReadInstruction.from_spec(split).to_absolute({_base_name(split): len(rows)})
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"split {split!r} is not understood ({error}). Write train[:100]."
        ) from error
    chosen = range(cut.from_ or 0, len(rows) if cut.to is None else cut.to)
    return rows.select(chosen) if _is_dataset(rows) else [rows[number] for number in chosen]


def _source(rows: Any, name: str, base_dir: Path | None = None) -> RowSource:
    source = RowSource(_undecoded(rows) if _is_dataset(rows) else rows, name, base_dir)
    if not source.is_streamed and len(source) == 0:
        raise _empty(name)
    return source


def _empty(name: str) -> ValueError:
    return ValueError(f"{name} is empty: it has no rows. Check the file and the split.")


def _undecoded(rows: Any) -> Any:
    """The same rows with pictures left as stored, for ``load_image`` to decode and to blame."""
    if not hasattr(rows, "__len__"):
        return rows.decode(False) if rows.features else rows
    # A transform of the user's makes the row, so only it may read it.
    return rows if rows.format["type"] == "custom" else _StoredRows(rows)


class _StoredRows:
    """Rows of a ``datasets.Dataset``, everything decoded but pictures."""

    def __init__(self, rows: Any) -> None:
        from datasets import Features

        features = deepcopy(dict(rows.features))
        _leave_pictures(features)
        self._features = Features(features)
        self._tables = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self._tables)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)
        return self._features.decode_example(self._tables[index].to_pylist()[0])


def _leave_pictures(feature: Any) -> None:
    from datasets import Image

    if isinstance(feature, Image):
        feature.decode = False
    elif isinstance(feature, dict):
        for inner in feature.values():
            _leave_pictures(inner)
    elif isinstance(feature, list):
        _leave_pictures(feature[0])
    elif hasattr(feature, "feature"):
        _leave_pictures(feature.feature)
