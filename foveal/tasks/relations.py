"""Scattered shapes: which side, which one is nearest, furthest, largest, and in what order.

    side      on which side of one shape another one lies
    nearest   the shape nearest to another one
    furthest  the leftmost, rightmost, highest or lowest shape
    colour    the colour of the largest or smallest shape of a form
    order     how many shapes lie further left, right, up or down than one

Every shape is named by colour and form, and no two share both. Each question has one clear answer:
distances and sizes that decide it differ by a margin, which shrinks with difficulty while shapes
multiply, shrink, and get faint lines behind them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask
from foveal.tasks.canvas import INKS, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice

SIZE = 280
COLOURS: dict[str, Colour] = {
    "red": (210, 45, 45),
    "blue": (45, 95, 215),
    "green": (40, 155, 65),
    "yellow": (235, 200, 45),
    "purple": (140, 70, 185),
    "orange": (240, 130, 30),
    "grey": (130, 135, 142),
}
FORMS = ("circle", "square", "triangle", "star", "cross", "diamond")
COUNTS = (5, 6, 8, 10, 13)
MARGINS = (0.5, 0.35, 0.25, 0.18, 0.12)
"""How much larger or further the runner-up must be, as a part."""
TOWARDS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
ENDS = {"left": "furthest to the left", "right": "furthest to the right"}
ENDS |= {"above": "highest up", "below": "lowest down"}
ORDER = {"left": "further left than", "right": "further right than"}
ORDER |= {"above": "higher than", "below": "lower than"}

TEMPLATES = {
    "side": (
        "On which side of the {a} is the {b}: left, right, above or below?",
        "Seen from the {a}, where is the {b}: left, right, above or below?",
    ),
    "nearest": ("Which shape is nearest to the {a}? {name}", "What is closest to the {a}? {name}"),
    "furthest": ("Which shape is {end}? {name}", "Name the shape that is {end}. {name}"),
    "colour": (
        "What colour is the {size} {form}?",
        "Which colour does the {size} {form} have?",
    ),
    "order": (
        "How many shapes have their middle {order} that of the {a}?",
        "Count the shapes whose middle is {order} the middle of the {a}.",
    ),
}
NAME = "Answer with colour and form, like red star."
Shape = dict[str, Any]


class RelationsTask(DrawnTask):
    """The task family "relations"."""

    name: str = "relations"
    kinds: ClassVar[tuple[str, ...]] = tuple(TEMPLATES)

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind, margin = dice.pick(self.kinds), MARGINS[difficulty - 1]
        towards = dice.pick(list(TOWARDS))
        rank = dice.below(COUNTS[difficulty - 1])
        found = None
        while found is None:
            shapes = _scatter(dice, difficulty, kind)
            found = _ask(dice, shapes, kind, (towards, rank, margin))
        asked, answer = found
        metadata = {"kind": kind, "shapes": shapes, "towards": towards, **asked, "tolerance": 0.0}
        question = dice.pick(TEMPLATES[kind]).format(
            a=_name(shapes[asked["a"]]),
            b=_name(shapes[asked["b"]]),
            name=NAME,
            end=ENDS[towards],
            order=ORDER[towards],
            size=asked["size"],
            form=shapes[asked["a"]]["form"],
        )
        return Drawn(_draw(dice, shapes, difficulty), question, answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From the places and sizes of all shapes."""
        shapes, kind = metadata["shapes"], metadata["kind"]
        one, (u, v) = shapes[metadata["a"]], TOWARDS[metadata["towards"]]
        if kind == "side":
            other = shapes[metadata["b"]]
            dx, dy = other["x"] - one["x"], other["y"] - one["y"]
            return max(TOWARDS, key=lambda side: TOWARDS[side][0] * dx + TOWARDS[side][1] * dy)
        if kind == "nearest":
            others = [shape for shape in shapes if shape is not one]
            return _name(
                min(others, key=lambda s: math.hypot(s["x"] - one["x"], s["y"] - one["y"]))
            )
        if kind == "furthest":
            return _name(max(shapes, key=lambda s: s["x"] * u + s["y"] * v))
        if kind == "order":
            along = [s["x"] * u + s["y"] * v for s in shapes]
            return str(sum(value > along[metadata["a"]] for value in along))
        same = sorted((s["radius"], s["colour"]) for s in shapes if s["form"] == one["form"])
        return same[-1 if metadata["size"] == "largest" else 0][1]


def _name(shape: Shape) -> str:
    return f"{shape['colour']} {shape['form']}"


def _scatter(dice: Dice, difficulty: int, kind: str) -> list[Shape]:
    """Shapes that do not touch, no two alike; of one form at least three for their sizes."""
    count = COUNTS[difficulty - 1]
    looks = [(colour, form) for colour in COLOURS for form in FORMS]
    chosen = dice.sample(looks, count)
    if kind == "colour":
        form = dice.pick(FORMS)
        extra = [(colour, form) for colour in dice.sample(list(COLOURS), 3 + difficulty // 2)]
        chosen = (extra + [look for look in chosen if look[1] != form])[:count]
    base = (19, 18, 16, 14, 12)[difficulty - 1]
    shapes: list[Shape] = []
    for colour, form in chosen:
        while True:
            radius = base * dice.uniform(0.6, 1.5)
            x, y = (dice.uniform(radius + 4, SIZE - radius - 4) for _ in range(2))
            if all(math.hypot(x - s["x"], y - s["y"]) > radius + s["radius"] + 5 for s in shapes):
                break
        look = {"colour": colour, "form": form, "turn": round(dice.uniform(-20, 20), 1)}
        shapes.append({**look, "x": round(x, 2), "y": round(y, 2), "radius": round(radius, 2)})
    return dice.shuffled(shapes)


def _ask(
    dice: Dice, shapes: list[Shape], kind: str, wanted: tuple[str, int, float]
) -> tuple[dict[str, Any], str] | None:
    """What is asked of these shapes, and the answer; None unless one answer is clear."""
    towards, rank, margin = wanted
    u, v = TOWARDS[towards]
    order = sorted(range(len(shapes)), key=lambda i: -(shapes[i]["x"] * u + shapes[i]["y"] * v))
    along = [shapes[i]["x"] * u + shapes[i]["y"] * v for i in order]
    facts = {"a": 0, "b": 0, "size": ""}
    if kind == "side":
        return _ask_side(dice, shapes, (u, v), towards)
    if kind == "nearest":
        a = dice.below(len(shapes))
        others = sorted((_distance(shapes[a], s), i) for i, s in enumerate(shapes) if i != a)
        if others[1][0] < others[0][0] * (1 + margin):
            return None
        return {**facts, "a": a}, _name(shapes[others[0][1]])
    if kind == "furthest":
        clear = along[0] - along[1] >= 60 * margin
        return (facts, _name(shapes[order[0]])) if clear else None
    if kind == "order":
        gaps = [abs(along[i] - along[rank]) for i in range(len(along)) if i != rank]
        return ({**facts, "a": order[rank]}, str(rank)) if min(gaps) >= 24 * margin else None
    return _ask_colour(dice, shapes, margin)


def _distance(a: Shape, b: Shape) -> float:
    return math.dist((a["x"], a["y"]), (b["x"], b["y"]))


def _ask_side(
    dice: Dice, shapes: list[Shape], way: tuple[int, int], towards: str
) -> tuple[dict[str, Any], str] | None:
    """A pair that lies along ``way``, by twice as much as across it."""
    pairs = []
    for a, one in enumerate(shapes):
        for b, other in enumerate(shapes):
            dx, dy = other["x"] - one["x"], other["y"] - one["y"]
            along, across = dx * way[0] + dy * way[1], abs(dx * way[1]) + abs(dy * way[0])
            if along > max(2 * across, 20):
                pairs.append((a, b))
    if not pairs:
        return None
    a, b = dice.pick(pairs)
    return {"a": a, "b": b, "size": ""}, towards


def _ask_colour(
    dice: Dice, shapes: list[Shape], margin: float
) -> tuple[dict[str, Any], str] | None:
    forms = [form for form in FORMS if sum(s["form"] == form for s in shapes) > 2]
    if not forms:
        return None
    form, size = dice.pick(forms), dice.pick(("largest", "smallest"))
    same = [i for i, s in enumerate(shapes) if s["form"] == form]
    same.sort(key=lambda i: shapes[i]["radius"], reverse=size == "largest")
    radii = sorted(shapes[i]["radius"] for i in same[:2])
    if radii[1] < radii[0] * (1 + margin / 2):
        return None
    # The shape asked about is named by its form alone; another one of it stands in.
    return {"a": same[-1], "b": 0, "size": size}, shapes[same[0]]["colour"]


def _draw(dice: Dice, shapes: list[Shape], difficulty: int) -> Any:
    canvas, ink = Canvas(SIZE, SIZE, dice.pick(PAPERS)), dice.pick(INKS)
    for _ in range(max(0, difficulty - 2) * 3):
        ends = [(dice.uniform(0, SIZE), dice.uniform(0, SIZE)) for _ in range(2)]
        canvas.line(ends, (200, 204, 210), dice.uniform(0.6, 1.6))
    edge = dice.pick((None, ink))
    for shape in shapes:
        _draw_shape(canvas, shape, edge)
    return canvas.finish(dice, (0, 2, 4, 7, 10)[difficulty - 1])


def _draw_shape(canvas: Canvas, shape: Shape, edge: Colour | None) -> None:
    x, y, radius, colour = shape["x"], shape["y"], shape["radius"], COLOURS[shape["colour"]]
    if shape["form"] == "circle":
        canvas.disc((x, y), radius * 0.9, colour, edge)
        return
    # Corners as (degrees from the top, part of the radius).
    corners = {
        "square": [(45 + 90 * i, 1.0) for i in range(4)],
        "triangle": [(120 * i, 1.0) for i in range(3)],
        "star": [(36 * i, 0.42 if i % 2 else 1.0) for i in range(10)],
        "diamond": [(90 * i, 0.62 if i % 2 else 1.0) for i in range(4)],
        "cross": [
            (90 * i + off, part) for i in range(4) for off, part in ((-17, 1), (17, 1), (45, 0.42))
        ],
    }[shape["form"]]
    points = []
    for degrees, part in corners:
        turn = math.radians(degrees + shape["turn"])
        points.append((x + radius * part * math.sin(turn), y - radius * part * math.cos(turn)))
    canvas.polygon(points, colour, edge)
