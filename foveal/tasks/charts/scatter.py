"""Scatter plots: points of one series or three, lettered points, a dashed line, a cross."""

from __future__ import annotations

import math
from typing import Any

from foveal.tasks.base import Drawn, plain
from foveal.tasks.canvas import PALETTE, Canvas, Colour
from foveal.tasks.charts import frame
from foveal.tasks.charts.frame import SERIES, TICKS, UNITS
from foveal.tasks.dice import Dice

LETTERS = "ABCDEFGHK"
APART = 0.24
"""Least distance of two points, in ticks: their marks do not touch."""
CLEAR = 0.22
"""Least height of a point over or under a line that is asked about, in ticks."""
LEAST_FIT = (0.9, 0.88, 0.85, 0.8, 0.75)
"""Least correlation of a series, by difficulty, where its trend is asked for."""
SLOPES = {"rises": (1, -1, -1), "falls": (-1, 1, 1), "rises most steeply": (1, 0.55, 0.3)}
TEMPLATES = {
    "read": ("What is the {what} value of point {a}?", "Read the {what} coordinate of {a}."),
    "level": (
        "How many points have a y above {level}?",
        "Count the points higher than y = {level}.",
    ),
    "line": (
        "How many points lie above the dashed line?",
        "Count the points over the dashed line.",
    ),
    "series": ("How many points belong to {a}?", "Count the points of {a}."),
    "trend": ("Which series {what} as x grows?", "Name the series that {what} from left to right."),
    "nearest": (
        "Which lettered point is nearest to the cross?",
        "Name the lettered point closest to the cross, as drawn.",
    ),
}
KINDS = ("read", "count", "count", "trend", "nearest")

Places = list[tuple[float, float]]
"""x and y in ticks."""


def draw(dice: Dice, difficulty: int, form: str) -> Drawn:
    kind = dice.pick(KINDS)
    metadata: dict[str, Any] = {
        "kind": kind, "form": form, "what": kind, "rank": "", "asked": [], "categories": [],
        "series": ["all"], "tick": dice.pick(UNITS), "x_tick": dice.pick(UNITS), "level": 0.0,
        "line": [0.0, 0.0], "cross": [], "tolerance": 0.0,
    }  # fmt: skip
    if kind == "count":
        metadata["what"] = dice.pick(("level", "line", "series"))
    made = {"read": _read, "count": _count, "trend": _trend, "nearest": _nearest}
    places, names, answer = made[kind](dice, difficulty, metadata)
    metadata["points"] = [
        {"x": x * metadata["x_tick"], "y": y * metadata["tick"], "series": series, "name": name}
        for (x, y), (series, name) in zip(places, names, strict=True)
    ]
    area = _draw(dice, metadata, difficulty)
    pool = TEMPLATES[metadata["what"] if kind == "count" else kind]
    asked = metadata["asked"][0] if metadata["asked"] else ["", ""]
    question = dice.pick(pool).format(
        what=metadata["what"], a=asked[1] or asked[0], level=plain(metadata["level"])
    )
    return Drawn(area, question, answer, metadata)


def solve(metadata: dict[str, Any]) -> str:
    """From the points' coordinates; a trend is the slope of least squares."""
    points = metadata["points"]
    if metadata["kind"] == "read":
        (point,) = [p for p in points if p["name"] == metadata["asked"][0][1]]
        return plain(point[metadata["what"]])
    if metadata["kind"] == "nearest":
        x, y = metadata["cross"]
        wide, high = metadata["x_tick"] / _width(), metadata["tick"]
        lettered = [p for p in points if p["name"]]
        return min(lettered, key=lambda p: math.hypot((p["x"] - x) / wide, (p["y"] - y) / high))[
            "name"
        ]
    if metadata["kind"] == "trend":
        rows = {s: [p for p in points if p["series"] == s] for s in metadata["series"]}
        slopes = {s: _slope([(p["x"], p["y"]) for p in row]) for s, row in rows.items()}
        return (min if metadata["what"] == "falls" else max)(slopes, key=lambda s: slopes[s])
    if metadata["what"] == "series":
        return str(sum(p["series"] == metadata["asked"][0][0] for p in points))
    start, slope = metadata["line"] if metadata["what"] == "line" else (metadata["level"], 0.0)
    return str(sum(p["y"] > start + slope * p["x"] for p in points))


def _width() -> float:
    """Of a tick along x, in ticks along y, without a legend: distances are those of the picture."""
    return ((frame.WIDTH - 58) / (TICKS + 0.2)) / ((frame.HEIGHT - 64) / (TICKS + 0.2))


def _slope(points: Places) -> float:
    """Of the line of least squares."""
    xs, ys = _centred(points)
    return sum(x * y for x, y in zip(xs, ys, strict=True)) / sum(x * x for x in xs)


def _fit(points: Places) -> float:
    """The correlation of x and y; they must not all be alike."""
    xs, ys = _centred(points)
    squares = sum(x * x for x in xs) * sum(y * y for y in ys)
    return sum(x * y for x, y in zip(xs, ys, strict=True)) / math.sqrt(squares)


def _centred(points: Places) -> tuple[list[float], list[float]]:
    middle = [sum(values) / len(points) for values in zip(*points, strict=True)]
    return [x - middle[0] for x, _ in points], [y - middle[1] for _, y in points]


def _scattered(dice: Dice, n: int, allowed: Any) -> Places:
    """``n`` places apart from each other for which ``allowed(number, x, y)`` holds."""
    places: Places = []
    while len(places) < n:
        x, y = dice.uniform(0.25, TICKS - 0.1), dice.uniform(0.25, TICKS - 0.1)
        if allowed(len(places), x, y) and all(math.dist((x, y), p) > APART for p in places):
            places.append((x, y))
    return places


def _read(dice: Dice, difficulty: int, metadata: dict[str, Any]) -> Any:
    """Lettered points on the grain, one of which is asked for."""
    what, n = dice.pick(("x", "y", "y")), 3 + difficulty
    parts = (2, 2, 4, 5, 10)[difficulty - 1]
    taken = _scattered(dice, n, lambda number, x, y: True)
    places: Places = []
    while len(places) < n:
        x, y = (max(1, round(v * parts)) / parts for v in taken[len(places)])
        while any(math.dist((x, y), p) < 0.45 for p in places):
            x, y = (dice.between(1, TICKS * parts - 1) / parts for _ in range(2))
        places.append((x, y))
    names = dice.sample(LETTERS, n)
    metadata |= {"what": what, "asked": [["all", names[0]]]}
    tick = metadata["tick" if what == "y" else "x_tick"]
    metadata["tolerance"] = round(tick / 10, 6)
    answer = plain(places[0][what == "y"] * tick)
    return places, [("all", name) for name in names], answer


def _count(dice: Dice, difficulty: int, metadata: dict[str, Any]) -> Any:
    """The count is drawn, then so many points above the line or in the series, and others."""
    most = (5, 7, 9, 12, 15)[difficulty - 1]
    count, others = dice.between(0, most), dice.between(2, most)
    if metadata["what"] == "series":
        count = max(count, 1)
        metadata["series"] = list(dice.pick(SERIES))
        asked, *rest = dice.shuffled(metadata["series"])
        metadata["asked"] = [[asked, ""]]
        names = [(asked, "")] * count + [(rest[i % 2], "") for i in range(others)]
        return _scattered(dice, len(names), lambda number, x, y: True), names, str(count)
    level, slope = float(dice.between(1, TICKS - 1)), 0.0
    if metadata["what"] == "line":
        level = dice.uniform(1, TICKS - 1)
        slope = dice.pick((-1, 1)) * dice.uniform(0.15, 0.3 + 0.1 * difficulty)
        level -= slope * TICKS / 2
        metadata["line"] = [level * metadata["tick"], slope * metadata["tick"] / metadata["x_tick"]]
    else:
        metadata["level"] = level * metadata["tick"]

    def allowed(number: int, x: float, y: float) -> bool:
        over = y - level - slope * x
        return over > CLEAR if number < count else over < -CLEAR

    return _scattered(dice, count + others, allowed), [("all", "")] * (count + others), str(count)


def _trend(dice: Dice, difficulty: int, metadata: dict[str, Any]) -> Any:
    """Three series, one of which has the trend asked for; all are as tight as ``LEAST_FIT``."""
    what = dice.pick(tuple(SLOPES) if difficulty > 1 else tuple(SLOPES)[:2])
    metadata |= {"what": what, "series": list(dice.pick(SERIES))}
    order, n = dice.shuffled(metadata["series"]), 5 + difficulty // 2
    places: Places = []
    for factor in SLOPES[what]:
        while True:
            row = _cloud(dice, n, factor * dice.uniform(0.75, 0.95), difficulty, places)
            slope = _slope(row)
            # Of three that rise the steepest must lead by a third.
            steady = what != "rises most steeply" or abs(slope / factor - 0.85) < 0.15
            if slope * factor > 0 and steady and abs(_fit(row)) > LEAST_FIT[difficulty - 1]:
                break
        places += row
    return places, [(series, "") for series in order for _ in range(n)], order[0]


def _cloud(dice: Dice, n: int, slope: float, difficulty: int, others: Places) -> Places:
    """``n`` points about a line through the plot, apart from each other and ``others``."""
    room = (TICKS - 0.4 - abs(slope) * 4.4) / 2
    centre = TICKS / 2 + dice.uniform(-1, 1) * max(room, 0.0)
    spread, row = 0.15 + 0.07 * difficulty, []
    while len(row) < n:
        x = 0.3 + 4.4 * (len(row) + dice.uniform(0.1, 0.9)) / n
        y = centre + slope * (x - TICKS / 2) + dice.uniform(-spread, spread)
        y = min(max(y, 0.15), TICKS - 0.05)
        if all(math.dist((x, y), p) > APART for p in others + row):
            row.append((x, y))
    return row


def _nearest(dice: Dice, difficulty: int, metadata: dict[str, Any]) -> Any:
    """The nearest lettered point is nearer by a part that shrinks with difficulty."""
    n, lead = 4 + difficulty, (1.6, 1.5, 1.4, 1.3, 1.2)[difficulty - 1]
    while True:
        cross, *places = _spaced(dice, n + 1)
        order = sorted(places, key=lambda p: _distance(cross, p))
        if _distance(cross, order[1]) > lead * _distance(cross, order[0]):
            break
    names = dice.sample(LETTERS, n)
    metadata["cross"] = [cross[0] * metadata["x_tick"], cross[1] * metadata["tick"]]
    return places, [("all", name) for name in names], names[places.index(order[0])]


def _spaced(dice: Dice, n: int) -> Places:
    """As ``_scattered``, with room for a letter beside each point."""
    places: Places = []
    while len(places) < n:
        new = (dice.uniform(0.3, TICKS - 0.3), dice.uniform(0.3, TICKS - 0.4))
        if all(_distance(new, p) > 0.6 for p in places):
            places.append(new)
    return places


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return math.hypot((a[0] - b[0]) * _width(), a[1] - b[1])


def _draw(dice: Dice, chart: dict[str, Any], difficulty: int) -> Any:
    several = len(chart["series"]) > 1
    area = frame.start(dice, difficulty, chart["tick"], several)
    canvas, wide = area.canvas, (area.right - area.left) / (TICKS + 0.2)
    for number in range(1, TICKS + 1):
        x = area.left + number * wide
        if difficulty < 4:
            canvas.line(
                [(x, area.bottom), (x, area.bottom - 5 * area.height)], (215, 219, 224), 0.5
            )
        canvas.line([(x, area.bottom), (x, area.bottom + 4)], area.ink, 1)
        canvas.text((x, area.bottom + 13), plain(number * chart["x_tick"]), area.size, area.ink)
    canvas.text((area.right, area.bottom - 7), "x", area.size, area.ink)
    canvas.text((area.left + 9, area.bottom - 5.2 * area.height), "y", area.size, area.ink)

    def place(x: float, y: float) -> tuple[float, float]:
        across = area.left + x / chart["x_tick"] * wide
        return across, area.bottom - y / chart["tick"] * area.height

    colours, radius = dice.sample(PALETTE, len(chart["series"])), dice.uniform(2.6, 3.4)
    _draw_marks(canvas, chart, place, area.ink)
    for point in chart["points"]:
        at, i = place(point["x"], point["y"]), chart["series"].index(point["series"])
        _mark(canvas, i, at, radius, colours[i])
        if point["name"]:
            canvas.text((at[0] + 8, at[1] - 7), point["name"], area.size, area.ink)
    if several:
        frame.legend(
            area, chart["series"], lambda i, x, y: _mark(canvas, i, (x, y), 4.5, colours[i])
        )
    return canvas.finish(dice, frame.GRAIN[difficulty - 1])


def _draw_marks(canvas: Canvas, chart: dict[str, Any], place: Any, ink: Colour) -> None:
    """The dashed line and the cross, where they are asked about."""
    if chart["what"] == "line":
        start, slope = chart["line"]
        # As much of the line as lies in the plot.
        last = TICKS * chart["x_tick"]
        inside = [i / 200 * last for i in range(201)]
        inside = [x for x in inside if 0 <= start + slope * x <= TICKS * chart["tick"]]
        ends = [place(x, start + slope * x) for x in (inside[0], inside[-1])]
        canvas.dashed(ends[0], ends[1], ink, 1.3)
    if chart["cross"]:
        x, y = place(*chart["cross"])
        for turn in (-1, 1):
            canvas.line([(x - 5, y - 5 * turn), (x + 5, y + 5 * turn)], (200, 30, 40), 2)


def _mark(canvas: Canvas, i: int, at: tuple[float, float], radius: float, colour: Colour) -> None:
    """A disc, a square or a triangle: series differ in form and colour."""
    x, y = at
    if i == 0:
        canvas.disc(at, radius, colour)
    elif i == 1:
        canvas.box([x - radius, y - radius, x + radius, y + radius], colour)
    else:
        top, side = y - radius * 1.3, radius * 1.2
        canvas.polygon([(x, top), (x - side, y + radius), (x + side, y + radius)], colour)
