"""Printed text in several looks and with the accents that Pillow's own font lacks.

The font that ships with Pillow has ASCII, ``°`` and ``·`` only. Accents of Latin letters, inverted
marks and the signs ``−×÷²ß□`` are drawn here, so German, Spanish and French come out the same
everywhere. Cyrillic needs DejaVu Sans, which comes with matplotlib or the system.
"""

from __future__ import annotations

import math
import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from foveal.tasks.canvas import SCALE, Canvas, Colour, Point, default_font
from foveal.tasks.dice import Dice

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

BOX = "□"
_SIGNS = {"−": "+", "×": "+", "÷": "+", "²": "2", BOX: "M", "¿": "?", "¡": "!", "ß": "b"}
"""Signs drawn here, and the letter whose width they take."""
_MARKS = {"\u0300": "grave", "\u0301": "acute", "\u0302": "circumflex", "\u0303": "tilde"}
_MARKS |= {"\u0308": "dots", "\u0327": "cedilla"}
_SHARP_S = (
    (0, 0), (0, 0.58), (0.04, 0.67), (0.12, 0.72), (0.22, 0.72), (0.3, 0.67), (0.33, 0.58),
    (0.3, 0.5), (0.2, 0.43), (0.18, 0.38), (0.34, 0.3), (0.39, 0.22), (0.39, 0.13), (0.34, 0.04),
    (0.25, 0), (0.14, 0.01),
)  # fmt: skip
"""The pen's way through ß, in font sizes right and up."""
_PLAIN = frozenset(map(chr, range(32, 127))) | frozenset("°·")


class Look(NamedTuple):
    """How letters are printed; the defaults are the font as it is."""

    weight: int = 0
    """Thickening of every stroke, in half pixels."""
    stretch: float = 1.0
    """Width of letters, 1 as designed."""
    slant: float = 0.0
    """How far the top leans to the right, as a part of the height."""
    dejavu: bool = False
    """DejaVu Sans, for Cyrillic and Greek."""


def random_look(dice: Dice, bold: bool = False, dejavu: bool = False) -> Look:
    """Upright or slanted, narrow or wide, light or bold."""
    heavy = bold or dice.below(4) == 0
    # Few looks, so that their glyphs are soon all drawn.
    return Look(int(heavy), dice.pick((0.94, 1.0, 1.08)), dice.pick((0.0, 0.0, 0.16)), dejavu)


PLAIN_LOOK = Look()


def write(
    canvas: Canvas,
    at: Point,
    text: str,
    size: float,
    colour: Colour,
    anchor: str = "m",
    look: Look = PLAIN_LOOK,
    angle: float = 0.0,
) -> list[float]:
    """Print ``text`` and return its box: left, top, right, bottom in pixels.

    Args:
        at: the left end ("l"), middle ("m") or right end ("r") of the line, at half its height.
        size: font size in pixels.
        angle: degrees counterclockwise, about the middle of the text.

    Raises:
        ValueError: for a letter that neither the font nor this file can draw.
        ImportError: if the look needs DejaVu Sans and there is none.
    """
    mask = lettered(text, size, look)
    width = mask.width / SCALE
    x = at[0] - {"l": 0.0, "m": width / 2, "r": width}[anchor]
    y = at[1] - mask.height / SCALE / 2
    if angle:
        from PIL import Image

        turned = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        x += (mask.width - turned.width) / 2 / SCALE
        y += (mask.height - turned.height) / 2 / SCALE
        mask = turned
    canvas.stamp((x, y), mask, colour)
    inner = mask.getbbox() or (0, 0, 0, 0)
    return [round((x, y)[i % 2] + edge / SCALE, 1) for i, edge in enumerate(inner)]


def is_printable(text: str) -> bool:
    """Whether ``write`` can print ``text`` without DejaVu Sans."""
    signs = unicodedata.normalize("NFD", text)
    return all(sign in _PLAIN or sign in _MARKS or sign in _SIGNS for sign in signs)


def text_width(text: str, size: float, look: Look = PLAIN_LOOK) -> float:
    """Pixels that ``write`` takes for ``text``; nothing is drawn."""
    return _wide(sum(_advances(_letters(text, look.dejavu), size, look)), size, look) / SCALE


def _advances(letters: list[tuple[str, str]], size: float, look: Look) -> list[float]:
    return [_advance(letter, extra, size, look) for letter, extra in letters]


def _wide(advance: float, size: float, look: Look) -> float:
    """Width of a mask in doubled pixels."""
    return advance * look.stretch + _lean(size, look) + 2 * _pad(size)


@lru_cache(maxsize=512)
def lettered(text: str, size: float, look: Look = PLAIN_LOOK) -> Image:
    """``text`` as a mask of doubled pixels, 255 where there is ink."""
    import numpy as np
    from PIL import Image

    letters = _letters(text, look.dejavu)
    advances = _advances(letters, size, look)
    # A glyph begins two pads before its letter and may end as many after it.
    margin = math.ceil(3 * _pad(size) * look.stretch)
    width, height = round(_wide(sum(advances), size, look)), _height(size, look.dejavu)
    mask = np.zeros((height, width + 2 * margin), dtype=np.uint8)
    x = margin + _pad(size) - 2 * _pad(size) * look.stretch
    for (letter, extra), advance in zip(letters, advances, strict=True):
        if letter != " ":
            glyph = _glyph(letter, extra, size, look)
            part = mask[:, round(x) : round(x) + glyph.shape[1]]
            np.maximum(part, glyph[:, : part.shape[1]], out=part)
        x += advance * look.stretch
    return Image.fromarray(np.ascontiguousarray(mask[:, margin : margin + width]))


def _pad(size: float) -> int:
    return max(2, round(size * 0.1))


@lru_cache(maxsize=256)
def _height(size: float, dejavu: bool) -> int:
    return sum(_chosen(size, dejavu).getmetrics()) + _pad(size)


def _lean(size: float, look: Look) -> float:
    return look.slant * _height(size, look.dejavu)


def _chosen(size: float, dejavu: bool) -> FreeTypeFont:
    return _dejavu(size) if dejavu else default_font(size)


@lru_cache(maxsize=16384)
def _advance(letter: str, extra: str, size: float, look: Look) -> float:
    length = _chosen(size, look.dejavu).getlength(letter)
    return length * (2 if extra == BOX else 1) + look.weight


@lru_cache(maxsize=16384)
def _glyph(letter: str, extra: str, size: float, look: Look) -> Any:
    """One letter with its accent as rows of grey; it begins two pads from the left."""
    import numpy as np
    from PIL import Image, ImageDraw

    font, pad = _chosen(size, look.dejavu), _pad(size)
    wide = math.ceil(_advance(letter, extra, size, look)) + 4 * pad
    mask = Image.new("L", (wide, _height(size, look.dejavu)))
    at = (2.0 * pad, float(font.getmetrics()[0] + pad // 2))
    _letter(mask, ImageDraw.Draw(mask), font, at, letter, extra, look.weight, size * SCALE)
    lean = _lean(size, look)
    if look.stretch == 1.0 and not lean:
        return np.asarray(mask)
    inverse = 1 / look.stretch
    # Output (x, y) shows input (x - lean * (1 - y / height)) / stretch.
    shaped = mask.transform(
        (round(mask.width * look.stretch + lean), mask.height),
        Image.Transform.AFFINE,
        (inverse, look.slant * inverse, -lean * inverse, 0.0, 1.0, 0.0),
        resample=Image.Resampling.BILINEAR,
    )
    return np.asarray(shaped)


def _letters(text: str, dejavu: bool) -> list[tuple[str, str]]:
    """Each letter of the font, with the accent or sign that is drawn in addition or instead."""
    if not dejavu and _PLAIN.issuperset(text):
        return [(letter, "") for letter in text]
    letters = []
    for character in text:
        if character in _SIGNS and (character == BOX or not dejavu):
            letters.append((_SIGNS[character], character))
        elif dejavu:
            letters.append((character, ""))
        else:
            base, *marks = unicodedata.normalize("NFD", character)
            if base not in _PLAIN or len(marks) > 1 or any(mark not in _MARKS for mark in marks):
                raise ValueError(
                    f"{character!r} of {text!r} is not in Pillow's font; write it in another way "
                    "or add it to foveal/tasks/lettering.py"
                )
            letters.append((base, _MARKS[marks[0]] if marks else ""))
    return letters


def _letter(
    mask: Image,
    pen: Any,
    font: FreeTypeFont,
    at: tuple[float, float],
    letter: str,
    extra: str,
    weight: int,
    size: float,
) -> None:
    if extra in _SIGNS:
        _sign(mask, pen, font, at, letter, extra, weight, size)
        return
    pen.text(at, letter, 255, font, "ls", stroke_width=weight)
    if extra:
        box = font.getbbox(letter, anchor="ls")
        middle, top = at[0] + (box[0] + box[2]) / 2, at[1] + box[1]
        if letter in "ij":
            top = at[1] + font.getbbox("x", anchor="ls")[1]
            pen.rectangle([at[0] - 1, at[1] + box[1] - 2, at[0] + box[2] + 1, top - 1], fill=0)
        _accent(pen, extra, (middle, top), at[1], size, max(2, round(size / 13) + weight))


def _accent(
    pen: Any, mark: str, top: tuple[float, float], baseline: float, size: float, width: int
) -> None:
    """``top`` is the middle of the letter's upper edge."""
    x, y = top[0], top[1] - size * 0.1
    u = size * 0.1
    if mark == "dots":
        for side in (-1, 1):
            cx, r = x + side * u * 1.15, width * 0.62
            pen.ellipse([cx - r, y - r, cx + r, y + r], fill=255)
        return
    strokes = {
        "acute": [(x - u * 0.6, y + u * 0.4), (x + u * 0.9, y - u * 0.8)],
        "grave": [(x + u * 0.6, y + u * 0.4), (x - u * 0.9, y - u * 0.8)],
        "circumflex": [(x - u * 1.2, y + u * 0.4), (x, y - u * 0.8), (x + u * 1.2, y + u * 0.4)],
        "tilde": [
            (x + u * (k / 4 - 1.5), y - u * 0.35 * math.sin(k * math.pi / 6)) for k in range(13)
        ],
        "cedilla": [
            (x, baseline),
            (x, baseline + u * 0.6),
            (x + u * 0.7, baseline + u),
            (x + u * 0.2, baseline + u * 1.8),
            (x - u * 0.7, baseline + u * 1.7),
        ],
    }[mark]
    pen.line(strokes, fill=255, width=width, joint="curve")


def _sign(
    mask: Image,
    pen: Any,
    font: FreeTypeFont,
    at: tuple[float, float],
    letter: str,
    sign: str,
    weight: int,
    size: float,
) -> None:
    from PIL import Image, ImageDraw

    box = font.getbbox(letter, anchor="ls")
    left, top, right, bottom = (at[i % 2] + edge for i, edge in enumerate(box))
    width = max(2, round(size / 13) + weight)
    x, y, r = (left + right) / 2, at[1] - size * 0.3, (right - left) / 2
    if sign == BOX:
        wide = at[0] + font.getlength(letter) * 1.9
        frame = [left, at[1] - size * 0.8, wide, at[1] + size * 0.14]
        pen.rectangle(frame, outline=255, width=width)
    elif sign in "¿¡":
        glyph = Image.new("L", (round(right - left) + 2, round(bottom - top) + 2))
        ImageDraw.Draw(glyph).text(
            (1 - box[0], 1 - box[1]), letter, 255, font, "ls", stroke_width=weight
        )
        turned = glyph.transpose(Image.Transpose.ROTATE_180)
        mask.paste(255, (round(left), round(top + size * 0.18)), turned)
    elif sign == "²":
        small = default_font(size / SCALE * 0.6)
        pen.text((at[0], at[1] - size * 0.32), letter, 255, small, "ls", stroke_width=weight)
    elif sign == "ß":
        stroke = [(left + size * (u + 0.05), at[1] - size * v) for u, v in _SHARP_S]
        pen.line(stroke, fill=255, width=width, joint="curve")
    elif sign == "×":
        r *= 0.72
        pen.line([(x - r, y - r), (x + r, y + r)], fill=255, width=width)
        pen.line([(x - r, y + r), (x + r, y - r)], fill=255, width=width)
    else:
        pen.line([(x - r, y), (x + r, y)], fill=255, width=width)
        if sign == "÷":
            for away in (-0.24, 0.24):
                dot = (x, y + away * size)
                pen.ellipse([v + s * width * 0.6 for s in (-1, 1) for v in dot], fill=255)


@lru_cache(maxsize=64)
def _dejavu(size: float) -> FreeTypeFont:
    from PIL import ImageFont

    found = find_spec("matplotlib")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        return ImageFont.truetype(str(file), size * SCALE)
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size * SCALE)
    except OSError as error:
        raise ImportError(
            "Cyrillic text needs the font DejaVu Sans; pip install matplotlib, which ships it, "
            "or install it on the system"
        ) from error
