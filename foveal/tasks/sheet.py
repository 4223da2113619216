"""A contact sheet: one sample of every task at two difficulties, question and answer beneath."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.tasks.base import INSTRUCTION
from foveal.tasks.canvas import INK, SCALE, Canvas
from foveal.tasks.lettering import is_printable, write

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 232
CAPTION = 84
GAP = 10
PAPER = (255, 255, 255)


def write_sheet(
    path: Path, rows: Sequence[dict[str, Any]], columns: int = 4, colours: int = 256
) -> None:
    """Write a palette PNG of ``rows`` (from ``Task.generate``), ``columns`` in a line.

    Raises:
        ValueError: without rows, or for a path that does not end in ``.png``.
    """
    if not rows or path.suffix.lower() != ".png":
        raise ValueError(f"{len(rows)} rows for {path}; give one row or more and a path in .png")
    lines = -(-len(rows) // columns)
    canvas = Canvas(columns * (CELL + GAP) + GAP, lines * (CELL + CAPTION) + GAP, PAPER)
    for i, row in enumerate(rows):
        x, y = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + CAPTION)
        _caption(canvas, row, x, y + CELL + 3)
    sheet = canvas.finish()
    for i, row in enumerate(rows):
        x, y = GAP + i % columns * (CELL + GAP), GAP + i // columns * (CELL + CAPTION)
        picture = _fitted(row["images"][0])
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + CELL - picture.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    _in_palette(sheet, colours).save(path, optimize=True)


def _in_palette(sheet: Image, colours: int) -> Image:
    """Colours are chosen for the widest range, lest paper and grain take most of the palette."""
    from PIL import Image

    quiet = Image.Dither.NONE
    return sheet.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=quiet)


def _fitted(picture: Image) -> Image:
    from PIL import Image

    factor = (CELL - 4) / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _caption(canvas: Canvas, row: dict[str, Any], x: float, y: float) -> None:
    question = row["problem"].removeprefix("<image>").removesuffix(INSTRUCTION).strip()
    title = f"{row['task']}, difficulty {row['difficulty']}"
    canvas.text((x, y + 4), title, 9, (120, 125, 135), "lt")
    lines = _wrapped(canvas, question, 10, CELL)
    for number, line in enumerate(lines):
        at = (x, y + 17 + 12 * number)
        if line.isascii() or not is_printable(line):
            canvas.text(at, line, 10, INK, "lt")
        else:
            write(canvas, (at[0] - 1, at[1] + 4), line, 10, INK, "l")
    canvas.text((x, y + 18 + 12 * len(lines)), row["answer"], 11, (20, 110, 60), "lt")


def _wrapped(canvas: Canvas, text: str, size: float, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if canvas.text_width(longer, size) <= width - SCALE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
