"""Reading one word, number or code in distorted print, alone or among others.

    alone    one text
    colour   the text on the plate of a colour
    line     the text of one line of several
    largest  the largest of several texts

Texts are words, numbers and codes. With difficulty texts multiply and come to differ in one sign,
letters shrink, lean and wave, ink gets paler, strokes cross the picture, it blurs, and grain is
added. Capitals and small letters count as the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask
from foveal.tasks.canvas import INKS, PAPERS, Canvas, Colour, with_noise
from foveal.tasks.dice import Dice
from foveal.tasks.lettering import random_look, text_width, write
from foveal.tasks.printed_words import FORMS, different_texts, misprint

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 280
PLATES: dict[str, Colour] = {
    "red": (235, 120, 110),
    "blue": (135, 170, 240),
    "green": (130, 205, 140),
    "yellow": (245, 225, 110),
    "orange": (245, 175, 95),
    "purple": (195, 150, 230),
    "grey": (185, 188, 194),
}
COUNTS = (3, 3, 4, 5, 6)
WAVES = (0.0, 1.0, 2.0, 3.0, 3.8)
"""How far letters may rise and fall, in pixels."""
LINES = ("first", "second", "third", "fourth", "fifth", "sixth")

TEMPLATES = {
    "alone": ("What is written in the picture?", "Read the text.", "Which text do you see?"),
    "colour": (
        "What is written on the {colour} plate?",
        "Read the {colour} plate.",
        "Which text stands on {colour}?",
    ),
    "line": (
        "What does the {line} line from the top say?",
        "Read the {line} line, counted from the top.",
    ),
    "largest": ("Which text is printed largest?", "Read the text with the largest letters."),
}


class ReadTextTask(DrawnTask):
    """The task family "read_text"."""

    name: str = "read_text"
    kinds: ClassVar[tuple[str, ...]] = tuple(TEMPLATES)

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        count = 1 if kind == "alone" else COUNTS[difficulty - 1]
        texts = _texts(dice, count, difficulty)
        colours = dice.sample(list(PLATES), count)
        size = (21, 20, 18, 17, 15)[difficulty - 1] + dice.pick((0, 1, 2))
        sizes = [size + (8 if kind == "alone" else 0)] * count
        if kind == "largest":
            # The next one is at least a fifth smaller.
            steps = [round(size * 1.3 * 0.8**i) for i in range(3)]
            sizes = dice.shuffled([steps[0], *(steps[1 + i % 2] for i in range(count - 1))])
        lines = [
            {"text": text, "colour": colour, "size": size}
            for text, colour, size in zip(texts, colours, sizes, strict=True)
        ]
        asked = sizes.index(max(sizes)) if kind == "largest" else dice.below(count)
        picture = _draw(dice, lines, difficulty, plates=kind == "colour")
        question = dice.pick(TEMPLATES[kind]).format(colour=colours[asked], line=LINES[asked])
        wanted = {"colour": colours[asked], "line": asked}
        metadata = {"kind": kind, "lines": lines, **wanted, "tolerance": 0.0}
        return Drawn(picture, question, texts[asked], metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From the lines, top to bottom, with their colours and letter sizes."""
        lines, kind = metadata["lines"], metadata["kind"]
        if kind == "colour":
            return next(line["text"] for line in lines if line["colour"] == metadata["colour"])
        if kind == "largest":
            return max(lines, key=lambda line: line["size"])["text"]
        return lines[metadata["line"] if kind == "line" else 0]["text"]


def _texts(dice: Dice, count: int, difficulty: int) -> list[str]:
    form = dice.pick(FORMS)
    texts = different_texts(dice, form, count, 4 + difficulty // 2)
    if form != "word" and difficulty > 2 and count > 1:
        near = misprint(dice, texts[0])
        texts[1] = near if near not in texts else texts[1]
    return dice.shuffled(texts)


def _draw(dice: Dice, lines: list[dict[str, Any]], difficulty: int, plates: bool) -> Image:
    paper, ink = dice.pick(PAPERS), dice.pick(INKS)
    fade = (0, 0, 0.15, 0.3, 0.42)[difficulty - 1]
    pitch = (max(line["size"] for line in lines)) * (2.0 if plates else 1.75)
    height = max(110, round(pitch * len(lines) + 30))
    canvas = Canvas(WIDTH, height, paper)
    for i, line in enumerate(lines):
        look = random_look(dice)
        size, text = line["size"], line["text"]
        wide = text_width(text, size, look)
        spare = (WIDTH - wide) / 2 - 26
        at = (
            WIDTH / 2 + dice.uniform(-spare, spare),
            height / 2 + (i - (len(lines) - 1) / 2) * pitch,
        )
        tilt = (
            dice.uniform(-1, 1) * (0, 2, 3, 4, 5)[difficulty - 1] * (2 if len(lines) == 1 else 0.6)
        )
        ground = PLATES[line["colour"]] if plates else paper
        if plates:
            half = (wide / 2 + 10, pitch * 0.45)
            corners = [at[0] - half[0], at[1] - half[1], at[0] + half[0], at[1] + half[1]]
            canvas.box(corners, ground, ink)
            tilt *= 0.4
        write(canvas, at, text, size, _mixed(ink, ground, fade), "m", look, tilt)
    for _ in range((0, 1, 2, 3, 5)[difficulty - 1]):
        _stroke(canvas, dice, height, _mixed(ink, paper, 0.35))
    picture = _waved(canvas.finish(), dice, WAVES[difficulty - 1])
    return _spoiled(picture, dice, difficulty)


def _mixed(a: Colour, b: Colour, part: float) -> Colour:
    red, green, blue = (round(p + (q - p) * part) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _stroke(canvas: Canvas, dice: Dice, height: int, colour: Colour) -> None:
    """A thin line across the picture."""
    ends = [(0.0, dice.uniform(0, height)), (float(WIDTH), dice.uniform(0, height))]
    canvas.line(ends, colour, 0.7)


def _waved(picture: Image, dice: Dice, height: float) -> Image:
    """Every column of pixels moved up or down along a wave."""
    import numpy as np
    from PIL import Image

    if not height:
        return picture
    phase, length = dice.uniform(0, 2 * math.pi), dice.uniform(70, 130)
    pixels = np.asarray(picture)
    columns = np.arange(pixels.shape[1])
    shift = np.rint(height * np.sin(phase + columns * (2 * math.pi / length))).astype(int)
    rows = np.clip(np.arange(pixels.shape[0])[:, None] + shift[None, :], 0, pixels.shape[0] - 1)
    return Image.fromarray(pixels[rows, columns[None, :]])


def _spoiled(picture: Image, dice: Dice, difficulty: int) -> Image:
    from PIL import ImageFilter

    blur = (0, 0, 0.3, 0.5, 0.7)[difficulty - 1]
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    return with_noise(picture, dice, (0, 3, 5, 8, 11)[difficulty - 1])
