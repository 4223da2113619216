"""Bars, grouped bars, lines and pies: see the package."""

from __future__ import annotations

import math
from typing import Any

from foveal.tasks.base import Drawn, plain
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.charts import frame
from foveal.tasks.charts.frame import CATEGORIES, HEIGHT, SERIES, TICKS, TITLES, UNITS, WIDTH
from foveal.tasks.dice import Dice

RANKS = ("largest", "smallest", "second largest")

TEMPLATES = {
    "read": ("What is the value of {a}?", "Read the value of {a}.", "How high is {a}?"),
    "difference": (
        "How much larger is {a} than {b}?",
        "By how much does {a} exceed {b}?",
        "What is {a} minus {b}?",
    ),
    "sum": ("What is the sum of {a} and {b}?", "How much are {a} and {b} together?"),
    "ratio": (
        "How many times {b} is {a}? Give one decimal.",
        "What is {a} divided by {b}? Give one decimal.",
    ),
    "rank": ("Which has the {rank} value{where}?", "Name the one with the {rank} value{where}."),
}
PIE_TEMPLATES = {
    "read": (
        "The whole is {total}. How many belong to {a}?",
        "There are {total} in all. How many are {a}?",
    ),
    "difference": ("Of {total} in all, how many more are {a} than {b}?",),
    "sum": ("Of {total} in all, how many are {a} or {b}?",),
}


def draw(dice: Dice, difficulty: int, form: str) -> Drawn:
    chart = _pie_values(dice, difficulty) if form == "pie" else _values(dice, difficulty, form)
    kind = dice.pick(tuple(PIE_TEMPLATES if form == "pie" else TEMPLATES))
    # A ratio needs two values of a tick or more, or its error would be too large to grade.
    if kind == "ratio" and all(sorted(row)[-2] < chart["tick"] for row in chart["values"]):
        kind = "read"
    asked = _ask_ratio(dice, chart) if kind == "ratio" else _ask(dice, chart, kind)
    while kind == "difference" and _falls_short(chart, asked["asked"]):
        asked = _ask(dice, chart, kind)
    metadata = {"kind": kind, "form": form, **chart, **asked}
    metadata["tolerance"] = _tolerance(metadata)
    picture = (_draw_pie if form == "pie" else _draw_axes)(dice, metadata, difficulty)
    return Drawn(picture, _question(dice, metadata), _answer(chart, kind, asked), metadata)


def solve(metadata: dict[str, Any]) -> str:
    """From the plotted values alone."""
    table = dict(zip(metadata["series"], metadata["values"], strict=True))
    columns = metadata["categories"]
    read = [table[s][columns.index(c)] for s, c in metadata["asked"]]
    if metadata["form"] == "pie":
        read = [value * metadata["total"] / 100 for value in read]
    if metadata["kind"] == "rank":
        row = table[metadata["asked"][0][0]]
        order = sorted(columns, key=lambda name: -row[columns.index(name)])
        return order[{"largest": 0, "second largest": 1, "smallest": -1}[metadata["rank"]]]
    if metadata["kind"] == "ratio":
        return plain(round(read[0] / read[1], 1))
    if metadata["kind"] == "difference":
        return plain(read[0] - read[1])
    return plain(sum(read))


def _values(dice: Dice, difficulty: int, form: str) -> dict[str, Any]:
    """Series of different values on the grain; a category's name says nothing about its value."""
    tick = dice.pick(UNITS)
    parts = (2, 2, 4, 5, 10)[difficulty - 1]
    n_categories = dice.between(3 + difficulty // 2, 4 + (difficulty * 4) // 5)
    n_series = 1
    if form == "grouped":
        n_series = 2 if difficulty < 4 else dice.between(2, 3)
    elif form == "line":
        n_series = (1, 1, 2, 2, 3)[difficulty - 1]
    levels = range(1, TICKS * parts + 1)
    return {
        "categories": list(dice.pick(CATEGORIES)[:n_categories]),
        "series": list(dice.pick(SERIES)[:n_series]) if n_series > 1 else ["all"],
        "values": [
            [level * tick / parts for level in dice.sample(levels, n_categories)]
            for _ in range(n_series)
        ],
        "tick": tick,
        "total": 0,
    }


def _pie_values(dice: Dice, difficulty: int) -> dict[str, Any]:
    """Percentages, different from each other, that come to 100."""
    n = 3 + difficulty // 2
    grain = (10, 5, 5, 2, 1)[difficulty - 1]
    while True:
        cuts = sorted(dice.sample(range(1, 100 // grain), n - 1))
        shares = [b - a for a, b in zip([0, *cuts], [*cuts, 100 // grain], strict=True)]
        if len(set(shares)) == n and min(shares) * grain >= 4:
            break
    return {
        "categories": dice.sample(dice.pick(CATEGORIES), n),
        "series": ["all"],
        "values": [[float(share * grain) for share in shares]],
        "tick": 0,
        "total": dice.pick((200, 300, 400, 500, 600, 800)),
    }


def _ask(dice: Dice, chart: dict[str, Any], kind: str) -> dict[str, Any]:
    series = dice.pick(chart["series"])
    other = dice.pick(chart["series"]) if kind != "rank" else series
    first, second = dice.sample(chart["categories"], 2)
    pair = [[series, first], [other, second]]
    asked = pair[:1] if kind in ("read", "rank") else pair
    return {"asked": asked, "rank": dice.pick(RANKS) if kind == "rank" else ""}


def _at(chart: dict[str, Any], place: list[str]) -> float:
    row = chart["values"][chart["series"].index(place[0])]
    return row[chart["categories"].index(place[1])]


def _falls_short(chart: dict[str, Any], asked: list[list[str]]) -> bool:
    return _at(chart, asked[0]) <= _at(chart, asked[1])


def _ask_ratio(dice: Dice, chart: dict[str, Any]) -> dict[str, Any]:
    """The two values whose ratio is nearest to one that is drawn: most pairs are near 1."""
    places = [[s, c] for s in chart["series"] for c in chart["categories"]]
    large = [p for p in places if _at(chart, p) >= chart["tick"]]
    pairs = [[p, q] for p in large for q in large if _at(chart, p) > _at(chart, q)]
    wanted = dice.uniform(1.1, 4.0)
    nearest = min(pairs, key=lambda pq: abs(_at(chart, pq[0]) / _at(chart, pq[1]) - wanted))
    return {"asked": nearest, "rank": ""}


def _answer(chart: dict[str, Any], kind: str, asked: dict[str, Any]) -> str:
    share = chart["total"] / 100 if chart["total"] else 1.0
    values = [_at(chart, place) * share for place in asked["asked"]]
    if kind == "rank":
        row = chart["values"][chart["series"].index(asked["asked"][0][0])]
        wanted = {"largest": max(row), "smallest": min(row), "second largest": sorted(row)[-2]}
        return chart["categories"][row.index(wanted[asked["rank"]])]
    made = {
        "read": lambda: values[0],
        "sum": lambda: values[0] + values[1],
        "difference": lambda: values[0] - values[1],
        "ratio": lambda: round(values[0] / values[1], 1),
    }
    return plain(made[kind]())


def _tolerance(metadata: dict[str, Any]) -> float:
    if metadata["kind"] == "rank" or metadata["form"] == "pie":
        return 0.0
    if metadata["kind"] == "ratio":
        return 0.1
    return round(metadata["tick"] / 10 * len(metadata["asked"]), 6)


def _question(dice: Dice, metadata: dict[str, Any]) -> str:
    several = len(metadata["series"]) > 1
    names = [f"{c} ({s})" if several else c for s, c in metadata["asked"]]
    where = f" for {metadata['asked'][0][0]}" if several else ""
    pool = PIE_TEMPLATES if metadata["form"] == "pie" else TEMPLATES
    return dice.pick(pool[metadata["kind"]]).format(
        a=names[0], b=names[-1], rank=metadata["rank"], where=where, total=metadata["total"]
    )


def _draw_axes(dice: Dice, chart: dict[str, Any], difficulty: int) -> Any:
    several = len(chart["series"]) > 1
    colours = dice.sample(PALETTE, len(chart["series"]))
    area = frame.start(dice, difficulty, chart["tick"], several)
    step = frame.name_categories(area, chart["categories"])
    plot = _plot_lines if chart["form"] == "line" else _plot_bars
    place = (area.left, area.bottom, step, area.height / chart["tick"])
    plot(area.canvas, dice, chart, colours, place)

    def key(i: int, x: float, y: float) -> None:
        area.canvas.box([x - 5.5, y - 5.5, x + 5.5, y + 5.5], colours[i])

    if several:
        frame.legend(area, chart["series"], key)
    return area.canvas.finish(dice, frame.GRAIN[difficulty - 1])


def _plot_bars(
    canvas: Canvas,
    dice: Dice,
    chart: dict[str, Any],
    colours: list[Colour],
    place: tuple[float, float, float, float],
) -> None:
    left, bottom, step, unit = place
    share = dice.uniform(0.55, 0.85)
    edge = dice.pick((None, INKS[0]))
    thick = step * share / len(colours)
    for s, row in enumerate(chart["values"]):
        for i, value in enumerate(row):
            x = left + step * (i + 0.5 - share / 2) + s * thick
            canvas.box([x, bottom - value * unit, x + thick, bottom], colours[s], edge)


def _plot_lines(
    canvas: Canvas,
    dice: Dice,
    chart: dict[str, Any],
    colours: list[Colour],
    place: tuple[float, float, float, float],
) -> None:
    left, bottom, step, unit = place
    width, radius = dice.uniform(1.2, 2.6), dice.uniform(2.5, 4)
    for colour, row in zip(colours, chart["values"], strict=True):
        points = [(left + step * (i + 0.5), bottom - v * unit) for i, v in enumerate(row)]
        canvas.line(points, colour, width)
        for point in points:
            canvas.disc(point, radius, colour)


def _draw_pie(dice: Dice, chart: dict[str, Any], difficulty: int) -> Any:
    """Percentages stand at the slices; which slice is whose is in the legend."""
    paper = dice.pick(PAPERS)
    canvas = Canvas(WIDTH, HEIGHT, paper)
    ink, size = dice.pick(INKS), (14, 13, 12, 11, 10)[difficulty - 1]
    shares, colours = chart["values"][0], dice.sample(PALETTE, len(chart["categories"]))
    centre, radius = (132.0, 148.0), dice.uniform(80, 92)
    canvas.text((WIDTH / 2, 14), dice.pick(TITLES), size + 2, ink)
    start = dice.uniform(0, 360)
    for share, colour in zip(shares, colours, strict=True):
        end = start + share * 3.6
        canvas.slice(centre, radius, (start, end), colour)
        middle, out = math.radians((start + end) / 2), radius + 19
        place = (centre[0] + out * math.cos(middle), centre[1] + out * math.sin(middle))
        canvas.text(place, f"{share:.0f}%", size, ink)
        start = end
    for i in dice.shuffled(range(len(shares))):
        y = 148 + (i - (len(shares) - 1) / 2) * 24
        canvas.box([264, y - 6, 276, y + 6], colours[i])
        canvas.text((282, y), chart["categories"][i], size, ink, "lm")
    return canvas.finish(dice, (0, 0, 2, 5, 9)[difficulty - 1])
