"""An object before a thin lens: distances, size, and where the image is."""

from __future__ import annotations

from typing import Any

from foveal.tasks.base import plain
from foveal.tasks.dice import Dice
from foveal.tasks.rays import HEIGHT, WIDTH, Look, Vector


def lens_scene(look: Look, dice: Dice, kind: str, difficulty: int) -> tuple[float, dict[str, Any]]:
    """Draw an object before a lens; the distance of the image (for ``kind`` "size" its height),
    both without sign, and the facts for the metadata."""
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
    look: Look, dice: Dice, sizes: tuple[float, float, float], kind: str, difficulty: int
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


def _span(look: Look, a: float, b: float, y: float, text: str) -> None:
    """A dimension line; a text that is wider than the line stands below it."""
    middle = ((a + b) / 2, y)
    for end in (a, b):
        look.canvas.arrow(middle, (end, y), look.ink, 0.9, min(7.0, abs(a - b) / 3))
    wide = look.canvas.text_width(text, look.size) + 24 > abs(a - b)
    look.note((middle[0], y + (13 if wide else 0)), text)


def _glass(look: Look, x: float, axis: float, converging: bool) -> None:
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


def meeting(metadata: dict[str, Any]) -> tuple[float, float]:
    """Distance and size of the image: the ray through the middle of the lens meets the one that
    came in level and leaves through (or from) a focal point."""
    far, high, focal = metadata["object"], metadata["height"], metadata["focal"]
    # Middle ray: y = -high / far * x. Level ray, behind the lens: y = high - high / focal * x.
    x = high / (high / focal - high / far)
    return abs(x), abs(-high / far * x)
