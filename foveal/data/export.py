"""Normal rows -> rows of any of ``FORMATS``, and rows -> files.

    from foveal.data import export_row, load_rows, write_rows

    source = load_rows("geometry")                                    # of any format
    write_rows([export_row(row, "verl") for row in source], "geometry-verl.parquet")

What is written is read back: ``normalise_row(export_row(row, name))`` has the same messages,
pictures and answer.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from foveal.data.columns import NormalRow
from foveal.data.messages import IMAGE_MARKER

__all__ = ["export_row", "write_rows"]

_OURS = {
    *("prompt", "problem", "messages", "conversations", "image", "images"),
    *("answer", "solution", "label", "reward_model", "objects"),
}
"""Columns that a format writes anew; the others are carried over."""
_LLAVA_ROLES = {"system": "system", "user": "human", "assistant": "gpt"}
_PATH_KEYS = {"image", "images", "image_url", "url", "path", "file_name", "file_names"}
EXTENSIONS = (".parquet", ".jsonl")


def export_row(row: NormalRow, name: str) -> dict[str, Any]:
    """A row as one framework writes it; columns of its own are carried over.

    Args:
        row: of any origin.
        name: of one of ``FORMATS``, such as "verl".

    Raises:
        ValueError: for an unknown format, or a row that it cannot hold: EasyR1 and R1-V have a
            question and no conversation, LLaVA has no tools.
    """
    if name not in _WRITERS:
        raise ValueError(f"there is no format {name!r}; known are {', '.join(_WRITERS)}")
    carried = {key: value for key, value in row.columns.items() if key not in _OURS}
    return {**carried, **_WRITERS[name](row)}


def _easyr1(row: NormalRow) -> dict[str, Any]:
    return {"problem": _question(row, "EasyR1"), "images": row.images, **_answer(row, "answer")}


def _r1v(row: NormalRow) -> dict[str, Any]:
    said = {"solution": f"<answer> {row.answer} </answer>"} if row.answer is not None else {}
    return {**_pictures(row), "problem": _question(row, "R1-V"), **said}


def _verl(row: NormalRow) -> dict[str, Any]:
    facts = {name: row.columns.get(name) for name in ("data_source", "ability", "extra_info")}
    defaults = {"data_source": "unknown", "ability": "vision", "extra_info": {"index": 0}}
    return {
        **{name: defaults[name] if fact is None else fact for name, fact in facts.items()},
        "prompt": _marked(row),
        "images": row.images,
        "reward_model": {"style": "rule", "ground_truth": row.answer},
    }


def _trl(row: NormalRow) -> dict[str, Any]:
    return {"prompt": _parted(row), "images": row.images, **_answer(row, "solution")}


def _llava(row: NormalRow) -> dict[str, Any]:
    turns = []
    for message in _marked(row):
        if message["role"] not in _LLAVA_ROLES:
            raise ValueError(f"LLaVA's conversations have no turns of a {message['role']!r}")
        turns.append({"from": _LLAVA_ROLES[message["role"]], "value": message["content"]})
    if row.answer is not None:
        turns.append({"from": "gpt", "value": row.answer})
    return {**_pictures(row), "conversations": turns}


def _ms_swift(row: NormalRow) -> dict[str, Any]:
    return {"messages": _marked(row), "images": row.images, **_answer(row, "solution")}


def _openrlhf(row: NormalRow) -> dict[str, Any]:
    return {"prompt": _parted(row), "images": row.images, **_answer(row, "label")}


_WRITERS: dict[str, Callable[[NormalRow], dict[str, Any]]] = {
    "EasyR1": _easyr1,
    "R1-V": _r1v,
    "verl": _verl,
    "TRL": _trl,
    "LLaVA": _llava,
    "ms-swift": _ms_swift,
    "OpenRLHF": _openrlhf,
}


def _answer(row: NormalRow, column: str) -> dict[str, Any]:
    return {} if row.answer is None else {column: row.answer}


def _pictures(row: NormalRow) -> dict[str, Any]:
    return {"image": row.images[0]} if len(row.images) == 1 else {"image": row.images}


def _question(row: NormalRow, name: str) -> str:
    if len(row.messages) != 1:
        roles = ", ".join(message["role"] for message in row.messages)
        raise ValueError(
            f"{name} has one question a row, and this row has messages of {roles}; choose a "
            "format with conversations, such as verl"
        )
    return _marked(row)[0]["content"]


def _marked(row: NormalRow) -> list[dict[str, Any]]:
    """Messages of text, with ``<image>`` where a picture is."""
    return [
        {
            "role": message["role"],
            "content": "".join(part.get("text", IMAGE_MARKER) for part in message["content"]),
        }
        for message in row.messages
    ]


def _parted(row: NormalRow) -> list[dict[str, Any]]:
    """Messages of parts; the pictures themselves are in a column."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image"} if part["type"] == "image" else _text(part["text"])
                for part in message["content"]
            ],
        }
        for message in row.messages
    ]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    base_dir: str | os.PathLike[str] | None = None,
) -> int:
    """Write rows as parquet or jsonl; what ``load_rows`` reads back.

    Pictures in the rows are copied into the file. Files that rows name stay where they are: their
    relative paths are written anew, from the folder of ``path``.

    Args:
        rows: column name -> value.
        path: a .parquet or .jsonl file; its folder is made.
        base_dir: folder that relative paths in the rows start from.

    Returns:
        The number of rows.

    Raises:
        ValueError: for another extension, or no rows.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in EXTENSIONS:
        raise ValueError(f"{path} ends with {kind!r}; name a .parquet or a .jsonl file")
    as_text = kind == ".jsonl"
    made = [
        {
            name: _portable(value, str(name), Path(base_dir or "."), path.parent, as_text)
            for name, value in row.items()
        }
        for row in rows
    ]
    if not made:
        raise ValueError(f"there are no rows to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if as_text:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made]
        path.write_text("".join(lines), encoding="utf-8")
    else:
        from datasets import Dataset

        Dataset.from_list(made).to_parquet(str(path))
    return len(made)


def _portable(value: Any, key: str, base: Path, folder: Path, as_text: bool) -> Any:
    """A value as it can be written, with pictures as bytes or text and paths from ``folder``."""
    if isinstance(value, Image.Image):
        value = _png(value)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        if as_text:
            return f"data:image/*;base64,{base64.b64encode(data).decode()}"
        return {"bytes": data, "path": None}
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return _portable(value["bytes"], key, base, folder, as_text)
        return {k: _portable(v, str(k), base, folder, as_text) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_portable(item, key, base, folder, as_text) for item in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and key in _PATH_KEYS and not os.path.isabs(value):
        start = base / value
        # A picture as base64 text is longer than a path may be.
        if len(value) < 256 and start.is_file():
            return Path(os.path.relpath(start, folder)).as_posix()
    return value


def _png(picture: Image.Image) -> bytes:
    written = io.BytesIO()
    picture.save(written, format="PNG")
    return written.getvalue()
