"""Resistor networks: the schematic shows every value, the question asks what they come to.

    resistance  of the whole network between its ends
    current     that the battery drives through it

Networks nest series and parallel parts, deeper with difficulty. The generator composes them by the
two rules; ``reference_answer`` knows neither and solves Kirchhoff's equations on the netlist.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice

UNITS = "Resistors are marked in ohms."
WIDTH = 364
LEAF_WIDTH, LEAF_HEIGHT = 58.0, 40.0
RAIL = 10.0
Part = dict[str, Any]
"""``{"kind": "resistor", "ohms"}`` or ``{"kind": "series" | "parallel", "parts"}``."""

TEMPLATES = {
    "resistance": (
        "What is the equivalent resistance between the two ends, in ohms?",
        "Find the total resistance of the network in ohms.",
        "How many ohms does the battery see?",
    ),
    "current": (
        "What current does the battery deliver, in amperes?",
        "Find the current through the battery in amperes.",
    ),
}


class CircuitsTask(DrawnTask):
    """The task family "circuits"."""

    name: str = "circuits"
    kinds: ClassVar[tuple[str, ...]] = ("resistance", "current")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        count = dice.between(2, 3) if difficulty == 1 else dice.between(difficulty, difficulty + 2)
        outer = dice.pick(("series", "parallel"))
        # Most networks come to a fraction; those of one decimal are few enough to wait for.
        while True:
            network = _network(dice, count, outer, difficulty)
            ohms = _composed(network)
            if (ohms * 10).denominator == 1 and _extent(network)[0] <= WIDTH - 70:
                break
        tenths = dice.between(2, 60) if difficulty > 2 else dice.between(1, 12) * 10
        volts = ohms * tenths / 10
        answer = ohms if kind == "resistance" else volts / ohms
        metadata = {
            "kind": kind,
            "volts": float(volts),
            "resistors": _netlist(network),
            "tolerance": 0.05,
        }
        picture = _draw(dice, network, plain(float(volts)), difficulty)
        return Drawn(
            picture, f"{dice.pick(TEMPLATES[kind])} {UNITS}", plain(float(answer)), metadata
        )

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Nodal analysis of the netlist, node 1 at the battery's voltage and node 0 at zero."""
        import numpy as np

        wires = metadata["resistors"]
        size = 1 + max(max(wire["nodes"]) for wire in wires)
        conductance = np.zeros((size, size))
        for wire in wires:
            a, b = wire["nodes"]
            for here, there in ((a, b), (b, a)):
                conductance[here, here] += 1 / wire["ohms"]
                conductance[here, there] -= 1 / wire["ohms"]
        volts = np.zeros(size)
        volts[1] = metadata["volts"]
        if size > 2:
            volts[2:] = np.linalg.solve(conductance[2:, 2:], -conductance[2:, 1] * volts[1])
        current = float(conductance[1] @ volts)
        return plain(current if metadata["kind"] == "current" else metadata["volts"] / current)


def _network(dice: Dice, count: int, form: str, difficulty: int) -> Part:
    """``count`` resistors; the parts of a series are parallel or single, and the reverse."""
    if count == 1:
        pool = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30, 40, 60)
        return {"kind": "resistor", "ohms": dice.pick(pool[: 9 + difficulty])}
    n = count if count <= 3 and difficulty == 1 else dice.between(2, min(3, count))
    sizes = [1] * n
    for _ in range(count - n):
        sizes[dice.below(n)] += 1
    inner = "parallel" if form == "series" else "series"
    return {"kind": form, "parts": [_network(dice, size, inner, difficulty) for size in sizes]}


def _composed(part: Part) -> Fraction:
    if part["kind"] == "resistor":
        return Fraction(part["ohms"])
    inner = [_composed(p) for p in part["parts"]]
    if part["kind"] == "series":
        return sum(inner, Fraction(0))
    return 1 / sum((1 / r for r in inner), Fraction(0))


def _netlist(network: Part) -> list[dict[str, Any]]:
    wires: list[dict[str, Any]] = []
    fresh = [2]

    def connect(part: Part, start: int, end: int) -> None:
        if part["kind"] == "resistor":
            wires.append({"nodes": [start, end], "ohms": part["ohms"]})
        elif part["kind"] == "parallel":
            for branch in part["parts"]:
                connect(branch, start, end)
        else:
            for i, piece in enumerate(part["parts"]):
                last = i == len(part["parts"]) - 1
                fresh[0] += not last
                after = end if last else fresh[0] - 1
                connect(piece, start, after)
                start = after

    connect(network, 1, 0)
    return wires


def _extent(part: Part) -> tuple[float, float]:
    """Width and height of a part in pixels."""
    if part["kind"] == "resistor":
        return LEAF_WIDTH, LEAF_HEIGHT
    widths, heights = zip(*(_extent(p) for p in part["parts"]), strict=True)
    if part["kind"] == "series":
        return sum(widths), max(heights)
    return max(widths) + 2 * RAIL, sum(heights)


def _draw(dice: Dice, network: Part, volts: str, difficulty: int) -> Any:
    wide, high = _extent(network)
    height = int(high) + 104
    canvas = Canvas(WIDTH, height, dice.pick(PAPERS))
    ink = dice.pick((*INKS, PALETTE[0]))
    pen = _Pen(canvas, ink, dice.uniform(1.1, 2.2), (14, 13, 12, 11, 10)[difficulty - 1])
    pen.zigzag = dice.below(2) == 1
    left, right, y = (WIDTH - wide) / 2 - 20, (WIDTH + wide) / 2 + 20, high / 2 + 18
    base, middle = height - 36.0, WIDTH / 2
    pen.wire((left, y), (left + 20, y))
    pen.wire((right - 20, y), (right, y))
    _draw_part(pen, network, left + 20, y, wide)
    for x, towards in ((left, middle - 4), (right, middle + 4)):
        pen.wire((x, y), (x, base), (towards, base))
    canvas.line([(middle - 4, base - 14), (middle - 4, base + 14)], ink, pen.width)
    canvas.line([(middle + 4, base - 7), (middle + 4, base + 7)], ink, pen.width * 2.2)
    canvas.text((middle, base + 25), f"{volts} V", pen.size, ink)
    return canvas.finish(dice, (0, 0, 3, 6, 10)[difficulty - 1])


class _Pen:
    """How a schematic is drawn: one ink, one width, zigzag or box resistors."""

    zigzag = False

    def __init__(self, canvas: Canvas, ink: Colour, width: float, size: float) -> None:
        self.canvas, self.ink, self.width, self.size = canvas, ink, width, size

    def wire(self, *points: tuple[float, float]) -> None:
        self.canvas.line(points, self.ink, self.width)

    def resistor(self, x: float, y: float, width: float, ohms: int) -> None:
        """Across ``width`` from (x, y), the body in the middle."""
        a, b = x + width / 2 - 17, x + width / 2 + 17
        self.wire((x, y), (a, y))
        self.wire((b, y), (x + width, y))
        if self.zigzag:
            teeth = [(a + 34 * (i + 0.5) / 6, y + (6 if i % 2 else -6)) for i in range(6)]
            self.wire((a, y), *teeth, (b, y))
        else:
            self.wire((a, y - 6), (b, y - 6), (b, y + 6), (a, y + 6), (a, y - 6))
        self.canvas.text((x + width / 2, y - 15), str(ohms), self.size, self.ink)


def _draw_part(pen: _Pen, part: Part, x: float, y: float, width: float) -> None:
    """From (x, y) to (x + width, y); what is narrower is widened by its wires."""
    if part["kind"] == "resistor":
        pen.resistor(x, y, width, part["ohms"])
        return
    parts, extents = part["parts"], [_extent(p) for p in part["parts"]]
    if part["kind"] == "series":
        gap = (width - sum(w for w, _ in extents)) / len(parts)
        for piece, (wide, _) in zip(parts, extents, strict=True):
            _draw_part(pen, piece, x, y, wide + gap)
            x += wide + gap
        return
    top = y - sum(h for _, h in extents) / 2
    rows = []
    for branch, (_, high) in zip(parts, extents, strict=True):
        rows.append(top + high / 2)
        _draw_part(pen, branch, x + RAIL, top + high / 2, width - 2 * RAIL)
        top += high
    for end, rail in ((x, x + RAIL), (x + width, x + width - RAIL)):
        pen.wire((end, y), (rail, y))
        pen.wire((rail, min(rows)), (rail, max(rows)))
        for dot in (*rows[1:-1], y):
            pen.canvas.disc((rail, dot), 2.4, pen.ink)
