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
from foveal.tasks.dice import Dice
from foveal.tasks.inclines import settled, tolerance_of
from foveal.tasks.lenses import lens_scene, meeting
from foveal.tasks.rays import HEIGHT, WIDTH, Look, Vector, shifted, turned

INDICES = (1.0, 1.33, 1.36, 1.46, 1.5, 1.52, 1.6, 1.66, 1.77, 1.9, 2.0, 2.42)

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
        look = Look(dice, difficulty)
        make = {"mirror": _mirrors, "refraction": _media}.get(kind, lens_scene)
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
            return settled(meeting(metadata)[kind == "size"])
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


# --- mirrors ------------------------------------------------------------------------------------


def _mirrors(look: Look, dice: Dice, kind: str, difficulty: int) -> tuple[float, dict[str, Any]]:
    given_normal, asked_normal = dice.below(2) == 1, dice.below(2) == 1
    if difficulty < 3 or (difficulty == 3 and dice.below(2)):
        return _one_mirror(look, dice, given_normal, asked_normal, difficulty)
    return _two_mirrors(look, dice, given_normal, asked_normal)


def _one_mirror(
    look: Look, dice: Dice, given_normal: bool, asked_normal: bool, difficulty: int
) -> tuple[float, dict[str, Any]]:
    step = 5 if difficulty == 1 else 1
    incidence = dice.between(15 // step, 72 // step) * step
    lean = dice.between(-25, 25) if difficulty > 1 else 0
    side = dice.pick((1, -1))
    foot = (WIDTH / 2 + lean * 0.5, HEIGHT * 0.72)
    mirror, normal = turned(lean), turned(lean + 90)
    back, out = turned(lean + 90 + side * incidence), turned(lean + 90 - side * incidence)
    _plate(look, foot, mirror, 150, 1)
    look.canvas.dashed(foot, shifted(foot, normal, 130), look.ink)
    look.ray(shifted(foot, back, 150), foot)
    look.ray(foot, shifted(foot, out, 150))
    known = normal if given_normal else (-mirror[0] * side, -mirror[1] * side)
    asked = normal if asked_normal else (mirror[0] * side, mirror[1] * side)
    look.angle(foot, back, known, f"{incidence if given_normal else 90 - incidence}°")
    look.angle(foot, out, asked, "?")
    facts = {"ray": [-back[0], -back[1]], "mirrors": [list(mirror)], "to_normal": asked_normal}
    return float(incidence if asked_normal else 90 - incidence), facts


def _plate(look: Look, at: Vector, along: Vector, half: float, side: int) -> None:
    """A mirror through ``at``, hatched on its back: right of ``along`` for ``side`` 1."""
    a, b = shifted(at, along, -half), shifted(at, along, half)
    look.canvas.line([a, b], look.ink, 2.4)
    behind = (-along[1] * side, along[0] * side)
    for i in range(int(2 * half // 12)):
        start = shifted(a, along, 6 + 12 * i)
        end = (start[0] + behind[0] * 8 - along[0] * 6, start[1] + behind[1] * 8 - along[1] * 6)
        look.canvas.line([start, end], look.ink, 0.9)


def _corner(dice: Dice) -> tuple[int, int, float, float]:
    """The angle between two mirrors, the one between the ray and the first mirror, and how far
    from the corner both are hit; the ray leaves ``180 - wedge - first`` off the second one."""
    while True:
        wedge, first = dice.between(55, 125), dice.between(25, 65)
        second = 180 - wedge - first
        # Near a right angle it is not seen on which side of the normal the ray is.
        if 22 <= second <= 78:
            break
    base = 165.0
    # The law of sines in the triangle corner, first and second point.
    reach = base * math.sin(math.radians(first)) / math.sin(math.radians(second))
    return (wedge, first, base, reach) if reach < 150 else (wedge, first, base * 150 / reach, 150.0)


def _two_mirrors(
    look: Look, dice: Dice, given_normal: bool, asked_normal: bool
) -> tuple[float, dict[str, Any]]:
    """The lower mirror lies level, the other one rises from its right end (or left: mirrored)."""
    wedge, first, base, reach = _corner(dice)
    second = 180 - wedge - first
    side = dice.pick((1, -1))

    def d(degrees: float) -> Vector:
        x, y = turned(degrees)
        return x * side, y

    rising, incoming = d(180 - wedge), d(180 - first)
    out = _reflected(d(first), [*rising])
    ends = [d(180)[0] * base, d(180)[0] * base + incoming[0] * 110, rising[0] * (reach + 28)]
    ends += [rising[0] * reach + out[0] * 84, 0.0]
    corner = (WIDTH / 2 - (min(ends) + max(ends)) / 2, HEIGHT - 46.0)
    hit, top = shifted(corner, d(180), base), shifted(corner, rising, reach)
    _plate(look, shifted(corner, d(180), base / 2 + 20), d(0), base / 2 + 20, side)
    # Its back is on the far side of the corner.
    _plate(look, shifted(corner, rising, reach / 2 + 14), rising, reach / 2 + 14, side)
    look.ray(shifted(hit, incoming, 110), hit)
    look.ray(hit, top)
    look.ray(top, shifted(top, out, 84))
    look.angle(corner, d(180), rising, f"{wedge}°")
    known = d(90) if given_normal else d(180)
    inward = (-rising[1], rising[0]) if side > 0 else (rising[1], -rising[0])
    inward = inward if inward[0] * side < 0 else (-inward[0], -inward[1])
    for at, normal, wanted in ((hit, d(90), given_normal), (top, inward, asked_normal)):
        if wanted:
            look.canvas.dashed(at, shifted(at, normal, 74), look.ink)
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


def _media(look: Look, dice: Dice, kind: str, difficulty: int) -> tuple[float, dict[str, Any]]:
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
    look: Look,
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
    look.ray(shifted(first, directions[0], -reach), first)
    for a, b in pairwise(borders):
        look.ray(a, b)
    look.ray(last, shifted(last, directions[-1], 96))
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
