"""Ropes and pulleys without mass: machines of Atwood's kind, and blocks and tackles.

    acceleration  of masses on one rope, hanging or on a table
    tension       of the rope that is marked T
    force         that holds the load of a block and tackle
    rope          how much rope has to be pulled to raise the load

With difficulty the table gets friction and more blocks, ropes hang from both of its ends, the
lower block of a tackle has a mass. ``reference_answer`` solves the equations of all masses at
once; a tackle, by counting the strands that carry the load.
"""

from __future__ import annotations

from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice
from foveal.tasks.inclines import settled, tolerance_of

WIDTH, HEIGHT = 400, 300

TEMPLATES = {
    "acceleration": (
        "The masses are let go. How large is their acceleration, in m/s^2?",
        "With what acceleration do the masses move after release, in m/s^2?",
    ),
    "tension": (
        "The masses are let go. How large is the tension T of the rope, in newtons?",
        "Find the tension in the rope marked T while the masses move, in N.",
    ),
    "force": (
        "What force F holds the load, in newtons?",
        "How many newtons does it take at F to hold the load still?",
    ),
    "rope": (
        "The load is to rise by {h} m. How many metres of rope have to be pulled at F?",
        "How many metres of rope come out at F while the load rises by {h} m?",
    ),
}
GIVEN = " Take g = {g} m/s^2; ropes and pulleys have no mass and no friction."
GIVEN_ROUGH = GIVEN[:-1] + ", and mu is the coefficient of friction of the table."
Body = dict[str, Any]
"""``mass``, ``place`` ("left" or "right" hangs there, "table" lies between) and ``mu``."""


class PulleysTask(DrawnTask):
    """The task family "pulleys"."""

    name: str = "pulleys"
    kinds: ClassVar[tuple[str, ...]] = ("acceleration", "tension", "force", "rope")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        g = 10.0 if difficulty < 3 else 9.8
        look = _Look(dice, difficulty)
        make = _tackle if kind in ("force", "rope") else _machine
        answer, facts = make(look, dice, kind, difficulty, g)
        rough = any(body["mu"] for body in facts.get("bodies", ()))
        question = dice.pick(TEMPLATES[kind]).format(h=plain(facts.get("rise", 0)))
        question += (GIVEN_ROUGH if rough else GIVEN).format(g=plain(g))
        metadata = {"kind": kind, **facts, "g": g, "tolerance": tolerance_of(answer)}
        picture = look.canvas.finish(dice, (0, 0, 3, 6, 10)[difficulty - 1])
        return Drawn(picture, question, settled(answer), metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Newton's second law for each mass, all in one system; strands counted for a tackle."""
        if metadata["kind"] in ("force", "rope"):
            upward = sum(y < metadata["ring"] for y in metadata["strand_ends"])
            if metadata["kind"] == "rope":
                return settled(metadata["rise"] * upward)
            return settled(sum(metadata["loads"]) * metadata["g"] / upward)
        acceleration, tensions = _newton(metadata["bodies"], metadata["g"])
        if metadata["kind"] == "acceleration":
            return settled(abs(acceleration))
        return settled(tensions[metadata["asked"]])


def _newton(bodies: list[Body], g: float) -> tuple[float, list[float]]:
    """The acceleration to the right end and the tension of each rope."""
    import numpy as np

    n = len(bodies)
    weights = [b["mass"] * g * {"left": -1, "right": 1, "table": 0}[b["place"]] for b in bodies]
    way = 1 if sum(weights) > 0 else -1
    # Unknown: the acceleration, then the ropes between one mass and the next.
    system, forces = np.zeros((n, n)), np.zeros(n)
    for i, body in enumerate(bodies):
        system[i, 0] = body["mass"]
        if i > 0:
            system[i, i] = 1
        if i < n - 1:
            system[i, i + 1] = -1
        forces[i] = weights[i] - way * body["mu"] * body["mass"] * g
    found = np.linalg.solve(system, forces)
    return float(found[0]), [float(value) for value in found[1:]]


class _Look:
    """Canvas, colours and sizes of one picture."""

    def __init__(self, dice: Dice, difficulty: int) -> None:
        self.paper: Colour = dice.pick(PAPERS)
        self.ink: Colour = dice.pick(INKS)
        self.mark: Colour = dice.pick(PALETTE[:6])
        self.canvas = Canvas(WIDTH, HEIGHT, self.paper)
        self.size = (15, 14, 13, 12, 11)[difficulty - 1]
        self.rope: Colour = dice.pick((self.ink, (140, 90, 40), (90, 95, 105)))
        self.width = dice.uniform(1.3, 2.2)
        self.ground: Colour = dice.pick(((225, 228, 232), (232, 226, 212), (222, 232, 220)))
        self.block: Colour = dice.pick(((250, 220, 160), (190, 215, 240), (245, 200, 195)))

    def line(self, *points: tuple[float, float]) -> None:
        self.canvas.line(points, self.rope, self.width)

    def wheel(self, at: tuple[float, float], radius: float) -> None:
        self.canvas.disc(at, radius, (240, 240, 240), self.ink, 1.6)
        self.canvas.disc(at, 2.5, self.ink)

    def mass(self, x: float, y: float, text: str) -> None:
        """A block with its upper side at ``y``."""
        self.canvas.box([x - 29, y, x + 29, y + 36], self.block, self.ink)
        self.canvas.text((x, y + 18), text, self.size, self.ink)

    def note(self, at: tuple[float, float], text: str, anchor: str = "mm") -> None:
        self.canvas.text(at, text, self.size, self.ink, anchor, halo=self.paper)

    def ceiling(self, left: float, right: float, y: float) -> None:
        self.canvas.box([left, y - 12, right, y], self.ground)
        self.canvas.line([(left, y), (right, y)], self.ink, 2)


# --- masses on a rope ---------------------------------------------------------------------------


def _machine(
    look: _Look, dice: Dice, kind: str, difficulty: int, g: float
) -> tuple[float, dict[str, Any]]:
    while True:
        bodies = _bodies(dice, difficulty)
        acceleration, ropes = _composed(bodies, g)
        if acceleration > 0.04 * g:
            break
    asked = dice.below(len(bodies) - 1)
    _draw_machine(look, dice, bodies, asked if kind == "tension" else -1)
    answer = acceleration if kind == "acceleration" else ropes[asked]
    return answer, {"bodies": bodies, "asked": asked}


def _bodies(dice: Dice, difficulty: int) -> list[Body]:
    """From the left end of the rope to the right one."""
    forms = (("left", "right"), ("table", "right"), ("left", "table", "right"))
    more = (("table", "table", "right"), ("left", "table", "table", "right"))
    form = dice.pick(
        (forms[:2], forms[:2], forms, (*forms[1:], *more), (forms[2], *more))[difficulty - 1]
    )
    if dice.below(2):
        form = tuple({"left": "right", "right": "left"}.get(p, p) for p in reversed(form))
    bodies: list[Body] = []
    for place in form:
        mass = float(dice.between(1, 12)) if difficulty < 4 else dice.between(4, 48) / 4
        mu = dice.between(1, 8) / 20 if place == "table" and difficulty > 1 else 0.0
        bodies.append({"mass": mass, "place": place, "mu": mu})
    if difficulty == 5 or len({b["mu"] for b in bodies if b["mu"]}) < 2:
        return bodies
    same = next(b["mu"] for b in bodies if b["mu"])
    return [{**b, "mu": same if b["mu"] else 0.0} for b in bodies]


def _composed(bodies: list[Body], g: float) -> tuple[float, list[float]]:
    """The acceleration (0 or less: nothing moves) and the tension of each rope, mass by mass."""
    pull = sum(g * b["mass"] * (b["place"] == "right") for b in bodies)
    pull -= sum(g * b["mass"] * (b["place"] == "left") for b in bodies)
    drag = sum(g * b["mass"] * b["mu"] for b in bodies)
    acceleration = (abs(pull) - drag) / sum(b["mass"] for b in bodies)
    way = 1 if pull > 0 else -1
    ropes, tension = [], 0.0
    for body in bodies[:-1]:
        # What is left of this rope needs a force to the right for its weight, drag and motion.
        hangs = g if body["place"] == "left" else 0.0
        tension += body["mass"] * (hangs + way * (acceleration + body["mu"] * g))
        ropes.append(tension)
    return acceleration, ropes


def _draw_machine(look: _Look, dice: Dice, bodies: list[Body], asked: int) -> None:
    if all(body["place"] != "table" for body in bodies):
        _draw_atwood(look, dice, bodies, asked)
        return
    top, radius = 110.0, 13.0
    hangs_left, hangs_right = bodies[0]["place"] == "left", bodies[-1]["place"] == "right"
    left, right = 80.0, WIDTH - 80.0
    canvas = look.canvas
    canvas.box([left, top, right, top + 16], look.ground, look.ink)
    for x in (left + 40, right - 40):
        canvas.box([x - 7, top + 16, x + 7, HEIGHT - 14], look.ground, look.ink)
    canvas.line([(30, HEIGHT - 14), (WIDTH - 30, HEIGHT - 14)], look.ink, 1.6)
    level = top - 20
    on_table = [i for i, body in enumerate(bodies) if body["place"] == "table"]
    gap = (right - left) / (len(on_table) + 1)
    places = {i: left + gap * (n + 1) for n, i in enumerate(on_table)}
    ends = []
    for hangs, edge, side, i in (
        (hangs_left, left, -1, 0),
        (hangs_right, right, 1, len(bodies) - 1),
    ):
        if not hangs:
            continue
        hub = (edge + side * 14, level + radius)
        canvas.line([(edge - side * 2, top + 2), hub], look.ink, 3)
        drop = HEIGHT - dice.between(84, 128)
        inner = places[0 if i == 0 and 0 in places else min(places) if i == 0 else max(places)]
        look.line((inner, level), (hub[0], level))
        look.line((hub[0] + side * radius, hub[1]), (hub[0] + side * radius, drop))
        look.wheel(hub, radius)
        look.mass(hub[0] + side * radius, drop, f"{plain(bodies[i]['mass'])} kg")
        ends.append((i, ((inner + edge) / 2 + side * 14, level - 13)))
    if len(on_table) > 1:
        look.line((places[on_table[0]], level), (places[on_table[1]], level))
    for i, x in places.items():
        look.mass(x, top - 37, f"{plain(bodies[i]['mass'])} kg")
    _friction_notes(look, bodies, places, top)
    if asked >= 0:
        rope = {0 if i == 0 else len(bodies) - 2: at for i, at in ends}
        x = sum(places.values()) / len(places)
        canvas.text(rope.get(asked, (x, level - 13)), "T", look.size + 1, look.mark)


def _friction_notes(look: _Look, bodies: list[Body], places: dict[int, float], top: float) -> None:
    values = {bodies[i]["mu"] for i in places}
    if len(values) == 1:
        text = f"mu = {plain(next(iter(values)))}" if max(values) else "smooth"
        look.note((WIDTH / 2, top + 32), text)
        return
    for i, x in places.items():
        look.note((x, top + 32), f"mu = {plain(bodies[i]['mu'])}")


def _draw_atwood(look: _Look, dice: Dice, bodies: list[Body], asked: int) -> None:
    radius, x = dice.uniform(34, 52), WIDTH / 2
    hub = (x, 46 + radius)
    look.ceiling(x - 90, x + 90, 26)
    look.canvas.line([(x, 26), hub], look.ink, 3)
    for body, side in zip(bodies, (-1, 1), strict=True):
        drop = dice.uniform(150, 235)
        at = x + side * radius
        look.line((at, hub[1]), (at, drop))
        look.mass(at, drop, f"{plain(body['mass'])} kg")
        if asked >= 0 and side == 1:
            look.canvas.text((at + 13, (hub[1] + drop) / 2 + 6), "T", look.size + 1, look.mark)
    look.wheel(hub, radius)


# --- blocks and tackles -------------------------------------------------------------------------


def _tackle(
    look: _Look, dice: Dice, kind: str, difficulty: int, g: float
) -> tuple[float, dict[str, Any]]:
    """``strands`` carry the lower block; the rope leaves the upper one downward, or is pulled up
    from the lower one."""
    strands = dice.between(1, 3 + difficulty // 2) + (difficulty > 2)
    up = strands > 1 and difficulty > 1 and dice.below(3) == 0
    load = float(dice.between(2, 40) * (5 if difficulty < 3 else 1))
    block = float(dice.between(1, 9)) if difficulty > 3 else 0.0
    rise = dice.between(1, 12) / (2 if difficulty < 4 else 4)
    ring, ends = _draw_tackle(look, strands, up, load, block)
    facts: dict[str, Any] = {"strand_ends": ends, "ring": ring, "rise": rise}
    facts["loads"] = [load, block]
    if kind == "rope":
        return rise * strands, facts
    return (load + block) * g / strands, facts


def _draw_tackle(
    look: _Look, strands: int, up: bool, load: float, block: float
) -> tuple[float, list[float]]:
    """Strands side by side between two rows of wheels; the y of the lower row, and the other
    end's y of every strand that ends at it (and of the free end, if it hangs from above)."""
    top, bottom, radius = 70.0, 176.0, 12.0
    step = 2 * radius
    first = WIDTH / 2 - strands * radius
    xs = [first + step * i for i in range(strands)]
    canvas = look.canvas
    look.ceiling(first - 70, xs[-1] + 110, 26)
    ends = []
    for x in xs:
        look.line((x, top), (x, bottom))
        ends.append(top)
    _row_of_wheels(look, xs, strands, up, (top, bottom), radius)
    free = xs[-1] + step
    if up:
        # The last strand is the free end itself.
        look.canvas.arrow((xs[-1], top + 30), (xs[-1], top - 28), look.mark, 2.4, 10)
        look.note((xs[-1] + 14, top - 18), "F", "lm")
    else:
        look.line((free, top), (free, bottom - 20))
        look.canvas.arrow((free, bottom - 26), (free, bottom + 14), look.mark, 2.4, 10)
        look.note((free + 14, bottom), "F", "lm")
        ends.append(bottom + 14)
    middle = (xs[0] + xs[-1]) / 2
    canvas.line([(xs[0] - 4, bottom + 18), (xs[-1] + 4, bottom + 18)], look.ink, 3)
    canvas.line([(middle, bottom + 18), (middle, bottom + 40)], look.ink, 2)
    canvas.box([middle - 38, bottom + 40, middle + 38, bottom + 84], look.block, look.ink)
    canvas.text((middle, bottom + 62), f"{plain(load)} kg", look.size, look.ink)
    if block:
        text = f"lower block {plain(block)} kg"
        look.note((xs[0] - 22, bottom + 14), text, "rm")
    return bottom, ends


def _row_of_wheels(
    look: _Look,
    xs: list[float],
    strands: int,
    up: bool,
    rows: tuple[float, float],
    radius: float,
) -> None:
    """The wheels between strands, from the fixed end on the left to the free end on the right."""
    top, bottom = rows
    # The rope turns above and below in turns; the last turn is below for a pull upward.
    count = strands - up
    turns = [((count - 1 - i) % 2 == 0) != up for i in range(count)]
    for i, above in enumerate(turns):
        hub = (xs[i] + radius, top if above else bottom)
        look.canvas.line([hub, (hub[0], 26.0 if above else bottom + 18)], look.ink, 2.2)
        look.wheel(hub, radius)
    # The fixed end: at the block of the other side than the first turn.
    fixed_above = not turns[0]
    end = (xs[0], 26.0) if fixed_above else (xs[0], bottom + 18)
    look.line((xs[0], top if fixed_above else bottom), end)
