"""Box plots: the box from the lower to the upper quartile, the median across it, whiskers to the
furthest values within 1.5 interquartile ranges of the box, outliers as dots beyond.
"""

from __future__ import annotations

from typing import Any

from foveal.tasks.base import Drawn, plain
from foveal.tasks.canvas import PALETTE, PAPERS, Colour
from foveal.tasks.charts import frame
from foveal.tasks.charts.frame import CATEGORIES, TICKS, UNITS
from foveal.tasks.dice import Dice

PARTS = (4, 4, 5, 5, 10)
"""Parts of a tick that values are multiples of; outliers lie anywhere."""
FENCE = 1.5
READINGS = {"median": "median", "q1": "lower quartile", "q3": "upper quartile"}
TEMPLATES = {
    "read": ("What is the {what} of {a}?", "Read the {what} of {a} off the box plot."),
    "difference": (
        "How much larger is the median of {a} than that of {b}?",
        "What is the median of {a} minus the median of {b}?",
    ),
    "iqr": (
        "How large is the interquartile range of {a}?",
        "What is the interquartile range of {a}?",
    ),
    "range": (
        "How far apart are the ends of the two whiskers of {a}?",
        "What is the range of {a}, from the end of one whisker to the end of the other?",
    ),
    "rank": ("Which group has the {rank} {what}?", "Name the group with the {rank} {what}."),
    "count": ("How many outliers does {a} have?", "Count the outliers (dots) of {a}."),
}
SPREADS = {"iqr": "interquartile range", "range": "range"}
KINDS = ("read", "difference", "spread", "rank", "count")


def draw(dice: Dice, difficulty: int, form: str) -> Drawn:
    kind = dice.pick(KINDS)
    what = dice.pick(tuple({"read": READINGS, "spread": SPREADS}.get(kind, ("median",))))
    if kind == "rank":
        what = dice.pick(("median", "iqr"))
    names = list(dice.pick(CATEGORIES)[: 3 + difficulty // 2])
    tick, parts = dice.pick(UNITS), PARTS[difficulty - 1]
    asked, rank = dice.sample(names, 2), dice.pick(("largest", "smallest"))
    # The number of outliers is drawn first; other boxes have some as well. Where ranks are asked
    # for there are none: boxes that leave room for outliers are too much alike in height.
    most = 0 if difficulty == 1 or kind == "rank" else 2
    dots = [dice.between(0, most) for _ in names]
    if kind == "count":
        dots[names.index(asked[0])] = dice.between(0, 3 + difficulty // 2)
    boxes = [_box(dice, parts, n) for n in dots]
    while kind in ("rank", "difference") and not _is_clear(boxes, what, rank, parts):
        boxes = [_box(dice, parts, n) for n in dots]
    for name, box in zip(names, boxes, strict=True):
        box |= {key: box[key] * tick / parts for key in ("low", "q1", "median", "q3", "high")}
        box["outliers"] = [round(dot * tick / parts, 3) for dot in box["outliers"]]
        box["name"] = name
    if kind == "difference":
        asked.sort(key=lambda name: -boxes[names.index(name)]["median"])
    metadata = {
        "kind": kind, "form": form, "what": what, "rank": rank if kind == "rank" else "",
        "asked": [["all", name] for name in asked[: 1 + (kind == "difference")]],
        "categories": names, "series": ["all"], "boxes": boxes, "tick": tick,
    }  # fmt: skip
    readings = {"read": 1, "difference": 2, "spread": 2}.get(kind, 0)
    metadata["tolerance"] = round(tick / 10 * readings, 6)
    named = {**READINGS, **SPREADS}[what]
    pool = TEMPLATES[what if kind == "spread" else kind]
    question = dice.pick(pool).format(a=asked[0], b=asked[1], what=named, rank=rank)
    answer = _answer(boxes, names, metadata, asked)
    return Drawn(_draw(dice, metadata, difficulty), question, answer, metadata)


def _answer(
    boxes: list[dict[str, Any]], names: list[str], metadata: dict[str, Any], asked: list[str]
) -> str:
    first, second = (boxes[names.index(name)] for name in asked)
    made = {
        "read": lambda: plain(first[metadata["what"]]),
        "difference": lambda: plain(first["median"] - second["median"]),
        "spread": lambda: plain(_size(first, metadata["what"])),
        "count": lambda: str(len(first["outliers"])),
        "rank": lambda: (max if metadata["rank"] == "largest" else min)(
            boxes, key=lambda box: _size(box, metadata["what"])
        )["name"],
    }
    return made[metadata["kind"]]()


def solve(metadata: dict[str, Any]) -> str:
    """From the five numbers and the dots of each box; dots within the fences are no outliers."""
    table = {box["name"]: box for box in metadata["boxes"]}
    box = table[metadata["asked"][0][1]]
    if metadata["kind"] == "count":
        reach = FENCE * (box["q3"] - box["q1"])
        beyond = [d for d in box["outliers"] if d > box["q3"] + reach or d < box["q1"] - reach]
        return str(len(beyond))
    if metadata["kind"] == "rank":
        ordered = sorted(table, key=lambda name: _size(table[name], metadata["what"]))
        return ordered[-1 if metadata["rank"] == "largest" else 0]
    if metadata["kind"] == "difference":
        return plain(box["median"] - table[metadata["asked"][1][1]]["median"])
    return plain(_size(box, metadata["what"]))


def _size(box: dict[str, Any], what: str) -> float:
    if what == "iqr":
        return box["q3"] - box["q1"]
    return box["high"] - box["low"] if what == "range" else box[what]


def _is_clear(boxes: list[dict[str, Any]], what: str, rank: str, parts: int) -> bool:
    """No two groups are equal, and the one asked for leads the next by a fifth of a tick."""
    sizes = sorted(_size(box, what) for box in boxes)
    lead = sizes[-1] - sizes[-2] if rank == "largest" else sizes[1] - sizes[0]
    return len(set(sizes)) == len(sizes) and lead >= parts / 5


def _box(dice: Dice, parts: int, dots: int) -> dict[str, Any]:
    """Five numbers in levels of the grain and ``dots`` outliers that do not touch."""
    top = TICKS * parts
    while True:
        q1 = dice.between(top // 8, 3 * top // 4)
        wide = dice.between(max(2, top // 12), top // (7 if dots else 3))
        q3 = q1 + wide
        if q3 > top * 0.92:
            continue
        low = q1 - dice.between(1, int(FENCE * wide))
        high = q3 + dice.between(1, int(FENCE * wide))
        # The median's line must not lie on the box's edge.
        median = dice.between(q1 + 1, q3 - 1)
        outliers = _outliers(dice, (q1 - FENCE * wide, q3 + FENCE * wide), top, dots)
        if low > 0 and high <= top and len(outliers) == dots:
            break
    return {"low": low, "q1": q1, "median": median, "q3": q3, "high": high, "outliers": outliers}


def _outliers(dice: Dice, fences: tuple[float, float], top: int, dots: int) -> list[float]:
    """Apart from the fences and each other; fewer than ``dots`` if there is no room."""
    apart = top * 0.04
    found: list[float] = []
    for _ in range(12 * dots):
        at = dice.uniform(apart / 2, top)
        outside = at < fences[0] - apart / 2 or at > fences[1] + apart / 2
        if len(found) < dots and outside and all(abs(at - other) > apart for other in found):
            found.append(at)
    return found


def _draw(dice: Dice, chart: dict[str, Any], difficulty: int) -> Any:
    area = frame.start(dice, difficulty, chart["tick"], False)
    step = frame.name_categories(area, chart["categories"])
    unit, one = area.height / chart["tick"], dice.below(2)
    colours = dice.sample(PALETTE, len(chart["categories"]))
    half, paper = step * dice.uniform(0.2, 0.32), dice.pick(PAPERS)
    for i, box in enumerate(chart["boxes"]):
        x, colour = area.left + (i + 0.5) * step, colours[0 if one else i]
        _draw_box(area, box, (x, half, unit), (_pale(colour, paper), colour))
    return area.canvas.finish(dice, frame.GRAIN[difficulty - 1])


def _draw_box(
    area: frame.Frame,
    box: dict[str, Any],
    place: tuple[float, float, float],
    colours: tuple[Colour, Colour],
) -> None:
    """``place`` is the middle, half the width and the pixels of one unit."""
    x, half, unit = place
    y = {key: area.bottom - box[key] * unit for key in ("low", "q1", "median", "q3", "high")}
    canvas = area.canvas
    for inner, end in (("q1", "low"), ("q3", "high")):
        canvas.line([(x, y[inner]), (x, y[end])], area.ink, 1)
        canvas.line([(x - half / 2, y[end]), (x + half / 2, y[end])], area.ink, 1)
    canvas.box([x - half, y["q3"], x + half, y["q1"]], colours[0], area.ink)
    canvas.line([(x - half, y["median"]), (x + half, y["median"])], area.ink, 2)
    for dot in box["outliers"]:
        canvas.disc((x, area.bottom - dot * unit), 2.3, colours[1], area.ink, 0.5)


def _pale(colour: Colour, paper: Colour) -> Colour:
    red, green, blue = (round(c * 0.45 + p * 0.55) for c, p in zip(colour, paper, strict=True))
    return red, green, blue
