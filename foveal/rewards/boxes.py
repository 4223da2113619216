"""Boxes: which objects, and where, by intersection over union (IoU).

An answer is JSON: ``[{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}, ..]``, labels optional, or
bare boxes ``[[x1, y1, x2, y2], ..]``; a single box needs no outer list. Of several Markdown code
fences the last counts. Coordinates are in the unit of the reference's, unless the row has the
column ``coordinates``: then the answer is taken from the model's unit to the row's
(``foveal.coordinates``). A column ``box_format`` says how the reference boxes are written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from foveal.coordinates import corners_of
from foveal.rewards.extract import completion_texts, extract_answer, reference_values
from foveal.rewards.json_text import answered_json, decoded, is_number
from foveal.rewards.labels import label_of, labels_agree, several_kinds
from foveal.rewards.spaces import RowSpaces, box_format, row_spaces

if TYPE_CHECKING:
    import numpy as np

_LARGEST = 1e6
"""No picture has a coordinate beyond it, and products of coordinates stay exact below it."""


@dataclass(frozen=True, slots=True)
class Box:
    """``corners`` is (x1, y1, x2, y2) with x1 < x2 and y1 < y2, or None if it is no such box."""

    corners: tuple[float, float, float, float] | None
    label: str | None = None


def boxes_iou(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """Sum of the matched boxes' IoU / max(number predicted, number in the reference), in [0, 1].

    Predicted and reference boxes are matched one to one so that the sum is largest (Hungarian
    method). Boxes whose labels differ do not match; a box without a label matches any, unless the
    reference has boxes of several labels: then it matches none of those. So extra boxes, repeated
    boxes and missing boxes all cost. A box that is malformed or has no area
    counts as predicted, with IoU 0; an answer that is no JSON earns 0. If the reference has no
    boxes, ``[]`` earns 1.

    Columns: ``answer`` (or ``solution``), JSON text or the decoded lists. None where that is no
    list of boxes (a mixed data set). Raises ValueError for a reference box without area and for a
    row without a reference.
    """
    return [
        None if reference is None else 0.0 if answer is None else match_score(answer, reference)
        for answer, reference in answered_boxes(completions, columns)
    ]


def answered_boxes(
    completions: Sequence[Any], columns: Mapping[str, Any]
) -> list[tuple[list[Box] | None, list[Box] | None]]:
    """The boxes of each row's completion and of its reference, None where there is no list.

    Raises ValueError for a reference box without area and for a row without a reference.
    """
    references = [
        _reference_boxes(value, row, box_format(columns, row))
        for row, value in enumerate(reference_values(columns, len(completions)))
    ]
    answers = [
        _in_reference_space(parse_boxes(answered_json(text)), row_spaces(columns, row))
        for row, text in enumerate(completion_texts(completions))
    ]
    return list(zip(answers, references, strict=True))


def _in_reference_space(boxes: list[Box] | None, spaces: RowSpaces | None) -> list[Box] | None:
    if boxes is None or spaces is None:
        return boxes
    return [
        replace(
            box, corners=box.corners and spaces.box(box.corners, spaces.answer, spaces.reference)
        )
        for box in boxes
    ]


def _reference_boxes(value: Any, row: int, written: str) -> list[Box] | None:
    is_text = isinstance(value, str)
    boxes = parse_boxes(extract_answer(value).text, written) if is_text else _boxes(value, written)
    for box in boxes or ():
        if box.corners is None:
            raise ValueError(
                f"row {row}: the reference {value!r:.200} holds something that is no box; each "
                "is [x1, y1, x2, y2] with x1 < x2 and y1 < y2 (or as the column 'box_format' "
                "says), as 'bbox_2d' or on its own"
            )
    return boxes


def parse_boxes(text: str, written: str = "xyxy") -> list[Box] | None:
    """The boxes in JSON ``text``, malformed ones included; None if it is no JSON list or box.

    ``written`` is one of ``foveal.coordinates.BOX_FORMATS``.
    """
    try:
        return _boxes(decoded(text), written)
    except ValueError:
        return None


def _boxes(value: Any, written: str) -> list[Box] | None:
    if isinstance(value, Mapping) or _is_corners(value):
        value = [value]
    return [_box(item, written) for item in value] if isinstance(value, list | tuple) else None


def _box(item: Any, written: str) -> Box:
    if not isinstance(item, Mapping):
        return Box(_corners(item, written))
    return Box(_corners(item.get("bbox_2d"), written), label_of(item.get("label")))


def _is_corners(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 4 and all(map(is_number, value))


def _corners(value: Any, written: str) -> tuple[float, float, float, float] | None:
    # Comparing before converting: a whole number of JSON may be too large for a float.
    if not _is_corners(value) or not all(-_LARGEST <= v <= _LARGEST for v in value):
        return None
    x1, y1, x2, y2 = map(float, corners_of(value, written))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def match_score(predicted: Sequence[Box], reference: Sequence[Box]) -> float:
    """Largest sum of IoU of a one-to-one matching / max(len(predicted), len(reference)).

    1.0 if both are empty.
    """
    count = max(len(predicted), len(reference))
    if count == 0:
        return 1.0
    iou_PR = pairwise_iou(predicted, reference)
    if iou_PR.size == 0:
        return 0.0
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(iou_PR, maximize=True)
    # fsum: the same boxes in another order give the same reward, to the last bit.
    return math.fsum(iou_PR[rows, columns].tolist()) / count


def pairwise_iou(predicted: Sequence[Box], reference: Sequence[Box]) -> np.ndarray:
    """IoU of each pair, ``[predicted, reference]``; 0 for malformed boxes and other labels."""
    overlap, union, _ = pairwise_areas(predicted, reference)
    return _ratio(overlap, union) * _matchable(predicted, reference)


def pairwise_giou(predicted: Sequence[Box], reference: Sequence[Box]) -> np.ndarray:
    """Generalised IoU (arXiv:1902.09630) of each pair, ``[predicted, reference]``, in [-1, 1].

    IoU minus the share of the smallest enclosing box that the union leaves empty; -1 for malformed
    boxes and other labels.
    """
    import numpy as np

    overlap, union, hull = pairwise_areas(predicted, reference)
    giou = _ratio(overlap, union) - _ratio(hull - union, hull)
    return np.where(_matchable(predicted, reference), giou, -1.0)


def pairwise_areas(
    predicted: Sequence[Box], reference: Sequence[Box]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas of overlap, union and enclosing box of each pair, ``[predicted, reference]``."""
    import numpy as np

    nowhere = (0.0, 0.0, 0.0, 0.0)
    first = np.array([box.corners or nowhere for box in predicted]).reshape(-1, 1, 4)
    second = np.array([box.corners or nowhere for box in reference]).reshape(1, -1, 4)
    inner = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(
        first[..., :2], second[..., :2]
    )
    outer = np.maximum(first[..., 2:], second[..., 2:]) - np.minimum(
        first[..., :2], second[..., :2]
    )
    overlap = np.maximum(inner, 0.0).prod(axis=-1)
    area = [(boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (first, second)]
    return overlap, area[0] + area[1] - overlap, outer.prod(axis=-1)


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)


def _matchable(predicted: Sequence[Box], reference: Sequence[Box]) -> np.ndarray:
    """Which pairs are boxes whose labels do not differ, ``[predicted, reference]``."""
    import numpy as np

    several = several_kinds(r.label for r in reference)
    agree = [
        [bool(p.corners) and labels_agree(p.label, r.label, several) for r in reference]
        for p in predicted
    ]
    return np.array(agree, dtype=bool).reshape(len(predicted), len(reference))
