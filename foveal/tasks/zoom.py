"""Large pictures with small signs: what one of them says can be read only at full resolution.

    street  signs on both sides of the doors of houses
    shelf   labels of boxes on shelves
    cars    plates of parked cars

Everything has a sign of its own, and some signs differ from the right one in a single letter or
digit when it is hard. The question says which thing is meant by colour, row and side.
``metadata["box"]`` is where its text stands: left, top, right, bottom in pixels of the picture.
With difficulty the picture grows from 1024 by 704 to 1600 by 1104 pixels, things multiply, letters
shrink from 13 to 10 pixels and grain is added.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask
from foveal.tasks.canvas import Canvas, Colour
from foveal.tasks.dice import Dice
from foveal.tasks.lettering import random_look, text_width, write
from foveal.tasks.printed_words import FORMS, WORDS, different_texts, misprint

if TYPE_CHECKING:
    from PIL.Image import Image

SIZES = ((1024, 704), (1152, 800), (1280, 896), (1440, 992), (1600, 1104))
LETTERS = (13, 12, 11.5, 11, 10)
GRID = {
    "street": ((1, 4), (1, 5), (2, 5), (2, 6), (3, 7)),
    "shelf": ((3, 4), (3, 5), (4, 6), (5, 7), (6, 8)),
    "cars": ((2, 4), (3, 4), (3, 5), (4, 6), (5, 7)),
}
"""Rows, and things in each, by difficulty."""
COLOURS: dict[str, Colour] = {
    "red": (205, 45, 50),
    "blue": (40, 90, 200),
    "green": (40, 150, 60),
    "yellow": (240, 205, 50),
    "orange": (240, 130, 30),
    "purple": (135, 70, 180),
    "pink": (240, 140, 190),
    "black": (40, 42, 48),
}
WALLS = ((214, 198, 178), (190, 205, 214), (222, 212, 190), (204, 188, 196), (196, 206, 188))
ROWS = ("first", "second", "third", "fourth", "fifth", "sixth")
Box = tuple[float, float, float, float]

TEMPLATES = {
    "street": (
        "What is written on the small sign to the {side} of the {colour} door{row}?",
        "Read the sign beside the {colour} door{row}, on its {side} side.",
    ),
    "shelf": (
        "What does the label on the {colour} box{row} say?",
        "Read the label of the {colour} box{row}.",
    ),
    "cars": (
        "What is written on the plate of the {colour} car{row}?",
        "Read the plate of the {colour} car{row}.",
    ),
}
PLACES = {
    "street": " in the {} row of houses from the top",
    "shelf": " on the {} shelf from the top",
    "cars": " in the {} row from the top",
}


class ZoomTask(DrawnTask):
    """The task family "zoom"."""

    name: str = "zoom"
    kinds: ClassVar[tuple[str, ...]] = tuple(GRID)

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        rows, columns = GRID[kind][difficulty - 1]
        signs = _signs(dice, kind, rows, columns, difficulty)
        asked = dice.pick(signs)
        picture = _draw(dice, kind, signs, difficulty)
        row = PLACES[kind].format(ROWS[asked["row"]]) if rows > 1 else ""
        question = dice.pick(TEMPLATES[kind]).format(
            colour=asked["colour"], side=asked["side"], row=row
        )
        metadata = {
            "kind": kind,
            "asked": {name: asked[name] for name in ("colour", "row", "side")},
            "box": asked["box"],
            "signs": signs,
            "tolerance": 0.0,
        }
        return Drawn(picture, question, asked["text"], metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """The one sign of the colour, row and side asked for."""
        asked = metadata["asked"]
        (sign,) = [s for s in metadata["signs"] if all(s[k] == v for k, v in asked.items())]
        return sign["text"]


def _signs(dice: Dice, kind: str, rows: int, columns: int, difficulty: int) -> list[dict[str, Any]]:
    """Every sign: the colour of its thing, unique in the row, where it stands, and its text."""
    sides = ("left", "right") if kind == "street" else ("",)
    count = rows * columns * len(sides)
    form = dice.pick([form for form in FORMS if form != "word" or count <= len(WORDS)])
    texts = different_texts(dice, form, count, 4 + difficulty // 2)
    if form != "word" and difficulty > 2:
        for i in range(1, len(texts), 3):
            near = misprint(dice, texts[i - 1])
            texts[i] = near if near not in texts else texts[i]
    texts = dice.shuffled(texts)
    places = [
        (row, column, colour, side)
        for row in range(rows)
        for column, colour in enumerate(dice.sample(list(COLOURS), columns))
        for side in sides
    ]
    names = ("row", "column", "colour", "side")
    return [
        {**dict(zip(names, place, strict=True)), "text": text}
        for place, text in zip(places, texts, strict=True)
    ]


def _draw(dice: Dice, kind: str, signs: list[dict[str, Any]], difficulty: int) -> Image:
    """The picture; gives every sign its ``box``. Large areas need no antialiasing."""
    from PIL import Image, ImageDraw

    width, height = SIZES[difficulty - 1]
    rows, columns = GRID[kind][difficulty - 1]
    picture = Image.new(
        "RGB", (width, height), {"street": (170, 205, 235)}.get(kind, (120, 124, 130))
    )
    pen = ImageDraw.Draw(picture)
    high, wide = height / rows, width / columns
    thing = {"street": _house, "shelf": _crate, "cars": _car}[kind]
    look = random_look(dice)
    plate = dice.pick(((255, 255, 255), (250, 240, 200), (225, 235, 245)))
    for row in range(rows):
        _ground(pen, kind, (0, row * high, width, (row + 1) * high))
        for column in range(columns):
            here = [s for s in signs if (s["row"], s["column"]) == (row, column)]
            frame = (column * wide, row * high, (column + 1) * wide, (row + 1) * high)
            centres = thing(pen, dice, frame, COLOURS[here[0]["colour"]])
            for sign, centre in zip(here, centres, strict=True):
                board = _board(sign["text"], LETTERS[difficulty - 1], plate, look)
                left, top = (round(c - s / 2) for c, s in zip(centre, board.size, strict=True))
                picture.paste(board, (left, top))
                sign["box"] = [left, top, left + board.width, top + board.height]
    return _grained(picture, dice, (0, 3, 4, 6, 8)[difficulty - 1])


def _board(text: str, size: float, plate: Colour, look: Any) -> Image:
    canvas = Canvas(round(text_width(text, size, look) + 8), round(size * 1.5), plate)
    canvas.box([0, 0, canvas.width, canvas.height], plate, (70, 72, 78))
    write(canvas, (canvas.width / 2, canvas.height / 2), text, size, (25, 27, 32), "m", look)
    return canvas.finish()


def _ground(pen: Any, kind: str, frame: Box) -> None:
    left, _, right, bottom = frame
    depth = {"street": 0.16, "shelf": 0.06, "cars": 0.1}[kind] * (bottom - frame[1])
    colour = {"street": (128, 130, 134), "shelf": (120, 84, 52), "cars": (96, 98, 104)}[kind]
    pen.rectangle([left, bottom - depth, right, bottom], fill=colour)


def _house(pen: Any, dice: Dice, frame: Box, colour: Colour) -> list[tuple[float, float]]:
    """A wall, a roof, windows and a coloured door; returns where its two signs go."""
    left, top, right, bottom = frame
    wide, high = right - left, bottom - top
    floor = bottom - 0.14 * high
    wall = floor - high * dice.uniform(0.5, 0.6)
    x0, x1 = left + wide * 0.05, right - wide * 0.05
    pen.rectangle([x0, wall, x1, floor], fill=dice.pick(WALLS), outline=(90, 90, 90))
    peak = (left + wide * dice.uniform(0.4, 0.6), top + high * dice.uniform(0.06, 0.16))
    pen.polygon([(x0 - 6, wall), peak, (x1 + 6, wall)], fill=(120, 70, 60))
    glass = (150, 190, 215)
    for x in (0.22, 0.78):
        a, b = left + wide * (x - 0.09), left + wide * (x + 0.09)
        y = wall + (floor - wall) * 0.1
        pen.rectangle(
            [a, y, b, y + (floor - wall) * 0.26], fill=glass, outline=(70, 70, 70), width=2
        )
    middle, half = (left + right) / 2, wide * 0.1
    door = floor - (floor - wall) * dice.uniform(0.5, 0.56)
    pen.rectangle([middle - half, door, middle + half, floor], fill=colour, outline=(60, 60, 60))
    knob = middle + half * 0.7
    pen.ellipse([knob - 3, (door + floor) / 2 - 3, knob + 3, (door + floor) / 2 + 3], fill=glass)
    y = door + (floor - door) * dice.uniform(0.3, 0.6)
    return [(middle - wide * 0.27, y), (middle + wide * 0.27, y)]


def _crate(pen: Any, dice: Dice, frame: Box, colour: Colour) -> list[tuple[float, float]]:
    left, top, right, bottom = frame
    wide, high = right - left, bottom - top
    pad = wide * dice.uniform(0.07, 0.14)
    x0, x1, floor = left + pad, right - pad, bottom - high * 0.07
    lid = top + high * dice.uniform(0.12, 0.34)
    pen.rectangle([x0, lid, x1, floor], fill=colour, outline=(50, 50, 50), width=2)
    pen.line([(x0, lid + high * 0.1), (x1, lid + high * 0.1)], fill=(50, 50, 50), width=2)
    spare = (x1 - x0) / 2 - 52
    x = (x0 + x1) / 2 + dice.uniform(-1, 1) * max(0.0, spare)
    return [(x, lid + high * 0.1 + (floor - lid - high * 0.1) * dice.uniform(0.3, 0.7))]


def _car(pen: Any, dice: Dice, frame: Box, colour: Colour) -> list[tuple[float, float]]:
    """From behind: body, window, lamps and wheels."""
    left, top, right, bottom = frame
    wide, high = right - left, bottom - top
    middle, floor = (left + right) / 2, bottom - 0.1 * high
    half, body = wide * dice.uniform(0.33, 0.4), min(high * 0.36, wide * 0.4)
    for side in (-1, 1):
        x = middle + side * half * 0.72
        pen.rectangle(
            [x - half * 0.14, floor - body * 0.2, x + half * 0.14, floor + 5], fill=(25, 25, 28)
        )
    roof, waist = floor - body * 1.75, floor - body
    corners = [(-0.9, waist), (-0.62, roof), (0.62, roof), (0.9, waist)]
    pen.polygon([(middle + half * u, y) for u, y in corners], fill=colour, outline=(40, 40, 40))
    glass = [(-0.74, waist), (-0.54, roof + 8), (0.54, roof + 8), (0.74, waist)]
    pen.polygon([(middle + half * u, y) for u, y in glass], fill=(165, 190, 205))
    frame_box = [middle - half, waist, middle + half, floor - body * 0.12]
    pen.rounded_rectangle(frame_box, body * 0.16, fill=colour, outline=(40, 40, 40), width=2)
    for side in (-1, 1):
        x = middle + side * half * 0.84
        lamp = [x - half * 0.1, waist + body * 0.15, x + half * 0.1, waist + body * 0.35]
        pen.rectangle(lamp, fill=(250, 120, 90), outline=(40, 40, 40))
    return [(middle, waist + body * dice.uniform(0.45, 0.6))]


def _grained(picture: Image, dice: Dice, deviation: int) -> Image:
    """Grain over all of a large picture, cheaper than ``canvas.with_noise``."""
    from PIL import ImageChops

    if not deviation:
        return picture
    field = _grain(picture.width, picture.height, deviation)
    shift = dice.below(picture.width), dice.below(picture.height)
    return ImageChops.add(picture, ImageChops.offset(field, *shift), 1, -128)


@lru_cache(maxsize=4)
def _grain(width: int, height: int, deviation: int) -> Image:
    import numpy as np
    from PIL import Image

    draws = np.random.RandomState(0).standard_normal((height, width)) * deviation + 128.5
    grey = Image.fromarray(np.clip(draws, 0, 255).astype(np.uint8))
    return Image.merge("RGB", (grey, grey, grey))
