"""Antialiased drawing with Pillow: everything is drawn twice as large and averaged down.

Coordinates, widths and font sizes are in pixels of the finished picture. Text is set in the font
that ships with Pillow or, within :func:`typeface`, in one of those beside this file; letters and
their edges may differ between Pillow versions; on one version the same calls give the same pixels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

    from foveal.tasks.dice import Dice

Colour = tuple[int, int, int]
Point = Sequence[float]

SCALE = 2
INK = (35, 38, 45)
PAPERS = ((255, 255, 255), (250, 248, 242), (242, 245, 250), (245, 245, 245))
INKS = ((35, 38, 45), (20, 30, 70), (60, 40, 30))
PALETTE = (
    (31, 119, 180),
    (235, 120, 20),
    (40, 150, 60),
    (205, 45, 50),
    (130, 90, 190),
    (120, 80, 60),
    (225, 110, 190),
    (90, 95, 105),
    (180, 175, 30),
    (25, 180, 200),
)


TYPEFACES = {"": 1.0, "DejaVuSansCondensed": 0.94, "DejaVuSerifCondensed": 0.91,
             "DejaVuSansMono": 0.86}  # fmt: skip
"""By file name, "" for Pillow's own: the factor on sizes that makes letters no wider than its."""
_typeface: ContextVar[str] = ContextVar("typeface", default="")


class Canvas:
    """A picture of ``width`` by ``height`` pixels to draw on; ``finish`` gives it back."""

    def __init__(self, width: int, height: int, paper: Colour = (255, 255, 255)) -> None:
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), paper)
        self._pen = ImageDraw.Draw(self._image)

    def line(self, points: Sequence[Point], colour: Colour = INK, width: float = 1.5) -> None:
        self._pen.line(_scaled(points), fill=colour, width=_wide(width), joint="curve")

    def dashed(self, start: Point, end: Point, colour: Colour, width: float = 1.0) -> None:
        length = math.dist(start, end)
        for at in range(0, int(length), 6):
            a, b = at / length, min(at + 3, length) / length
            self.line([_along(start, end, a), _along(start, end, b)], colour, width)

    def arrow(
        self,
        start: Point,
        end: Point,
        colour: Colour = INK,
        width: float = 1.5,
        head: float = 8,
    ) -> None:
        """A line whose ``end`` has a filled head of ``head`` pixels."""
        turn = math.atan2(end[1] - start[1], end[0] - start[0])
        back = (end[0] - head * math.cos(turn), end[1] - head * math.sin(turn))
        across = (-math.sin(turn) * head * 0.36, math.cos(turn) * head * 0.36)
        wings = [(back[0] + s * across[0], back[1] + s * across[1]) for s in (1, -1)]
        self.line([start, back], colour, width)
        self.polygon([end, *wings], colour)

    def polygon(
        self, points: Sequence[Point], fill: Colour | None, edge: Colour | None = None
    ) -> None:
        self._pen.polygon(_scaled(points), fill=fill)
        if edge is not None:
            self.line([*points, points[0]], edge)

    def box(
        self, corners: Sequence[float], fill: Colour | None, edge: Colour | None = None
    ) -> None:
        """``corners`` is left, top, right, bottom, in any order of the two ends."""
        x0, x1 = sorted((corners[0], corners[2]))
        y0, y1 = sorted((corners[1], corners[3]))
        whole = [x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE]
        self._pen.rectangle(whole, fill=fill, outline=edge, width=SCALE)

    def disc(
        self,
        centre: Point,
        radius: float,
        fill: Colour | None = None,
        edge: Colour | None = None,
        width: float = 1.5,
    ) -> None:
        self._pen.ellipse(_around(centre, radius), fill=fill, outline=edge, width=_wide(width))

    def arc(
        self, centre: Point, radius: float, ends: Point, colour: Colour = INK, width: float = 1.5
    ) -> None:
        """From ``ends[0]`` to ``ends[1]`` degrees, clockwise from the right."""
        self._pen.arc(_around(centre, radius), ends[0], ends[1], fill=colour, width=_wide(width))

    def slice(self, centre: Point, radius: float, ends: Point, fill: Colour) -> None:
        white = (255, 255, 255)
        box = _around(centre, radius)
        self._pen.pieslice(box, ends[0], ends[1], fill=fill, outline=white, width=SCALE)

    def text(
        self,
        at: Point,
        text: str,
        size: float = 11,
        colour: Colour = INK,
        anchor: str = "mm",
        halo: Colour | None = None,
    ) -> None:
        """``anchor`` is Pillow's: left, middle, right by ascender, middle, bottom."""
        place = (at[0] * SCALE, at[1] * SCALE)
        width = 2 * SCALE if halo else 0
        self._pen.text(
            place, text, colour, font(size), anchor, stroke_width=width, stroke_fill=halo
        )

    def text_width(self, text: str, size: float) -> float:
        return font(size).getlength(text) / SCALE

    def stamp(self, at: Point, mask: Image, colour: Colour) -> None:
        """Lay ``colour`` through ``mask`` (mode L, in doubled pixels), its left top at ``at``."""
        self._image.paste(colour, (round(at[0] * SCALE), round(at[1] * SCALE)), mask)

    def finish(self, dice: Dice | None = None, noise: float = 0.0) -> Image:
        """The picture; ``noise`` is the standard deviation of grain, in grey levels of 255."""
        picture = self._image.reduce(SCALE)
        return with_noise(picture, dice, noise) if dice is not None and noise > 0 else picture


def with_noise(picture: Image, dice: Dice, deviation: float) -> Image:
    import numpy as np
    from PIL import Image

    field = _noise_field()
    height, width = picture.height, picture.width
    top, left = dice.below(len(field) - height + 1), dice.below(len(field) - width + 1)
    grain = field[top : top + height, left : left + width, None] * deviation
    pixels = np.asarray(picture, dtype=np.float32) + grain
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _noise_field() -> Any:
    """512 by 512 values of mean 0 and deviation 1 (sums of three even draws), made once."""
    import numpy as np

    draw = Random(0).random
    values = [draw() + draw() + draw() for _ in range(512 * 512)]
    return (np.array(values, dtype=np.float32).reshape(512, 512) - 1.5) * 2


@contextlib.contextmanager
def typeface(name: str) -> Iterator[None]:
    """Within it text is set in one of ``TYPEFACES``."""
    token = _typeface.set(name)
    try:
        yield
    finally:
        _typeface.reset(token)


def font(size: float) -> FreeTypeFont:
    """The present typeface at ``size`` finished pixels, that is twice that on the canvas."""
    name = _typeface.get()
    return _shipped_font(name, size) if name else default_font(size)


@lru_cache(maxsize=256)
def _shipped_font(name: str, size: float) -> FreeTypeFont:
    from PIL import ImageFont

    path = Path(__file__).with_name("fonts") / f"{name}.ttf"
    return ImageFont.truetype(path, size * SCALE * TYPEFACES[name])


@lru_cache(maxsize=64)
def default_font(size: float) -> FreeTypeFont:
    """Pillow's own font at ``size`` finished pixels, that is twice that on the canvas."""
    from PIL import ImageFont

    font = ImageFont.load_default(size=size * SCALE)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError(
            "Pillow was built without FreeType, which draws the text of these tasks; "
            "install a wheel of Pillow from PyPI"
        )
    return font


def _scaled(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(x * SCALE, y * SCALE) for x, y in points]


def _around(centre: Point, radius: float) -> list[float]:
    x, y = centre
    return [v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)]


def _wide(width: float) -> int:
    return max(1, round(width * SCALE))


def _along(start: Point, end: Point, part: float) -> tuple[float, float]:
    return (start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part)
