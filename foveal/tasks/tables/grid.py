"""Numbers as statements print them, and tables as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice
from foveal.tasks.lettering import Look, random_look, text_width, write
from foveal.tasks.tables.content import Table, Value

WIDEST = 446
STYLES = ((",", "."), ("", "."), (" ", "."), ("'", "."), (".", ","))
"""Separator of thousands and of decimals."""


@dataclass(frozen=True, slots=True)
class Format:
    """How numbers are printed."""

    group: str
    point: str
    brackets: bool
    """A negative number stands in brackets, not behind a minus."""

    def text(self, value: Value, decimals: int = 0) -> str:
        if isinstance(value, str):
            return value
        whole, _, part = f"{abs(value):.{decimals}f}".partition(".")
        threes = [whole[max(0, i - 3) : i] for i in range(len(whole), 0, -3)][::-1]
        text = self.group.join(threes) + (self.point + part if part else "")
        return text if value >= 0 else f"({text})" if self.brackets else f"−{text}"

    def value(self, text: str) -> float:
        """The number that ``text`` prints."""
        bare = text.strip("()−").replace(self.group, "") if self.group else text.strip("()−")
        number = float(bare.replace(self.point, "."))
        return -number if text[0] in "(−" else number


def printed(table: Table, form: Format) -> list[list[str]]:
    """The cells of every row after its label; a quantity has no decimals."""
    whole = ("Quantity", "Note", "Days")
    return [
        [
            form.text(value, 0 if name in whole else table.decimals)
            for name, value in zip(table.columns[1:], row.values, strict=True)
        ]
        for row in table.rows
    ]


@dataclass(frozen=True, slots=True)
class _Page:
    canvas: Canvas
    ink: Colour
    mark: Colour
    size: float
    look: Look
    edges: list[float]
    """Left edge of every column, and the right edge of the last."""
    pitch: float


def draw(dice: Dice, table: Table, cells: list[list[str]], note: str, difficulty: int) -> Any:
    """The picture of a table; ``note`` stands beneath its title."""
    look = random_look(dice)
    size = (13.5, 13, 12, 11.5, 11)[difficulty - 1] + dice.pick((0, 0.5))
    heavy = look._replace(weight=1)
    columns = [[table.columns[0], *(row.label for row in table.rows)]]
    columns += [[name, *(row[i] for row in cells)] for i, name in enumerate(table.columns[1:])]
    while True:
        widths = [max(text_width(t, size, heavy) for t in column if t) + 16 for column in columns]
        if sum(widths) <= WIDEST - 20 or size <= 8.5:
            break
        size -= 0.5
    spare = max(0.0, min(WIDEST - 20 - sum(widths), dice.uniform(0, 60)))
    edges = [10.0]
    for width in widths:
        edges.append(edges[-1] + width + spare / len(widths))
    top = 30 + size * 1.6
    tallest = (WIDEST - top - 14) / (len(table.rows) + 1)
    pitch = min(size * dice.uniform(1.5, 1.75), tallest)
    height = round(top + pitch * (len(table.rows) + 1) + 12)
    wide = round(max(edges[-1] + 10, text_width(table.title, size + 2, heavy) + 24, 200))
    canvas = Canvas(wide, max(height, 120), dice.pick(PAPERS))
    page = _Page(canvas, dice.pick(INKS), dice.pick(PALETTE[:6]), size, look, edges, pitch)
    write(canvas, (12, 15), table.title, size + 2, page.mark, "l", heavy)
    write(canvas, (12, 16 + size * 1.5), note, size - 1.5, (110, 114, 122), "l", look)
    _lines(dice, page, table, top)
    for number, texts in enumerate([table.columns, *cells]):
        total = number == 0 or table.rows[number - 1].style == "total"
        y = top + (number + 0.5) * pitch
        label = table.columns[0] if number == 0 else table.rows[number - 1].label
        colour = page.ink if number else page.mark
        _row(
            page,
            y,
            [label, *(texts[1:] if number == 0 else texts)],
            colour,
            heavy if total else look,
        )
    return canvas.finish(dice, (0, 0, 2, 4, 7)[difficulty - 1])


def _row(page: _Page, y: float, texts: list[str], colour: Colour, look: Look) -> None:
    if texts[0]:
        write(page.canvas, (page.edges[0] + 6, y), texts[0], page.size, colour, "l", look)
    for right, text in zip(page.edges[2:], texts[1:], strict=True):
        write(page.canvas, (right - 6, y), text, page.size, colour, "r", look)


def _lines(dice: Dice, page: _Page, table: Table, top: float) -> None:
    """Zebra stripes, a full grid, lines between rows, or above totals only."""
    form = dice.pick(("zebra", "grid", "rows", "totals"))
    left, right = page.edges[0], page.edges[-1]
    grey = (178, 183, 190)
    for i, row in enumerate(table.rows, 1):
        y = top + i * page.pitch
        if form == "zebra" and i % 2:
            page.canvas.box([left, y, right, y + page.pitch], (228, 232, 238))
        if form in ("grid", "rows"):
            page.canvas.line([(left, y), (right, y)], grey, 0.8)
        elif row.style == "total":
            page.canvas.line([(left, y), (right, y)], page.ink, 0.9)
    bottom = top + (len(table.rows) + 1) * page.pitch
    if form == "grid":
        for x in page.edges:
            page.canvas.line([(x, top), (x, bottom)], grey, 0.8)
        page.canvas.line([(left, top), (right, top)], grey, 0.8)
    page.canvas.line([(left, top + page.pitch), (right, top + page.pitch)], page.ink, 1.3)
    page.canvas.line([(left, bottom), (right, bottom)], page.ink, 1.0)
