"""Star fields: round spots on a dark sky, the brighter the larger.

    brightest   which of the stars with a letter is the brightest
    count       how many stars are at least as bright as the one in the ring
    separation  angle between two stars with letters, by the scale bar

The answer is drawn first. With difficulty there are more stars, magnitudes come closer, the sky is
grainier and letters are smaller.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from foveal.tasks.base import Drawn, DrawnTask, plain
from foveal.tasks.canvas import Canvas
from foveal.tasks.dice import Dice

SIZE = 280
FLOOR = SIZE - 34
"""The scale bar lies below; stars do not."""
LETTERS = "ABCDEFGHJK"
TINTS = ((255, 255, 255), (205, 220, 255), (255, 240, 210), (255, 222, 190))

TEMPLATES = {
    "brightest": (
        "Which star with a letter is the brightest (the largest spot)?",
        "Which of the lettered stars has the largest spot, so is the brightest?",
    ),
    "count": (
        "How many stars are at least as bright as the ringed one, itself counted? "
        "Brighter stars have larger spots.",
        "Count the stars whose spot is not smaller than that of the ringed star, itself counted.",
    ),
    "separation": (
        "How far apart are {a} and {b}, in arc minutes, by the scale bar?",
        "Find the angle between {a} and {b} in arc minutes; use the scale bar.",
    ),
}


class StarsTask(DrawnTask):
    """The task family "stars"."""

    name: str = "stars"
    kinds: ClassVar[tuple[str, ...]] = ("brightest", "count", "separation")

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        kind = dice.pick(self.kinds)
        n = (8, 12, 18, 26, 36)[difficulty - 1]
        letters = LETTERS[: 4 + difficulty] if kind != "count" else ""
        bar = dice.pick((5, 10, 20, 30, 60))
        metadata: dict[str, Any] = {"kind": kind, "bar": bar, "bar_pixels": 0.0, "tolerance": 0.0}
        metadata |= {"ringed": -1, "asked": []}
        if kind == "separation":
            # The angle is drawn, then the scale that makes two stars lie so far apart.
            letters = LETTERS[: 2 + difficulty]
            places, answer = _apart(dice, n, metadata)
            metadata["asked"] = [0, 1]
        else:
            places, answer = _places(dice, n, []), ""
            metadata["bar_pixels"] = dice.uniform(45, 90)
        magnitudes, count = _magnitudes(dice, kind, n, len(letters), difficulty)
        if kind == "count":
            metadata["ringed"], answer = 0, str(count)
        order = dice.shuffled(letters)
        names = [order[i] if i < len(order) else "" for i in range(n)]
        if kind == "brightest":
            answer = names[0]
        metadata["stars"] = [
            {"x": x, "y": y, "magnitude": m, "name": name}
            for (x, y), m, name in zip(places, magnitudes, names, strict=True)
        ]
        picture = _draw(dice, metadata, difficulty)
        question = dice.pick(TEMPLATES[kind]).format(a=names[0], b=names[1])
        return Drawn(picture, question, answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From the stars' places and magnitudes (smaller is brighter) and the bar."""
        stars = metadata["stars"]
        if metadata["kind"] == "brightest":
            named = [star for star in stars if star["name"]]
            return min(named, key=lambda star: star["magnitude"])["name"]
        if metadata["kind"] == "count":
            limit = stars[metadata["ringed"]]["magnitude"]
            return str(sum(star["magnitude"] <= limit for star in stars))
        a, b = (stars[i] for i in metadata["asked"])
        pixels = math.hypot(a["x"] - b["x"], a["y"] - b["y"])
        return plain(round(pixels / metadata["bar_pixels"] * metadata["bar"], 1))


def _apart(dice: Dice, n: int, metadata: dict[str, Any]) -> tuple[list[tuple[float, float]], str]:
    """Places of which the first two are an angle apart that is drawn; sets the bar's length."""
    bar_pixels = dice.uniform(40, 80)
    bars = dice.between(10, 24) / 10
    distance = bars * bar_pixels
    while True:
        x, y, turn = dice.uniform(25, SIZE - 25), dice.uniform(25, FLOOR), dice.uniform(0, math.tau)
        end = (x + distance * math.cos(turn), y + distance * math.sin(turn))
        if 25 < end[0] < SIZE - 25 and 25 < end[1] < FLOOR:
            break
    metadata["bar_pixels"] = bar_pixels
    metadata["tolerance"] = round(metadata["bar"] * bars * 0.05, 4)
    return _places(dice, n, [(x, y), end]), plain(round(bars * metadata["bar"], 1))


def _places(dice: Dice, n: int, places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """``n`` places that begin with the given ones, no two close."""
    while len(places) < n:
        new = (dice.uniform(16, SIZE - 16), dice.uniform(16, FLOOR))
        if all(math.dist(new, old) > 25 for old in places):
            places.append(new)
    return places


def _magnitudes(
    dice: Dice, kind: str, n: int, letters: int, difficulty: int
) -> tuple[list[float], int]:
    """Steps of magnitude are the gap between what must be told apart; and the count asked for."""
    gap = (1.6, 1.2, 0.9, 0.7, 0.5)[difficulty - 1]
    if kind == "count":
        limit = dice.uniform(2.5, 3.0)
        count = dice.between(1, (4, 6, 9, 12, 15)[difficulty - 1])
        bright = [limit - gap - dice.uniform(0, 2.0 - gap * 0.5) for _ in range(count - 1)]
        dim = [limit + gap + dice.uniform(0, 1.2) for _ in range(n - count)]
        return [limit, *dice.shuffled([*bright, *dim])], count
    best = dice.uniform(0.5, 1.5)
    named = [best, *(best + gap + dice.uniform(0, 2) for _ in range(letters - 1))]
    # Stars without a letter may be brighter: the letters have to be looked at.
    return named + [dice.uniform(0.3, 4.5) for _ in range(n - letters)], 0


def _radius(magnitude: float) -> float:
    """Pixels; each magnitude leaves 55% of the area."""
    return 8.5 * 10 ** (-0.13 * magnitude)


def _draw(dice: Dice, metadata: dict[str, Any], difficulty: int) -> Any:
    sky = dice.pick(((8, 10, 24), (14, 12, 30), (6, 16, 26), (18, 18, 20)))
    canvas, size = Canvas(SIZE, SIZE, sky), (15, 14, 13, 12, 11)[difficulty - 1]
    for i, star in enumerate(metadata["stars"]):
        at, radius = (star["x"], star["y"]), _radius(star["magnitude"])
        glow = tuple(c + 34 for c in sky)
        canvas.disc(at, radius * 1.35, (glow[0], glow[1], glow[2]))
        canvas.disc(at, radius, dice.pick(TINTS))
        if i == metadata["ringed"]:
            canvas.disc(at, 13, None, (255, 90, 90), 1.5)
    for star in metadata["stars"]:
        if star["name"]:
            place = _beside(star, metadata["stars"], size)
            canvas.text(place, star["name"], size, (120, 235, 140), halo=sky)
    if metadata["kind"] == "separation":
        y, x = SIZE - 14, dice.uniform(14, 60)
        end = x + metadata["bar_pixels"]
        canvas.line([(x, y - 4), (x, y + 4)], (235, 235, 235), 1.5)
        canvas.line([(end, y - 4), (end, y + 4)], (235, 235, 235), 1.5)
        canvas.line([(x, y), (end, y)], (235, 235, 235), 1.5)
        canvas.text((end + 8, y), f"{metadata['bar']} arcmin", 12, (235, 235, 235), "lm")
    return canvas.finish(dice, (3, 5, 8, 11, 15)[difficulty - 1])


def _beside(star: dict[str, Any], stars: list[dict[str, Any]], size: float) -> tuple[float, float]:
    """Of the four corners of the star, the one for its letter that is furthest from others."""
    off = _radius(star["magnitude"]) + size * 0.55
    x, y = star["x"], star["y"]
    corners = [(x + i * off, y + j * off * 0.75) for j in (-1, 1) for i in (1, -1)]
    inside = [c for c in corners if 8 < c[0] < SIZE - 8 and 8 < c[1] < FLOOR + 6]
    others = [other for other in stars if other is not star]
    return max(inside, key=lambda c: min(math.dist(c, (o["x"], o["y"])) for o in others))
