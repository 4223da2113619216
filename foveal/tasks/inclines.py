"""A block on a slope: what is given stands in the picture, but for g.

    acceleration  of the block along the slope
    normal        force of the slope on the block
    friction      on the sliding block
    force         that pulls the block up the slope at constant speed

The slope is given by two sides at first, then by its angle. With difficulty come friction, pushes
along the slope, level ones, ropes at an angle, and lengths that nobody needs. Pictures are true to
angle: ``reference_answer`` adds force vectors along the slope as it was drawn.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice

WIDTH, HEIGHT = 400, 280
TRIPLES = ((3, 4, 5), (4, 3, 5), (5, 12, 13), (8, 15, 17), (20, 21, 29), (7, 24, 25))
"""Height, run and length of a slope."""

TEMPLATES = {
    "acceleration": (
        "The block starts from rest. How large is its acceleration along the slope, in m/s^2?",
        "Released from rest, with what acceleration does the block move along the slope (m/s^2)?",
    ),
    "normal": (
        "How large is the normal force of the slope on the block, in newtons?",
        "With how many newtons does the slope push on the block, at right angles to it?",
    ),
    "friction": (
        "The block slides. How large is the friction on it, in newtons?",
        "Find the force of kinetic friction on the sliding block, in N.",
    ),
    "force": (
        "What force along the slope pulls the block up at constant speed, in newtons?",
        "How many newtons, along the slope, does it take to pull the block up at constant speed?",
    ),
}
GIVEN = " Take g = {g} m/s^2; mu is the coefficient of friction."
GIVEN_SMOOTH = " Take g = {g} m/s^2; there is no friction."


class InclinesTask(DrawnTask):
    """The task family "inclines"."""

    name: str = "inclines"
    kinds: ClassVar[tuple[str, ...]] = ("acceleration", "normal", "force", "friction")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds[: 3 + (difficulty > 1)])
        scene = _scene(dice, kind, difficulty)
        look = _Look(dice, difficulty)
        points = _draw(look, dice, scene, difficulty)
        answer = _solved(scene, kind)
        names = ("mass", "mu", "g", "push")
        metadata = {
            "kind": kind,
            **points,
            **{name: scene[name] for name in names},
            "tolerance": tolerance_of(answer),
        }
        given = (GIVEN if scene["mu"] else GIVEN_SMOOTH).format(g=plain(scene["g"]))
        picture = look.canvas.finish(dice, (0, 0, 3, 6, 10)[difficulty - 1])
        return Drawn(picture, dice.pick(TEMPLATES[kind]) + given, settled(answer), metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Vectors in the picture, y downward."""
        foot, top = metadata["foot"], metadata["top"]
        length = math.dist(foot, top)
        up = [(b - a) / length for a, b in zip(foot, top, strict=True)]
        away = [up[1], -up[0]] if up[0] > 0 else [-up[1], up[0]]
        push = [metadata["push"] * part for part in metadata["toward"]]
        total = [push[0], push[1] + metadata["mass"] * metadata["g"]]
        along = total[0] * up[0] + total[1] * up[1]
        normal = -(total[0] * away[0] + total[1] * away[1])
        friction = metadata["mu"] * normal
        return settled(
            {
                "normal": normal,
                "friction": friction,
                "force": -along + friction,
                "acceleration": (abs(along) - friction) / metadata["mass"],
            }[metadata["kind"]]
        )


def tolerance_of(answer: float) -> float:
    """1 % of the answer: one rounded step on the way does not matter."""
    return round(max(0.01, abs(answer) * 0.01), 3)


def settled(value: float) -> str:
    """``plain``, for values that two ways of reckoning bring to a border of rounding."""
    return plain(round(value, 6))


def _scene(dice: Dice, kind: str, difficulty: int) -> dict[str, Any]:
    """Slope, block, friction and push, such that the block does what the question says."""
    while True:
        sides = dice.pick(TRIPLES) if difficulty < 3 else None
        turn = math.atan2(sides[0], sides[1]) if sides else math.radians(dice.between(15, 50))
        rough = difficulty > 1 or kind == "friction"
        scene: dict[str, Any] = {
            "sides": sides,
            "times": dice.pick((1, 1, 2, 0.5)),
            "turn": turn,
            "g": 10.0 if difficulty < 3 else 9.8,
            "mass": float(dice.between(2, 20)) if difficulty < 4 else dice.between(5, 60) / 4,
            "mu": dice.between(1, 12) / 20 if rough else 0.0,
            "push": 0.0,
            "rope": 0,
            "way": "none",
        }
        if kind != "force" and difficulty > 3:
            _push(dice, scene, difficulty)
        along, normal = _forces(scene)
        spare = abs(along) - scene["mu"] * normal
        if kind in ("force", "normal") and scene["way"] == "none":
            return scene
        if spare > 0.06 * scene["mass"] * scene["g"] and normal > scene["mass"]:
            return scene


def _push(dice: Dice, scene: dict[str, Any], difficulty: int) -> None:
    scene["way"] = dice.pick(("up", "level", "rope") if difficulty == 5 else ("up", "level"))
    if scene["way"] == "rope":
        scene["rope"] = dice.between(4, 8) * 5
    weight = scene["mass"] * scene["g"]
    scene["push"] = float(round(weight * dice.uniform(0.8, 2.2)))


def _forces(scene: dict[str, Any]) -> tuple[float, float]:
    """What drives the block up the slope, and the normal force."""
    turn, push, weight = scene["turn"], scene["push"], scene["mass"] * scene["g"]
    # The push turned against the slope, away from it being positive.
    lean = {"level": -turn, "rope": math.radians(scene["rope"])}.get(scene["way"], 0.0)
    along = push * math.cos(lean) - weight * math.sin(turn)
    return along, weight * math.cos(turn) - push * math.sin(lean)


def _solved(scene: dict[str, Any], kind: str) -> float:
    along, normal = _forces(scene)
    return {
        "normal": normal,
        "friction": scene["mu"] * normal,
        "force": scene["mu"] * normal - along,
        "acceleration": (abs(along) - scene["mu"] * normal) / scene["mass"],
    }[kind]


class _Look:
    """Canvas, colours and sizes of one picture."""

    def __init__(self, dice: Dice, difficulty: int) -> None:
        self.paper: Colour = dice.pick(PAPERS)
        self.ink: Colour = dice.pick(INKS)
        self.mark: Colour = dice.pick(PALETTE[:6])
        self.canvas = Canvas(WIDTH, HEIGHT, self.paper)
        self.size = (15, 14, 13, 12, 11)[difficulty - 1]
        self.width = dice.uniform(1.4, 2.6)
        self.ground: Colour = dice.pick(((225, 228, 232), (232, 226, 212), (222, 232, 220)))
        self.block: Colour = dice.pick(((250, 220, 160), (190, 215, 240), (245, 200, 195)))

    def note(self, at: tuple[float, float], text: str, anchor: str = "mm") -> None:
        self.canvas.text(at, text, self.size, self.ink, anchor, halo=self.paper)


def _draw(look: _Look, dice: Dice, scene: dict[str, Any], difficulty: int) -> dict[str, Any]:
    """Returns the foot and top of the slope and the direction of the push, in the picture."""
    turn = scene["turn"]
    run = min(290.0, 175 / math.tan(turn))
    side = dice.pick((1, -1))
    base = HEIGHT - 36.0

    def at(x: float, y: float) -> tuple[float, float]:
        """From the foot of the slope, up and towards its top."""
        return WIDTH / 2 + side * (x - run / 2), base - y

    canvas, rise = look.canvas, run * math.tan(turn)
    corners = [at(0, 0), at(run, 0), at(run, rise)]
    canvas.polygon(corners, look.ground)
    canvas.line([*corners, corners[0], corners[1]], look.ink, look.width)
    up, away = (math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))
    length, size = math.hypot(run, rise), 58.0
    middle = length * (0.42 if scene["way"] in ("up", "rope") else 0.55)

    def on(s: float, n: float) -> tuple[float, float]:
        """``s`` along the slope and ``n`` off it."""
        return at(s * up[0] + n * away[0], s * up[1] + n * away[1])

    half = size / 2
    block = [(middle - half, 1), (middle + half, 1), (middle + half, 40), (middle - half, 40)]
    canvas.polygon([on(*corner) for corner in block], look.block, look.ink)
    canvas.text(on(middle, 20), f"{plain(scene['mass'])} kg", look.size, look.ink)
    _slope_labels(look, dice, scene, at, on, (run, rise, length), difficulty)
    toward = _push_arrow(look, scene, on, middle, half, side)
    return {"foot": list(corners[0]), "top": list(corners[2]), "toward": toward}


def _slope_labels(
    look: _Look,
    dice: Dice,
    scene: dict[str, Any],
    at: Any,
    on: Any,
    sizes: tuple[float, float, float],
    difficulty: int,
) -> None:
    run, rise, length = sizes
    if scene["sides"]:
        high, level, long = (plain(part * scene["times"]) for part in scene["sides"])
        look.note(at(run + 24, rise / 2), f"{high} m")
        if dice.below(2):
            look.note(on(length * 0.84, 20), f"{long} m")
        else:
            look.note(at(run / 2, -18), f"{level} m")
    else:
        foot = at(0, 0)
        # Degrees clockwise from the right, as Pillow counts them.
        slope = math.degrees(scene["turn"])
        ends = (-slope, 0.0) if at(1, 0)[0] > foot[0] else (180.0, 180.0 + slope)
        look.canvas.arc(foot, 44, ends, look.mark, 1.5)
        half = scene["turn"] / 2
        look.note(at(66 * math.cos(half), 62 * math.sin(half)), f"{round(slope)}°")
        if dice.below(6) < difficulty - 1:
            look.note(at(run / 2, -18), f"{plain(dice.between(20, 90) / 10)} m")
    text = f"mu = {plain(scene['mu'])}" if scene["mu"] else "smooth"
    look.canvas.text(at(run * 0.7, min(rise * 0.22, 26)), text, look.size, look.ink)


def _push_arrow(
    look: _Look, scene: dict[str, Any], on: Any, middle: float, half: float, side: int
) -> list[float]:
    """The arrow of the push, if there is one; its direction in the picture."""
    way, turn = scene["way"], scene["turn"]
    if way == "none":
        return [0.0, 0.0]
    text = f"{plain(scene['push'])} N"
    if way == "level":
        tip = on(middle - half, 20)
        start = (tip[0] - side * 62, tip[1])
        look.canvas.arrow(start, tip, look.mark, 2.4, 10)
        look.note((start[0] + side * 16, start[1] - 14), text)
        return [float(side), 0.0]
    lean = math.radians(scene["rope"])
    start = on(middle + half, 20)
    reach = 70.0
    tip = on(middle + half + reach * math.cos(lean), 20 + reach * math.sin(lean))
    look.canvas.arrow(start, tip, look.mark, 2.4, 10)
    far = reach + 20
    look.note(on(middle + half + far * math.cos(lean), 24 + far * math.sin(lean)), text)
    if way == "rope":
        look.canvas.dashed(start, on(middle + half + 66, 20), look.mark)
        slope = math.degrees(turn)
        ends = (-slope - scene["rope"], -slope)
        if side < 0:
            ends = (180 + slope, 180 + slope + scene["rope"])
        look.canvas.arc(start, 34, ends, look.mark, 1.2)
        place = on(middle + half + 50 * math.cos(lean / 2), 20 + 50 * math.sin(lean / 2))
        look.note(place, f"{scene['rope']}°")
    return [(tip[0] - start[0]) / reach, (tip[1] - start[1]) / reach]
