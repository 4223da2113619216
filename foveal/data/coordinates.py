"""Boxes and points of a row that say which pixels they count in.

A row declares its boxes by two columns: ``coordinates``, one of ``SPACES``, and ``box_format``,
one of ``BOX_FORMATS``. Its prompt then carries what a reward function needs in order to compare
an answer of the model with them:

    answer_coordinates   the space in which the model answers, unless the row has such a column
    original_size        width and height of the picture, upright
    resized_size         the same after the model's image processor, as it really was

A row without these columns is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveal.coordinates import (
    BOX_FORMATS,
    SPACES,
    BoxFormat,
    CoordinateSpace,
    check_space,
    clip_boxes,
    convert_boxes,
    convert_points,
    corners_of,
)

__all__ = [
    "BOX_FORMATS",
    "SPACES",
    "BoxFormat",
    "CoordinateSpace",
    "clip_boxes",
    "convert_boxes",
    "convert_points",
    "coordinate_columns",
    "corners_of",
    "declares_coordinates",
]

_ADDED = ("original_size", "resized_size")


def declares_coordinates(columns: Mapping[str, Any]) -> bool:
    """Whether a row says what its boxes or points count in."""
    return columns.get("coordinates") is not None


def coordinate_columns(
    columns: Mapping[str, Any],
    original_sizes: Sequence[tuple[int, int]],
    resized_sizes: Sequence[tuple[int, int]],
    answer_space: str | None,
    index: int,
) -> dict[str, Any]:
    """The columns that a row which declares its coordinates gets beside its own.

    Args:
        columns: of the row.
        original_sizes: width and height of each picture.
        resized_sizes: the same after the image processor.
        answer_space: of the model; None leaves it to the row.
        index: row number, for the error messages.

    Raises:
        ValueError: for an unknown space or format; for no picture, or several of unlike sizes; if
            the row has columns of these names already.
    """
    if not declares_coordinates(columns):
        return {}
    own = columns.get("answer_coordinates")
    answers = answer_space if own is None else own
    check_space(columns["coordinates"], f"row {index}: the column 'coordinates'")
    if answers is not None:
        check_space(answers, f"row {index}: the column 'answer_coordinates'")
    if columns.get("box_format") not in (None, *BOX_FORMATS):
        raise ValueError(
            f"row {index}: the column 'box_format' is {columns['box_format']!r}; it must be one "
            f"of {', '.join(BOX_FORMATS)}"
        )
    if clash := [name for name in _ADDED if columns.get(name) is not None]:
        raise ValueError(
            f"row {index}: it declares coordinates and has the column {clash[0]!r}, which is "
            f"filled in from the picture then. Rename it"
        )
    if len(set(original_sizes)) != 1:
        raise ValueError(
            f"row {index}: it declares coordinates={columns['coordinates']!r} and has pictures of "
            f"the sizes {list(original_sizes)}. Boxes are of one picture: give one, or several of "
            f"one size, or leave 'coordinates' out"
        )
    added = {"original_size": original_sizes[0], "resized_size": resized_sizes[0]}
    return added if answers is None else {**added, "answer_coordinates": answers}
