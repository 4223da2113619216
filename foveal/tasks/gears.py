"""Gear trains: each gear has its number of teeth, the driver its speed.

    turns      full turns of one gear for so many of the driver
    rpm        the speed of one gear
    teeth      of one gear, from its speed
    direction  the letters of all gears that turn clockwise

With difficulty there are more gears, some that lead nowhere, two gears of a shaft (the smaller
one in front), smaller text and grain. Teeth are drawn and mesh. ``reference_answer`` walks from
gear to gear; the generator multiplies the ratios along the way.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice

WIDTH, HEIGHT = 440, 340
CAPTION = 30
LETTERS = "ABCDEFGH"
TEETH = (12, 14, 15, 16, 18, 20, 21, 24, 25, 27, 28, 30, 32, 35, 36, 40, 42, 45)
Shaft = dict[str, Any]
"""``letter``; ``teeth`` of its gears, the first one meshes with the shaft before; ``on``, the
index of that shaft (-1 for the driver), and ``front``: whether that one's second gear meshes."""

TEMPLATES = {
    "turns": (
        "Gear {a} makes {n} full turns. How many turns does gear {b} make?",
        "How many times does gear {b} turn while gear {a} turns {n} times?",
    ),
    "rpm": (
        "How fast does gear {b} turn, in rpm?",
        "Find the speed of gear {b} in revolutions per minute.",
    ),
    "teeth": (
        "How many teeth does the gear with the question mark have?",
        "Find the number of teeth that is marked with a question mark.",
    ),
    "direction": (
        "Which gears turn clockwise? Give their letters in alphabetical order, such as ACD.",
        "Name all gears that turn clockwise, as letters in alphabetical order, such as ACD.",
    ),
}
COMPOUND = " Gears on one shaft share its letter and turn together."


class GearsTask(DrawnTask):
    """The task family "gears"."""

    name: str = "gears"
    kinds: ClassVar[tuple[str, ...]] = ("turns", "rpm", "teeth", "direction")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        while True:
            shafts = _train(dice, difficulty)
            asked = dice.pick([i for i in range(2, len(shafts)) if _steps(shafts, i) >= 2])
            ratio = _ratio(shafts, asked)
            places = _placed(dice, shafts)
            if ratio.numerator <= 60 and ratio.denominator <= 60 and places is not None:
                break
        times = max(1, -(-dice.between(10, 400) // ratio.denominator))
        if kind == "turns":
            times = dice.between(1, 6)
        driver, speed = ratio.denominator * times, ratio.numerator * times
        clockwise = dice.below(2) == 1
        answer = {
            "turns": str(speed),
            "rpm": str(speed),
            "teeth": str(shafts[asked]["teeth"][0]),
            "direction": _turning(shafts, clockwise),
        }[kind]
        shown = [dict(shaft, teeth=list(shaft["teeth"])) for shaft in shafts]
        if kind == "teeth":
            shown[asked]["teeth"][0] = 0
        speeds = [driver if kind == "rpm" else 0, 0]
        if kind == "teeth":
            speeds = [driver, speed]
        look = _Look(dice, difficulty)
        picture = _draw(look, dice, shown, places, clockwise, _captions(shafts, asked, speeds))
        facts = {"shafts": shown, "asked": asked, "driver": driver, "speed": speed}
        if kind != "teeth":
            facts.pop("speed")
        metadata = {"kind": kind, **facts, "clockwise": clockwise, "tolerance": 0.0}
        names = {"a": shafts[0]["letter"], "b": shafts[asked]["letter"], "n": driver}
        question = dice.pick(TEMPLATES[kind]).format(**names)
        if any(len(shaft["teeth"]) > 1 for shaft in shafts):
            question += COMPOUND
        return Drawn(picture, question, answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Speeds, clockwise positive, from shaft to shaft."""
        shafts, asked = metadata["shafts"], metadata["asked"]
        first = Fraction(metadata["driver"] if metadata["clockwise"] else -metadata["driver"])
        speeds = [first]
        for shaft in shafts[1:]:
            before = shafts[shaft["on"]]
            drives = before["teeth"][1 if shaft["front"] else 0]
            # The gear without a number counts as one tooth; only its direction is known so far.
            speeds.append(-speeds[shaft["on"]] * Fraction(drives or 1, shaft["teeth"][0] or 1))
        if metadata["kind"] == "direction":
            pairs = zip(shafts, speeds, strict=True)
            return "".join(sorted(shaft["letter"] for shaft, speed in pairs if speed > 0))
        if metadata["kind"] == "teeth":
            return str(abs(speeds[asked]) / metadata["speed"])
        return str(abs(speeds[asked]))


def _train(dice: Dice, difficulty: int) -> list[Shaft]:
    """The driver first; every other shaft on an earlier one."""
    count = 3 + difficulty // 2 + dice.below(2)
    letters = dice.shuffled(LETTERS[:count])
    smallest = 2 if difficulty > 3 else 0
    pool = TEETH[smallest : 10 + 2 * difficulty]
    shafts: list[Shaft] = []
    for i in range(count):
        on = i - 1
        if i > 2 and difficulty > 2 and dice.below(4) == 0:
            on = dice.below(i - 1)
        teeth = [dice.pick(pool)]
        if 0 < i < count - 1 and difficulty > 2 and dice.below(5) < difficulty - 2:
            small = [z for z in pool if 2 * z <= teeth[0]]
            teeth += [dice.pick(small)] if small else []
        front = i > 0 and len(shafts[on]["teeth"]) > 1
        shafts.append({"letter": letters[i], "teeth": teeth, "on": on, "front": front})
    return shafts


def _steps(shafts: list[Shaft], i: int) -> int:
    return 0 if i == 0 else 1 + _steps(shafts, shafts[i]["on"])


def _ratio(shafts: list[Shaft], i: int) -> Fraction:
    """Turns of shaft ``i`` for one of the driver."""
    product = Fraction(1)
    while i:
        before = shafts[shafts[i]["on"]]
        product *= Fraction(before["teeth"][-1 if shafts[i]["front"] else 0], shafts[i]["teeth"][0])
        i = shafts[i]["on"]
    return product


def _turning(shafts: list[Shaft], clockwise: bool) -> str:
    same = [s["letter"] for i, s in enumerate(shafts) if (_steps(shafts, i) % 2 == 0) == clockwise]
    return "".join(sorted(same))


def _placed(dice: Dice, shafts: list[Shaft]) -> list[tuple[float, float, float]] | None:
    """Centre of each shaft in the picture, and pixels per tooth of radius; None if they collide or
    come out too small."""
    centres: list[tuple[float, float]] = [(0.0, 0.0)]
    for i, shaft in enumerate(shafts[1:], 1):
        before = shafts[shaft["on"]]
        reach = before["teeth"][1 if shaft["front"] else 0] + shaft["teeth"][0]
        x, y = centres[shaft["on"]]
        for _ in range(12):
            turn = math.radians(dice.uniform(-85, 85))
            at = (x + reach * math.cos(turn), y + reach * math.sin(turn))
            if all(_is_clear(shafts, centres, i, j, at) for j in range(i)):
                break
        else:
            return None
        centres.append(at)
    sizes = [max(shaft["teeth"]) + 4 for shaft in shafts]
    boxes = [(c[0] - r, c[0] + r, c[1] - r, c[1] + r) for c, r in zip(centres, sizes, strict=True)]
    left, right = min(b[0] for b in boxes), max(b[1] for b in boxes)
    top, bottom = min(b[2] for b in boxes), max(b[3] for b in boxes)
    unit = min((WIDTH - 50) / (right - left), (HEIGHT - CAPTION - 50) / (bottom - top), 2.2)
    if unit * min(min(shaft["teeth"]) for shaft in shafts) < 17:
        return None
    middle = (left + right) / 2, (top + bottom) / 2
    return [
        (
            WIDTH / 2 + (x - middle[0]) * unit,
            (HEIGHT - CAPTION) / 2 + (y - middle[1]) * unit,
            unit,
        )
        for x, y in centres
    ]


def _is_clear(
    shafts: list[Shaft], centres: list[tuple[float, float]], i: int, j: int, at: tuple[float, float]
) -> bool:
    """Whether shaft ``i`` at ``at`` keeps off shaft ``j``, but for the gear that it meshes with."""
    gap = math.dist(at, centres[j])
    if j == shafts[i]["on"]:
        # In front of a large gear, but not in front of its number.
        return True
    return gap > max(shafts[i]["teeth"]) + max(shafts[j]["teeth"]) + 5


class _Look:
    """Colours and sizes of one picture."""

    def __init__(self, dice: Dice, difficulty: int) -> None:
        self.paper, self.ink = dice.pick(PAPERS), dice.pick(INKS)
        self.mark: Colour = dice.pick(PALETTE[:6])
        self.size = (14, 13, 12, 11, 11)[difficulty - 1]
        self.grain = (0, 0, 3, 6, 10)[difficulty - 1]
        coloured = dice.below(2) == 1
        self.fills = [_pale(dice.pick(PALETTE)) if coloured else (232, 232, 232) for _ in LETTERS]
        self.tooth = dice.uniform(0.85, 1.05)


def _pale(colour: Colour) -> Colour:
    red, green, blue = ((c + 3 * 255) // 4 for c in colour)
    return red, green, blue


def _captions(shafts: list[Shaft], asked: int, speeds: list[int]) -> list[str]:
    indices = (0, asked)
    return [f"{shafts[i]['letter']}: {n} rpm" for i, n in zip(indices, speeds, strict=True) if n]


def _draw(
    look: _Look,
    dice: Dice,
    shafts: list[Shaft],
    places: list[tuple[float, float, float]],
    clockwise: bool,
    captions: list[str],
) -> Any:
    canvas = Canvas(WIDTH, HEIGHT, look.paper)
    phases: list[list[float]] = []
    known = [[z or 0 for z in shaft["teeth"]] for shaft in shafts]
    for i, shaft in enumerate(shafts):
        x, y, unit = places[i]
        if not known[i][0]:
            # Drawn with as many teeth as fill the distance, which is what they are.
            before = places[shaft["on"]]
            reach = math.dist((x, y), before[:2]) / unit
            known[i][0] = round(reach - known[shaft["on"]][1 if shaft["front"] else 0])
        phase = _phase(known, shafts, places, phases, i) if i else dice.uniform(0, 1)
        phases.append([phase, dice.uniform(0, 1)])
    for i in _back_to_front(shafts):
        for n, teeth in enumerate(known[i]):
            _gear(canvas, look, places[i], teeth, phases[i][n], look.fills[i])
    for i, shaft in enumerate(shafts):
        _labels(canvas, look, shafts, places, i, [z or "?" for z in shaft["teeth"]], known[i])
    _turn_arrow(canvas, look, shafts, places, clockwise, known)
    canvas.text((WIDTH / 2, HEIGHT - 16), "      ".join(captions), look.size + 1, look.ink)
    return canvas.finish(dice, look.grain)


def _back_to_front(shafts: list[Shaft]) -> list[int]:
    """A gear that meshes with a front gear stands before the back one of that shaft."""
    return sorted(range(len(shafts)), key=lambda i: (_depth(shafts, i), i))


def _depth(shafts: list[Shaft], i: int) -> int:
    return 0 if i == 0 else _depth(shafts, shafts[i]["on"]) + bool(shafts[i]["front"])


def _phase(
    known: list[list[int]],
    shafts: list[Shaft],
    places: list[tuple[float, float, float]],
    phases: list[list[float]],
    i: int,
) -> float:
    """Where the first tooth of gear ``i`` is, so that its teeth lie in the gaps of the other."""
    on, n = shafts[i]["on"], 1 if shafts[i]["front"] else 0
    (x0, y0, _), (x1, y1, _) = places[on], places[i]
    turn = math.atan2(y1 - y0, x1 - x0)
    pitch, own = 2 * math.pi / known[on][n], 2 * math.pi / known[i][0]
    part = (turn - phases[on][n]) / pitch
    return turn + math.pi - (0.5 - part) * own


def _gear(
    canvas: Canvas,
    look: _Look,
    place: tuple[float, float, float],
    teeth: int,
    phase: float,
    fill: Colour,
) -> None:
    x, y, unit = place
    pitch = 2 * math.pi / teeth
    outer, inner = (teeth + 1.5 * look.tooth) * unit, (teeth - 1.8 * look.tooth) * unit
    points = []
    for i in range(teeth):
        for part, radius in ((-0.3, inner), (-0.15, outer), (0.15, outer), (0.3, inner)):
            turn = phase + (i + part) * pitch
            points.append((x + radius * math.cos(turn), y + radius * math.sin(turn)))
    canvas.polygon(points, fill)
    canvas.line([*points, points[0]], look.ink, 1.0)


def _labels(
    canvas: Canvas,
    look: _Look,
    shafts: list[Shaft],
    places: list[tuple[float, float, float]],
    i: int,
    numbers: list[Any],
    teeth: list[int],
) -> None:
    x, y, unit = places[i]
    size = look.size
    canvas.text((x, y - size * 0.62), shafts[i]["letter"], size + 1, look.mark)
    canvas.text((x, y + size * 0.62), str(numbers[-1]), size, look.ink)
    if len(numbers) > 1:
        # In the ring that the front gear leaves, on the side where no other gear is before it.
        turn = _free_side(shafts, places, i)
        radius = (teeth[0] - 2 + teeth[1] + 1.5) * unit / 2
        at = (x + radius * math.cos(turn), y + radius * math.sin(turn))
        canvas.text(at, str(numbers[0]), size, look.ink, halo=look.fills[i])


def _free_side(shafts: list[Shaft], places: list[tuple[float, float, float]], i: int) -> float:
    """The direction furthest from all shafts that mesh with shaft ``i`` or lie over its gears."""
    x, y, unit = places[i]
    reach = [max(shaft["teeth"]) + 4 for shaft in shafts]
    others = [
        j
        for j, s in enumerate(shafts)
        if j != i
        and (
            s["on"] == i
            or shafts[i]["on"] == j
            or math.dist((x, y), places[j][:2]) < (reach[i] + reach[j]) * unit
        )
    ]
    taken = [math.atan2(places[j][1] - y, places[j][0] - x) for j in others]
    turns = [math.radians(t) for t in range(0, 360, 15)]
    return max(turns, key=lambda t: min(math.cos(t - o) * -1 for o in taken))


def _turn_arrow(
    canvas: Canvas,
    look: _Look,
    shafts: list[Shaft],
    places: list[tuple[float, float, float]],
    clockwise: bool,
    known: list[list[int]],
) -> None:
    """Outside of the driver, where no gear is."""
    x, y, unit = places[0]
    radius = (known[0][0] + 3.5) * unit + 4
    middle = math.degrees(_free_side(shafts, places, 0))
    ends = (middle - 32, middle + 32)
    canvas.arc((x, y), radius, ends, look.mark, 2.2)
    tip, before = (ends[1], ends[1] - 3) if clockwise else (ends[0], ends[0] + 3)

    def at(degrees: float) -> tuple[float, float]:
        t = math.radians(degrees)
        return x + radius * math.cos(t), y + radius * math.sin(t)

    ahead = 2 * tip - before + (4 if clockwise else -4)
    canvas.arrow(at(before), at(ahead), look.mark, 2.2, 10)
