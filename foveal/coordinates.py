"""Where things are in a picture, in the units of data sets and of models.

A picture has two sizes: its own (upright, as ``load_image`` gives it), and the one to which the
model's image processor brings it. Coordinates name places between pixels, from 0 at the left and
upper edge to the whole width and height at the other, so all spaces differ by one factor an axis:

    "original"   pixels of the picture itself: most data sets
    "resized"    pixels of the resized picture: what Qwen2.5-VL answers
    "0-1000"     thousandths of width and height: what Qwen3-VL answers
    "0-1"        shares of width and height: ms-swift's ``norm1``

Factors are exact fractions; a result is the nearest float, or the nearest whole number, halves up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

__all__ = [
    "BOX_FORMATS",
    "SPACES",
    "BoxFormat",
    "CoordinateSpace",
    "check_space",
    "clip_boxes",
    "convert_boxes",
    "convert_points",
    "corners_of",
    "extent",
]

CoordinateSpace = Literal["original", "resized", "0-1000", "0-1"]
BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
"""Two corners; the upper left corner and a size (COCO); the centre and a size (YOLO)."""
SPACES: tuple[str, ...] = get_args(CoordinateSpace)
BOX_FORMATS: tuple[str, ...] = get_args(BoxFormat)

Size = Sequence[int]
"""Width and height in pixels."""


def convert_points(
    points: Sequence[Sequence[float]],
    from_: str,
    to: str,
    original_size: Size,
    resized_size: Size,
    *,
    whole: bool = False,
    outside: Literal["error", "keep"] = "error",
) -> list[list[float]]:
    """Points (x, y) of one space in another.

    Args:
        points: in ``from_``.
        from_, to: one of ``SPACES``.
        original_size: width and height of the picture, upright.
        resized_size: width and height after the model's image processor.
        whole: round to the nearest whole number, halves up; to "0-1" nothing is rounded.
        outside: whether a point that lies beyond the picture is an error or kept as it is. It is
            never moved; ``clip_boxes`` does that, and counts.

    Returns:
        ``[x, y]`` each; whole numbers are ints.

    Raises:
        ValueError: for an unknown space, a size below 1, a point that is no pair of finite
            numbers, or one beyond the picture with ``outside="error"``.
    """
    axes = _axes(from_, to, original_size, resized_size)
    return [_moved(point, 2, axes, (from_, to), whole, outside) for point in points]


def convert_boxes(
    boxes: Sequence[Sequence[float]],
    from_: str,
    to: str,
    original_size: Size,
    resized_size: Size,
    *,
    whole: bool = False,
    outside: Literal["error", "keep"] = "error",
) -> list[list[float]]:
    """Boxes (x1, y1, x2, y2) of one space in another; all else as ``convert_points``.

    Boxes of another ``BoxFormat`` go through ``corners_of`` first.
    """
    axes = _axes(from_, to, original_size, resized_size)
    return [_moved(box, 4, axes, (from_, to), whole, outside) for box in boxes]


def clip_boxes(
    boxes: Sequence[Sequence[float]], space: str, original_size: Size, resized_size: Size
) -> tuple[list[list[float]], int]:
    """Boxes cut off at the picture's edges, and how many of them were changed by it."""
    width, height = extent(space, original_size, resized_size)
    most = (width, height, width, height)
    clipped = [
        [min(max(v, 0), m) for v, m in zip(_numbers(box, 4), most, strict=True)] for box in boxes
    ]
    changed = sum(list(box) != cut for box, cut in zip(boxes, clipped, strict=True))
    return clipped, changed


def corners_of(box: Sequence[float], box_format: str) -> list[float]:
    """A box of any ``BoxFormat`` as (x1, y1, x2, y2).

    Raises:
        ValueError: for an unknown format.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(
            f"box_format is {box_format!r}; it must be one of {', '.join(BOX_FORMATS)}"
        )
    if box_format == "xyxy":
        return list(box)
    x, y, width, height = box
    if box_format == "xywh":
        return [x, y, x + width, y + height]
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def extent(space: str, original_size: Size, resized_size: Size) -> tuple[int, int]:
    """The right and the lower edge of the picture in a space.

    Raises:
        ValueError: for an unknown space, or a size that is no pair of numbers from 1 on.
    """
    check_space(space)
    if space in ("0-1000", "0-1"):
        return (1000, 1000) if space == "0-1000" else (1, 1)
    size = original_size if space == "original" else resized_size
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"the {space} size of the picture is {size}; give width and height in pixels"
        )
    return int(size[0]), int(size[1])


def check_space(space: Any, name: str = "the coordinate space") -> None:
    """Raise ValueError unless ``space`` is one of ``SPACES``."""
    if space not in SPACES:
        raise ValueError(f"{name} is {space!r}; it must be one of {', '.join(map(repr, SPACES))}")


def _axes(
    from_: str, to: str, original_size: Size, resized_size: Size
) -> list[tuple[int, Fraction]]:
    """For each axis where the picture ends in ``from_``, and the factor to ``to``."""
    ends = extent(from_, original_size, resized_size)
    goals = extent(to, original_size, resized_size)
    return [(end, Fraction(goal, end)) for end, goal in zip(ends, goals, strict=True)]


def _moved(
    values: Sequence[float],
    count: int,
    axes: list[tuple[int, Fraction]],
    spaces: tuple[str, str],
    whole: bool,
    outside: str,
) -> list[float]:
    moved: list[float] = []
    for place, value in enumerate(_numbers(values, count)):
        end, factor = axes[place % 2]
        if outside == "error" and not 0 <= value <= end:
            raise ValueError(
                f"{list(values)} lies beyond the picture, which ends at {axes[0][0]}, {axes[1][0]} "
                f"in the space {spaces[0]!r}. Correct the data or the declared space, clip it with "
                "clip_boxes, or pass outside='keep'"
            )
        exact = Fraction(value) * factor
        rounded = whole and spaces[1] != "0-1"
        moved.append(math.floor(exact + Fraction(1, 2)) if rounded else float(exact))
    return moved


def _numbers(values: Sequence[float], count: int) -> Sequence[float]:
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise ValueError(f"{values!r:.200} is not {count} finite numbers")
    return values
