"""Rays at mirrors, at borders between media, and through thin lenses.

    mirror      an angle of the reflected ray, or of the ray that a second mirror reflects
    refraction  the angle of the refracted ray, behind one border or several parallel ones
    image       how far from a thin lens the image is
    size        how large the image is

What is known stands in the picture: angles, indices of refraction, distances. With difficulty
angles are given to the surface where the one to its normal counts, mirrors and layers come in
twos, lenses diverge or give virtual images. Rays of mirrors and media are drawn true;
``reference_answer`` turns rays as vectors and meets two rays behind a lens.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas, Colour
from foveal.tasks.dice import Dice
from foveal.tasks.inclines import settled, tolerance_of

WIDTH, HEIGHT = 400, 290
INDICES = (1.0, 1.33, 1.36, 1.46, 1.5, 1.52, 1.6, 1.66, 1.77, 1.9, 2.0, 2.42)
Vector = tuple[float, float]

TEMPLATES = {
    "mirror": (
        "The ray is reflected. How many degrees is the angle marked with a question mark?",
        "Find the angle marked ?, in degrees.",
    ),
    "refraction": (
        "How many degrees is the angle marked with a question mark? n is the index of refraction.",
        "The ray is refracted. Find the angle marked ?, in degrees; n is the index of refraction.",
    ),
    "image": (
        "How far from the thin lens is the image of the object, in cm?",
        "Find the distance between the image and the thin lens, in cm.",
    ),
    "size": (
        "How tall is the image of the object that the thin lens makes, in cm?",
        "Find the height of the image behind (or before) the thin lens, in cm.",
    ),
}
LENS = {
    True: " F marks the focal points of the converging lens.",
    False: " F marks the focal points of the diverging lens.",
}


class OpticsTask(DrawnTask):
    """The task family "optics"."""

    name: str = "optics"
    kinds: ClassVar[tuple[str, ...]] = ("mirror", "refraction", "image", "size")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        look = _Look(dice, difficulty)
        make = {"mirror": _mirrors, "refraction": _media}.get(kind, _lens)
        answer, facts = make(look, dice, kind, difficulty)
        tolerance = 0.0 if kind == "mirror" else tolerance_of(answer)
        question = dice.pick(TEMPLATES[kind])
        if kind in ("image", "size"):
            question += LENS[facts["focal"] > 0]
        picture = look.canvas.finish(dice, (0, 0, 3, 6, 10)[difficulty - 1])
        metadata = {"kind": kind, **facts, "tolerance": tolerance}
        return Drawn(picture, question, settled(answer), metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Vectors of rays; for a lens, where two of them meet."""
        kind = metadata["kind"]
        if kind in ("image", "size"):
            return settled(_meeting(metadata)[kind == "size"])
        ray = tuple(metadata["ray"])
        if kind == "mirror":
            for mirror in metadata["mirrors"]:
                ray = _reflected(ray, mirror)
            return settled(round(_between(ray, metadata["mirrors"][-1], metadata["to_normal"])))
        indices = metadata["indices"]
        for first, second in pairwise(indices):
            ray = _refracted(ray, first / second)
        return settled(_between(ray, [1.0, 0.0], metadata["to_normal"]))


def _reflected(ray: Vector, mirror: list[float]) -> Vector:
    """``ray`` mirrored at a line of direction ``mirror`` (length 1)."""
    along = ray[0] * mirror[0] + ray[1] * mirror[1]
    return 2 * along * mirror[0] - ray[0], 2 * along * mirror[1] - ray[1]


def _refracted(ray: Vector, ratio: float) -> Vector:
    """``ray`` (length 1, downward) behind a level border; ``ratio`` of the indices."""
    down = math.sqrt(1 - ratio**2 * (1 - ray[1] ** 2))
    return ratio * ray[0], down


def _between(ray: Vector, surface: list[float], to_normal: bool) -> float:
    """Degrees between a ray and a surface, or its normal."""
    along = abs(ray[0] * surface[0] + ray[1] * surface[1])
    across = abs(ray[0] * surface[1] - ray[1] * surface[0])
    return math.degrees(math.atan2(along, across) if to_normal else math.atan2(across, along))


def _meeting(metadata: dict[str, Any]) -> tuple[float, float]:
    """Distance and size of the image: the ray through the middle of the lens meets the one that
    came in level and leaves through (or from) a focal point."""
    far, high, focal = metadata["object"], metadata["height"], metadata["focal"]
    # Middle ray: y = -high / far * x. Level ray, behind the lens: y = high - high / focal * x.
    x = high / (high / focal - high / far)
    return abs(x), abs(-high / far * x)


class _Look:
    """Canvas, colours and sizes of one picture."""

    def __init__(self, dice: Dice, difficulty: int) -> None:
        self.paper: Colour = dice.pick(PAPERS)
        self.ink: Colour = dice.pick(INKS)
        self.mark: Colour = dice.pick(PALETTE[:6])
        self.canvas = Canvas(WIDTH, HEIGHT, self.paper)
        self.size = (15, 14, 13, 12, 11)[difficulty - 1]
        self.width = dice.uniform(1.6, 2.4)
        self.tints = [(222, 236, 248), (240, 232, 214), (226, 240, 226), (238, 226, 240)]

    def ray(self, start: Vector, end: Vector) -> None:
        """With its arrow in the middle."""
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        self.canvas.arrow(start, middle, self.mark, self.width, 10)
        self.canvas.line([middle, end], self.mark, self.width)

    def note(self, at: Vector, text: str, anchor: str = "mm") -> None:
        self.canvas.text(at, text, self.size, self.ink, anchor, halo=self.paper)

    def angle(self, at: Vector, first: Vector, second: Vector, text: str) -> None:
        """An arc between two directions, which are less than 180 degrees apart, and its text."""
        a, b = (math.degrees(math.atan2(d[1], d[0])) % 360 for d in (first, second))
        start, sweep = (a, (b - a) % 360) if (b - a) % 360 <= 180 else (b, (a - b) % 360)
        radius = 24 + max(0, 34 - sweep) * 0.5
        self.canvas.arc(at, radius, (start, start + sweep), self.ink, 1.3)
        middle = math.radians(start + sweep / 2)
        out = radius + 9 + self.size * 0.24 * len(text) + max(0, 30 - sweep) * 0.8
        place = (at[0] + out * math.cos(middle), at[1] + out * math.sin(middle))
        self.note(place, text)


def _at(point: Vector, direction: Vector, length: float) -> Vector:
    return point[0] + direction[0] * length, point[1] + direction[1] * length


def _turned(degrees: float) -> Vector:
    """Direction in the picture, counted counter-clockwise from the right."""
    t = math.radians(degrees)
    return math.cos(t), -math.sin(t)


# --- mirrors ------------------------------------------------------------------------------------


def _mirrors(look: _Look, dice: Dice, kind: str, difficulty: int) -> tuple[float, dict[str, Any]]:
    given_normal, asked_normal = dice.below(2) == 1, dice.below(2) == 1
    if difficulty < 3 or (difficulty == 3 and dice.below(2)):
        return _one_mirror(look, dice, given_normal, asked_normal, difficulty)
    return _two_mirrors(look, dice, given_normal, asked_normal)


def _one_mirror(
    look: _Look, dice: Dice, given_normal: bool, asked_normal: bool, difficulty: int
) -> tuple[float, dict[str, Any]]:
    step = 5 if difficulty == 1 else 1
    incidence = dice.between(15 // step, 72 // step) * step
    lean = dice.between(-25, 25) if difficulty > 1 else 0
    side = dice.pick((1, -1))
    foot = (WIDTH / 2 + lean * 0.5, HEIGHT * 0.72)
    mirror, normal = _turned(lean), _turned(lean + 90)
    back, out = _turned(lean + 90 + side * incidence), _turned(lean + 90 - side * incidence)
    _plate(look, foot, mirror, 150, 1)
    look.canvas.dashed(foot, _at(foot, normal, 130), look.ink)
    look.ray(_at(foot, back, 150), foot)
    look.ray(foot, _at(foot, out, 150))
    known = normal if given_normal else (-mirror[0] * side, -mirror[1] * side)
    asked = normal if asked_normal else (mirror[0] * side, mirror[1] * side)
    look.angle(foot, back, known, f"{incidence if given_normal else 90 - incidence}°")
    look.angle(foot, out, asked, "?")
    facts = {"ray": [-back[0], -back[1]], "mirrors": [list(mirror)], "to_normal": asked_normal}
    return float(incidence if asked_normal else 90 - incidence), facts


def _plate(look: _Look, at: Vector, along: Vector, half: float, side: int) -> None:
    """A mirror through ``at``, hatched on its back: right of ``along`` for ``side`` 1."""
    a, b = _at(at, along, -half), _at(at, along, half)
    look.canvas.line([a, b], look.ink, 2.4)
    behind = (-along[1] * side, along[0] * side)
    for i in range(int(2 * half // 12)):
        start = _at(a, along, 6 + 12 * i)
        end = (start[0] + behind[0] * 8 - along[0] * 6, start[1] + behind[1] * 8 - along[1] * 6)
        look.canvas.line([start, end], look.ink, 0.9)


def _two_mirrors(
    look: _Look, dice: Dice, given_normal: bool, asked_normal: bool
) -> tuple[float, dict[str, Any]]:
    """The lower mirror lies level, the other one rises from its right end (or left: mirrored).

    With the angle ``wedge`` between them and the ray ``first`` off the lower mirror's surface, the
    triangle of the corner has ``180 - wedge - first`` at the other one.
    """
    while True:
        wedge, first = dice.between(55, 125), dice.between(25, 65)
        second = 180 - wedge - first
        # Near a right angle it is not seen on which side of the normal the ray is.
        if 22 <= second <= 78:
            break
    side = dice.pick((1, -1))
    base = 165.0
    # The law of sines in the triangle corner, first and second point.
    reach = base * math.sin(math.radians(first)) / math.sin(math.radians(second))
    if reach > 150:
        base, reach = base * 150 / reach, 150.0

    def d(degrees: float) -> Vector:
        x, y = _turned(degrees)
        return x * side, y

    rising, incoming = d(180 - wedge), d(180 - first)
    out = _reflected(d(first), [*rising])
    ends = [d(180)[0] * base, d(180)[0] * base + incoming[0] * 110, rising[0] * (reach + 28)]
    ends += [rising[0] * reach + out[0] * 84, 0.0]
    corner = (WIDTH / 2 - (min(ends) + max(ends)) / 2, HEIGHT - 46.0)
    hit, top = _at(corner, d(180), base), _at(corner, rising, reach)
    _plate(look, _at(corner, d(180), base / 2 + 20), d(0), base / 2 + 20, side)
    # Its back is on the far side of the corner.
    _plate(look, _at(corner, rising, reach / 2 + 14), rising, reach / 2 + 14, side)
    look.ray(_at(hit, incoming, 110), hit)
    look.ray(hit, top)
    look.ray(top, _at(top, out, 84))
    look.angle(corner, d(180), rising, f"{wedge}°")
    known = d(90) if given_normal else d(180)
    inward = (-rising[1], rising[0]) if side > 0 else (rising[1], -rising[0])
    inward = inward if inward[0] * side < 0 else (-inward[0], -inward[1])
    for at, normal, wanted in ((hit, d(90), given_normal), (top, inward, asked_normal)):
        if wanted:
            look.canvas.dashed(at, _at(at, normal, 74), look.ink)
    look.angle(hit, incoming, known, f"{90 - first if given_normal else first}°")
    surface = rising if out[0] * rising[0] + out[1] * rising[1] > 0 else (-rising[0], -rising[1])
    look.angle(top, out, inward if asked_normal else surface, "?")
    facts = {
        "ray": [-incoming[0], -incoming[1]],
        "mirrors": [list(d(0)), list(rising)],
        "to_normal": asked_normal,
    }
    return float(90 - second if asked_normal else second), facts


# --- media --------------------------------------------------------------------------------------


def _media(look: _Look, dice: Dice, kind: str, difficulty: int) -> tuple[float, dict[str, Any]]:
    """Layers with level borders, light from above; or turned upside down, from below."""
    count = 2 + (difficulty > 3) + (difficulty > 4 and dice.below(2))
    while True:
        indices = [dice.pick(INDICES[: 5 + 2 * difficulty]) for _ in range(count)]
        if difficulty < 3:
            indices[0] = 1.0
        incidence = dice.between(6, 14) * 5 if difficulty < 3 else dice.between(18, 70)
        sines = [indices[0] * math.sin(math.radians(incidence)) / n for n in indices]
        apart = all(abs(a - b) > 0.1 for a, b in pairwise(indices))
        if max(sines) < 0.97 and apart:
            break
    angles = [math.degrees(math.asin(sine)) for sine in sines]
    given_normal = difficulty < 3 or dice.below(2) == 1
    asked_normal = difficulty < 2 or dice.below(2) == 1
    upward, side = dice.pick((1, -1)), dice.pick((1, -1))
    _draw_layers(look, indices, angles, (upward, side), (given_normal, asked_normal))
    answer = angles[-1] if asked_normal else 90 - angles[-1]
    turn = math.radians(incidence)
    facts = {"ray": [math.sin(turn), math.cos(turn)], "indices": indices}
    return answer, {**facts, "to_normal": asked_normal}


def _draw_layers(
    look: _Look,
    indices: list[float],
    angles: list[float],
    ways: tuple[int, int],
    normals: tuple[bool, bool],
) -> None:
    upward, side = ways
    count, canvas = len(indices), look.canvas
    ends = [0.0, *(HEIGHT * share for share in _SHARES[count]), float(HEIGHT)]
    tints = [look.paper, *look.tints] if indices[0] == 1.0 else look.tints
    borders = []

    def y(value: float) -> float:
        return value if upward > 0 else HEIGHT - value

    for i, index in enumerate(indices):
        canvas.box([0, y(ends[i]), WIDTH, y(ends[i + 1])], tints[i])
        if i:
            canvas.line([(0, y(ends[i])), (WIDTH, y(ends[i]))], look.ink, 1.6)
        middle = (ends[i] + ends[i + 1]) / 2
        at = (WIDTH - 14, y(middle)) if side > 0 else (14, y(middle))
        canvas.text(at, f"n = {plain(index)}", look.size, look.ink, "rm" if side > 0 else "lm")
    deep = sum(
        (ends[i + 1] - ends[i]) * math.tan(math.radians(angles[i])) for i in range(1, count - 1)
    )
    x = WIDTH / 2 - side * (deep / 2 + 20)
    for i in range(1, count):
        borders.append((x, y(ends[i])))
        x += side * (ends[i + 1] - ends[i]) * math.tan(math.radians(angles[i]))
    directions = [
        (side * math.sin(math.radians(a)), upward * math.cos(math.radians(a))) for a in angles
    ]
    first, last = borders[0], borders[-1]
    reach = 104.0
    look.ray(_at(first, directions[0], -reach), first)
    for a, b in pairwise(borders):
        look.ray(a, b)
    look.ray(last, _at(last, directions[-1], 96))
    for at in borders:
        canvas.dashed((at[0], at[1] - 52), (at[0], at[1] + 52), look.ink, 0.8)
    back = (-directions[0][0], -directions[0][1])
    given = (0.0, -float(upward)) if normals[0] else (-float(side), 0.0)
    asked = (0.0, float(upward)) if normals[1] else (float(side), 0.0)
    value = angles[0] if normals[0] else 90 - angles[0]
    look.angle(first, back, given, f"{plain(round(value))}°")
    look.angle(last, directions[-1], asked, "?")


_SHARES = {2: (0.5,), 3: (0.42, 0.62), 4: (0.38, 0.52, 0.66)}
"""Where the borders of so many layers are, from the side of the light."""


# --- lenses -------------------------------------------------------------------------------------


def _lens(look: _Look, dice: Dice, kind: str, difficulty: int) -> tuple[float, dict[str, Any]]:
    while True:
        focal = dice.between(2, 12) * 5 if difficulty < 3 else dice.between(4, 60)
        virtual = difficulty > 1 and dice.below(3) == 0
        diverging = difficulty > 2 and dice.below(3) == 0
        share = dice.uniform(0.3, 0.85) if virtual else dice.uniform(1.15, 4)
        far = round(focal * share / 5) * 5 if difficulty < 3 else round(focal * share)
        signed = -focal if diverging else focal
        if far > 1 and far != focal:
            distance = 1 / (1 / signed - 1 / far)
            if 1.5 < abs(distance) < 400:
                break
    height = dice.between(2, 12) / (1 if difficulty < 3 else 2)
    _draw_lens(look, dice, (signed, float(far), height), kind, difficulty)
    size = height * abs(distance) / far
    facts = {"object": float(far), "height": height, "focal": float(signed)}
    return (size if kind == "size" else abs(distance)), facts


def _draw_lens(
    look: _Look, dice: Dice, sizes: tuple[float, float, float], kind: str, difficulty: int
) -> None:
    """Distances keep their order and not their scale: the object is near or far of F as it is."""
    focal, far, height = sizes
    side = dice.pick((1, -1))
    canvas, axis = look.canvas, HEIGHT * 0.48
    x = WIDTH / 2 + side * 40.0
    unit = min(150 / far, 100 / abs(focal))
    canvas.line([(14, axis), (WIDTH - 14, axis)], look.ink, 1.0)
    _glass(look, x, axis, focal > 0)
    for way in (-1, 1):
        at = x + way * side * abs(focal) * unit
        canvas.disc((at, axis), 3, look.ink)
        look.note((at, axis - 13), "F")
    foot = x - side * far * unit
    canvas.arrow((foot, axis), (foot, axis - 54), look.mark, 3, 12)
    # The height is told whenever it is asked for; else it is one number too many.
    if kind == "size" or difficulty > 2:
        look.note((foot - side * 10, axis - 34), f"{plain(height)} cm", "rm" if side > 0 else "lm")
    near, same = (x + way * side * abs(focal) * unit for way in (1, -1))
    # From the focal point in place of the lens: the distance to the lens is the sum, or less.
    to_focus = difficulty > 3 and abs(foot - same) > 24 and dice.below(2) == 1
    start = same if to_focus else x
    shown = abs(far - abs(focal)) if to_focus else far
    _span(look, foot, start, axis + 88, f"{plain(shown)} cm")
    _span(look, x, near, axis + 116, f"{plain(abs(focal))} cm")
    for at, low in ((foot, axis + 92), (start, axis + 92), (x, axis + 120), (near, axis + 120)):
        canvas.line([(at, axis + 8), (at, low)], look.ink, 0.6)


def _span(look: _Look, a: float, b: float, y: float, text: str) -> None:
    """A dimension line; a text that is wider than the line stands below it."""
    middle = ((a + b) / 2, y)
    for end in (a, b):
        look.canvas.arrow(middle, (end, y), look.ink, 0.9, min(7.0, abs(a - b) / 3))
    wide = look.canvas.text_width(text, look.size) + 24 > abs(a - b)
    look.note((middle[0], y + (13 if wide else 0)), text)


def _glass(look: _Look, x: float, axis: float, converging: bool) -> None:
    """The outline of a thin lens, 140 pixels high."""
    half, steps = 74.0, 24
    sides: list[list[Vector]] = [[], []]
    for i in range(steps + 1):
        t = -1 + 2 * i / steps
        bulge = 11 * (1 - t * t) if converging else 3 + 8 * t * t
        for way, side in zip((-1, 1), sides, strict=True):
            side.append((x + way * bulge, axis + t * half))
    outline = [*sides[0], *reversed(sides[1])]
    look.canvas.polygon(outline, (205, 228, 245))
    look.canvas.line([*outline, outline[0]], look.ink, 1.4)
