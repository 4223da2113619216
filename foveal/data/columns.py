"""Rows of every common format -> one: messages with pictures, an answer, the other columns.

``detect_format`` names the format of a row by its columns; ``normalise_row`` does the work. The
formats differ in little: the column that holds the question, and where the answer is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from foveal.data.images import load_image
from foveal.data.messages import place_images, plain_list, to_messages, with_system_prompt
from foveal.data.objects import fill_objects, object_columns

__all__ = [
    "FORMATS",
    "NormalRow",
    "RowFormat",
    "detect_format",
    "normalise_answer",
    "normalise_row",
    "stored_pictures",
]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A row format: it applies to rows in which all of ``columns`` are filled."""

    name: str
    columns: tuple[str, ...]
    """The first one holds the question or the conversation."""
    looks: str
    """All columns as people write them, for the error message."""


FORMATS = (
    RowFormat("verl", ("prompt", "reward_model"), "prompt, images, reward_model.ground_truth"),
    RowFormat("OpenRLHF", ("prompt", "label"), "prompt, images, label"),
    RowFormat("TRL", ("prompt",), "prompt (text or messages), image or images"),
    RowFormat("ms-swift", ("messages",), "messages, images, solution"),
    RowFormat("LLaVA", ("conversations",), "conversations (from, value), image"),
    RowFormat("R1-V", ("problem", "solution"), "problem, image, solution"),
    RowFormat("EasyR1", ("problem",), "problem, images, answer"),
)
"""Tried in this order; the first that applies is taken."""


@dataclass(frozen=True, slots=True)
class NormalRow:
    """One row, whatever its format was."""

    messages: list[dict[str, Any]]
    """Conversation that ends where the policy begins. Contents are lists of text parts and
    ``{"type": "image", "image": PIL.Image}``."""
    images: list[Image.Image]
    """I pictures in order of appearance, RGB."""
    answer: str | None
    """Reference answer as text without ``<answer>`` tags, None if the row has none."""
    columns: dict[str, Any]
    """What reward functions get by name: every column of the row as it was, except ``prompt``
    (rewards get that as ``prompts``); ``image`` and ``images`` as PIL; ``answer`` always when
    the row has one."""


def detect_format(row: Mapping[str, Any]) -> str:
    """Name of the row's format, one of ``FORMATS``.

    A row with both ``answer`` and ``solution`` beside ``problem`` is EasyR1's: the solution is
    then a worked one.

    Raises:
        ValueError: no format applies; the message lists the columns seen and the formats.
    """
    return _format_of(row, index=None).name


def normalise_row(
    row: Mapping[str, Any],
    index: int,
    *,
    base_dir: str | os.PathLike[str] | None = None,
    system_prompt: str | None = None,
) -> NormalRow:
    """Turns a row of any of ``FORMATS`` into a ``NormalRow``.

    A trailing assistant message of ``messages`` or ``conversations`` is the reference: it is
    taken off, and is the answer where no column gives one.

    Args:
        row: column name -> value.
        index: row number, for the error messages.
        base_dir: folder that relative picture paths start from.
        system_prompt: put first where the row has no system message of its own.

    Raises:
        TypeError, ValueError: see ``load_image`` and ``place_images``; columns of no known
            format, an empty question, video or audio, a prompt that ends with an assistant.
    """
    question = _format_of(row, index).columns[0]
    _refuse_unsupported(row, index)
    messages = to_messages(row[question], index, question)
    objects = row.get("objects")
    if isinstance(objects, Mapping):
        messages = fill_objects(messages, objects, index)
    messages, reference = _take_reference(messages, question, index)
    pictures = [load_image(value, row=index, base_dir=base_dir) for value in stored_pictures(row)]
    messages, images = place_images(
        messages, pictures, index, lambda value: load_image(value, row=index, base_dir=base_dir)
    )
    _refuse_empty(messages, question, index)
    answer = normalise_answer(row)
    answer = reference if answer is None else answer
    return NormalRow(
        messages=with_system_prompt(messages, system_prompt),
        images=images,
        answer=answer,
        columns={**_reward_columns(row, images, answer), **object_columns(row, index)},
    )


def _format_of(row: Mapping[str, Any], index: int | None) -> RowFormat:
    for known in FORMATS:
        if all(_has(row, name) for name in known.columns):
            if known.name == "R1-V" and _has(row, "answer"):
                continue
            return known
    where = "this row" if index is None else f"row {index}"
    accepted = "; ".join(f"{known.looks} ({known.name})" for known in FORMATS)
    raise ValueError(
        f"{where}: it has the columns {sorted(map(str, row))}, of which none is a filled question "
        f"column. Rename them to one of the formats: {accepted}."
    )


def _has(row: Mapping[str, Any], name: str) -> bool:
    # Files joined to one table have None where a row's own format has no such column.
    return row.get(name) is not None


def _refuse_unsupported(row: Mapping[str, Any], index: int) -> None:
    for name in ("videos", "video", "audios", "audio"):
        value = row.get(name)
        if value is not None and (plain_list(value) != []):
            raise ValueError(
                f"row {index}: column '{name}' is filled, and only pictures are supported. "
                f"Give frames as images, or drop the row."
            )


def _refuse_empty(messages: list[dict[str, Any]], question: str, index: int) -> None:
    asked = [message["content"] for message in messages if message["role"] == "user"]
    if not any(part.get("text", "").strip() for content in asked for part in content):
        raise ValueError(
            f"row {index}: column '{question}' asks nothing: it has no text from a user. "
            f"Fill it, or drop the row."
        )


def _take_reference(
    messages: list[dict[str, Any]], question: str, index: int
) -> tuple[list[dict[str, Any]], str | None]:
    if messages[-1]["role"] != "assistant":
        return messages, None
    if question == "prompt":
        raise ValueError(
            f"row {index}: column 'prompt' ends with an assistant message, which is the policy's "
            f"to write. Take it off, or rename the column to 'messages' to use it as the answer."
        )
    texts = [part["text"] for part in messages[-1]["content"] if part["type"] == "text"]
    return messages[:-1], _answer_text("".join(texts))


def stored_pictures(row: Mapping[str, Any]) -> list[Any]:
    """What the columns ``images`` or ``image`` hold, each for ``load_image`` to read."""
    return _as_list(row.get("images")) or _as_list(row.get("image"))


def _as_list(value: Any) -> list[Any]:
    if value is None or (isinstance(value, str) and not value):
        return []
    listed = plain_list(value)
    return [value] if listed is None else listed


def normalise_answer(row: Mapping[str, Any]) -> str | None:
    """The reference answer of a raw row without ``<answer>`` tags, None if no column gives one."""
    graded = row.get("reward_model")
    truth = graded.get("ground_truth") if isinstance(graded, Mapping) else None
    candidates = (row.get("answer"), truth, row.get("solution"), row.get("label"))
    return next((_answer_text(value) for value in candidates if value is not None), None)


def _answer_text(value: Any) -> str:
    if not isinstance(value, str):
        listed = plain_list(value)
        value = listed if listed is not None else value
        if isinstance(value, (list, dict)):
            return json.dumps(value, ensure_ascii=False, default=str)
        return str(value)
    tagged = re.findall(r"<answer>(.*?)</answer>", value, flags=re.DOTALL)
    return (tagged[-1] if tagged else value).strip()


def _reward_columns(
    row: Mapping[str, Any], images: list[Image.Image], answer: str | None
) -> dict[str, Any]:
    columns = {name: value for name, value in row.items() if name != "prompt"}
    columns["images"] = images
    if _has(row, "image"):
        single = images[0] if images else None
        columns["image"] = images if plain_list(row["image"]) is not None else single
    if answer is not None and not _has(row, "answer"):
        columns["answer"] = answer
    return columns
