"""ms-swift's grounding rows: ``<ref-object>`` and ``<bbox>`` in the text, their values beside it.

    {"messages": [{"role": "user", "content": "<image>Where is the <ref-object>?"},
                  {"role": "assistant", "content": "<bbox>"}],
     "objects": {"ref": ["cat"], "bbox": [[12, 30, 220, 310]], "bbox_type": "real"}}

Placeholders take the values in their order. A box in a question is written in the row's coordinates
here, and in the model's by ``PromptBuilder``; boxes in the reference become its answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from foveal.coordinates import convert_boxes, convert_points
from foveal.data.messages import plain_list

__all__ = ["BOX", "boxes_in_space", "fill_objects", "object_columns"]

BOX = "<bbox>"
_REF = "<ref-object>"
_SPACES = {"real": "original", "norm1": "0-1", "norm1000": "0-1000"}
_ANY = re.compile(f"{BOX}|{_REF}")


def object_columns(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The column ``coordinates`` of a row whose messages hold ``<bbox>``, unless it has one.

    Raises:
        ValueError: for an unknown ``bbox_type``.
    """
    objects = row.get("objects")
    if not isinstance(objects, Mapping) or BOX not in str(row.get("messages")):
        return {}
    kind = objects.get("bbox_type") or "real"
    if kind not in _SPACES:
        raise ValueError(
            f"row {index}: objects.bbox_type is {kind!r}; it must be one of {', '.join(_SPACES)}"
        )
    return {} if row.get("coordinates") is not None else {"coordinates": _SPACES[kind]}


def fill_objects(
    messages: list[dict[str, Any]], objects: Mapping[str, Any], index: int
) -> list[dict[str, Any]]:
    """Messages with names and boxes in the place of their placeholders.

    A text part with boxes keeps them: its ``template`` is the text with ``<bbox>`` still in it, its
    ``boxes`` are their values. In an assistant's message boxes become a JSON list.

    Raises:
        ValueError: where placeholders and values differ in number, or a box is no list of 2 or 4
            numbers.
    """
    names, boxes = (plain_list(objects.get(key)) or [] for key in ("ref", "bbox"))
    text = "".join(part.get("text", "") for m in messages for part in m["content"])
    for marker, values, key in ((_REF, names, "ref"), (BOX, boxes, "bbox")):
        if text.count(marker) != len(values) and marker in text:
            raise ValueError(
                f"row {index}: the messages hold {text.count(marker)} {marker} placeholder(s), "
                f"objects.{key} has {len(values)} value(s). Give one for each"
            )
    waiting = {_REF: iter(map(str, names)), BOX: iter([_box(box, index) for box in boxes])}
    return [
        {**m, "content": [_filled(p, m["role"], waiting) for p in m["content"]]} for m in messages
    ]


def _box(value: Any, index: int) -> list[float]:
    box = plain_list(value)
    if box is None or len(box) not in (2, 4) or not all(isinstance(v, int | float) for v in box):
        raise ValueError(
            f"row {index}: objects.bbox holds {value!r:.80}; give 4 numbers, or 2 for a point"
        )
    return box


def _filled(part: dict[str, Any], role: str, waiting: dict[str, Iterator[Any]]) -> dict[str, Any]:
    if not _ANY.search(part.get("text", "")):
        return part
    taken: list[list[float]] = []

    def value(match: re.Match[str]) -> str:
        if match[0] == _REF:
            return next(waiting[_REF])
        taken.append(next(waiting[BOX]))
        return BOX

    template = _ANY.sub(value, part["text"])
    if not taken:
        return {**part, "text": template}
    if role == "assistant":
        return {**part, "text": json.dumps(taken)}
    return {**part, "text": _written(template, taken), "template": template, "boxes": taken}


def _written(template: str, boxes: Sequence[Sequence[float]]) -> str:
    pieces = template.split(BOX)
    shown = [json.dumps(list(box)) for box in boxes]
    return pieces[0] + "".join(a + b for a, b in zip(shown, pieces[1:], strict=True))


def boxes_in_space(
    messages: list[dict[str, Any]],
    from_: str | None,
    to: str | None,
    sizes: Callable[[], tuple[tuple[int, int], tuple[int, int]]],
) -> list[dict[str, Any]]:
    """Messages with the boxes of their texts in the model's coordinates, in whole numbers.

    Args:
        messages: of a ``NormalRow``.
        from_: space of the row; None leaves boxes as they are.
        to: space of the model; None leaves boxes as they are.
        sizes: the picture's own and its resized size, asked for if there is a box.

    Raises:
        ValueError: for a box beyond the picture.
    """
    if not any("boxes" in part for m in messages for part in m["content"]):
        return messages

    def written(part: dict[str, Any]) -> dict[str, Any]:
        if "boxes" not in part:
            return part
        boxes = part["boxes"]
        if from_ is not None and to is not None and from_ != to:
            boxes = [_converted(box, from_, to, *sizes()) for box in boxes]
        return {"type": "text", "text": _written(part["template"], boxes)}

    return [{**m, "content": [written(part) for part in m["content"]]} for m in messages]


def _converted(
    box: list[float], from_: str, to: str, original: tuple[int, int], resized: tuple[int, int]
) -> list[float]:
    convert = convert_points if len(box) == 2 else convert_boxes
    return convert([box], from_, to, original, resized, whole=True)[0]
