"""Answers in the model's coordinates, references in the row's: both in the row's.

Only for rows with the column ``coordinates``; see ``foveal.coordinates``. Of the others answer and
reference are compared as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveal.coordinates import convert_boxes, convert_points

_NEEDED = ("answer_coordinates", "original_size", "resized_size")


@dataclass(frozen=True, slots=True)
class RowSpaces:
    """What the coordinates of one row count in."""

    reference: str
    answer: str
    original_size: tuple[int, int]
    resized_size: tuple[int, int]

    def box(
        self, corners: tuple[float, float, float, float], from_: str, to: str
    ) -> tuple[float, float, float, float]:
        """Corners in another space; beyond the picture they stay beyond it."""
        sizes = (self.original_size, self.resized_size)
        x1, y1, x2, y2 = convert_boxes([corners], from_, to, *sizes, outside="keep")[0]
        return x1, y1, x2, y2

    def point(self, at: tuple[float, float], from_: str, to: str) -> tuple[float, float]:
        """As ``box``."""
        sizes = (self.original_size, self.resized_size)
        x, y = convert_points([at], from_, to, *sizes, outside="keep")[0]
        return x, y


def row_spaces(columns: Mapping[str, Any], row: int) -> RowSpaces | None:
    """What a row declares; None if it declares nothing.

    Raises ValueError for a row that declares ``coordinates`` and lacks what goes with it.
    """
    declared = _of_row(columns, "coordinates", row)
    if declared is None:
        return None
    answer, original, resized = (_of_row(columns, name, row) for name in _NEEDED)
    if answer is None or original is None or resized is None:
        missing = [name for name in _NEEDED if _of_row(columns, name, row) is None]
        raise ValueError(
            f"row {row} declares coordinates={declared!r} and lacks {', '.join(missing)}. Build "
            "prompts with a PromptBuilder that knows answer_coordinates, or fill these columns"
        )
    return RowSpaces(declared, answer, tuple(original), tuple(resized))


def box_format(columns: Mapping[str, Any], row: int) -> str:
    """How the reference boxes of a row are written; "xyxy" unless it says so."""
    declared = _of_row(columns, "box_format", row)
    return "xyxy" if declared is None else declared


def _of_row(columns: Mapping[str, Any], name: str, row: int) -> Any:
    values = columns.get(name)
    return None if values is None else values[row]
