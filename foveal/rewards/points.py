"""Points: where the objects are, each within a distance.

An answer is JSON: ``[[x, y], ..]``, or ``[{"point_2d": [x, y], "label": "cat"}, ..]``, labels
optional; a single point needs no outer list. Coordinates are in the unit of the reference's,
unless the row has the column ``coordinates``: then the answer is taken from the model's unit to
the row's (``foveal.coordinates``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, reference_values
from foveal.rewards.json_text import answered_json, decoded, is_number
from foveal.rewards.labels import label_of, labels_agree, several_kinds
from foveal.rewards.spaces import RowSpaces, row_spaces

_LARGEST = 1e6
"""No picture has a coordinate beyond it."""


@dataclass(frozen=True, slots=True)
class Point:
    """``at`` is (x, y), or None if it is no such point."""

    at: tuple[float, float] | None
    label: str | None = None


@dataclass(frozen=True)
class PointsWithin:
    """The reward function that ``points_within`` returns; a class so that it can be pickled."""

    distance: float | None
    share: float | None
    column: str | None

    __name__ = "points_within"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = [
            _reference_points(value, row)
            for row, value in enumerate(reference_values(columns, len(completions)))
        ]
        answers = [_parsed(answered_json(text)) for text in completion_texts(completions)]
        return [
            None
            if reference is None
            else 0.0
            if answer is None
            else self._score(answer, reference, columns, row)
            for row, (answer, reference) in enumerate(zip(answers, references, strict=True))
        ]

    def _score(
        self,
        answer: Sequence[Point],
        reference: Sequence[Point],
        columns: Mapping[str, Any],
        row: int,
    ) -> float:
        spaces = row_spaces(columns, row)
        if spaces is not None:
            # A share of the diagonal is one of the picture's own pixels.
            to = spaces.reference if self.share is None else "original"
            answer = _in_space(answer, spaces, spaces.answer, to)
            reference = _in_space(reference, spaces, spaces.reference, to)
        return _match_score(answer, reference, self._limit(columns, row))

    def _limit(self, columns: Mapping[str, Any], row: int) -> float:
        """The largest distance that counts in this row."""
        if self.distance is not None:
            return self.distance
        if self.share is not None:
            return self.share * _diagonal(columns, row)
        values = columns.get(str(self.column))
        value = None if values is None else values[row]
        if not is_number(value) or not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"row {row}: the column {self.column!r} of points_within holds {value!r:.80}; it "
                "must hold a distance from 0 on, in the unit of the points"
            )
        return float(value)


def points_within(
    distance: float | None = None, share: float | None = None, column: str | None = None
) -> PointsWithin:
    """Reward function: points that were found / max(number answered, number in the reference).

    Answered and reference points are matched one to one so that as many pairs as possible lie
    within the limit. So extra, repeated and missing points all cost, and a grid over the picture
    earns almost nothing. Points whose labels differ do not match; one without a label matches any,
    unless the reference has points of several labels: then it matches none of those. A malformed
    point counts as answered and not found. If the reference has no points, ``[]`` earns 1.

    The limit is one of ``distance`` (in the unit of the points), ``share`` of the diagonal of the
    row's first picture (points in pixels of it, column ``images``), or the value in ``column``.
    Columns: ``answer`` (or ``solution``), JSON text or the decoded lists; None where that is no
    list of points (a mixed data set). Raises ValueError unless exactly one limit is given, for a
    bad limit or reference point, and for a row without a reference.
    """
    given = {"distance": distance, "share": share, "column": column}
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(f"points_within got {given}; give exactly one of them")
    for name, value, most in (("distance", distance, _LARGEST), ("share", share, 1.0)):
        if value is not None and not 0 <= value <= most:
            raise ValueError(f"{name} is {value}; it must lie between 0 and {most:g}")
    return PointsWithin(distance, share, column)


def _in_space(points: Sequence[Point], spaces: RowSpaces, from_: str, to: str) -> list[Point]:
    return [replace(p, at=p.at and spaces.point(p.at, from_, to)) for p in points]


def _diagonal(columns: Mapping[str, Any], row: int) -> float:
    images = columns["images"][row] if "images" in columns else None
    if not images:
        raise ValueError(
            f"row {row} has no picture in the column 'images', whose size points_within(share=..) "
            "needs; give distance=.. or column=.. instead"
        )
    return math.hypot(*images[0].size)


def _reference_points(value: Any, row: int) -> list[Point] | None:
    points = _parsed(extract_answer(value).text) if isinstance(value, str) else _points(value)
    if any(point.at is None for point in points or ()):
        raise ValueError(
            f"row {row}: the reference {value!r:.200} holds something that is no point; each is "
            "[x, y], as 'point_2d' or on its own"
        )
    return points


def _parsed(text: str) -> list[Point] | None:
    try:
        return _points(decoded(text))
    except ValueError:
        return None


def _points(value: Any) -> list[Point] | None:
    if isinstance(value, Mapping) or _coordinates(value):
        value = [value]
    return [_point(item) for item in value] if isinstance(value, list | tuple) else None


def _point(item: Any) -> Point:
    if not isinstance(item, Mapping):
        return Point(_coordinates(item))
    return Point(_coordinates(item.get("point_2d")), label_of(item.get("label")))


def _coordinates(value: Any) -> tuple[float, float] | None:
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))):
        return None
    # Comparing before converting: a whole number of JSON may be too large for a float.
    if not all(-_LARGEST <= v <= _LARGEST for v in value):
        return None
    return float(value[0]), float(value[1])


def _match_score(answered: Sequence[Point], reference: Sequence[Point], limit: float) -> float:
    count = max(len(answered), len(reference))
    if count == 0:
        return 1.0
    if not answered or not reference:
        return 0.0
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    several = several_kinds(r.label for r in reference)
    found = [[_found(p, r, limit, several) for r in reference] for p in answered]
    within_PR = np.array(found, dtype=float)
    rows, columns = linear_sum_assignment(within_PR, maximize=True)
    return float(within_PR[rows, columns].sum()) / count


def _found(answered: Point, reference: Point, limit: float, several: bool) -> bool:
    if answered.at is None or reference.at is None:
        return False
    if not labels_agree(answered.label, reference.label, several):
        return False
    return math.dist(answered.at, reference.at) <= limit
