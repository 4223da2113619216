"""Exercises with amounts: fractions of a figure, a pair of scales, a Venn diagram, a lever.

Each is three functions: ``make_*`` draws an exercise from the dice, ``draw_*`` prints its figure,
``letters_*`` finds the unknowns from what the figure shows, without the answer.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from foveal.tasks.dice import Dice
from foveal.tasks.textbook.lines import Letters
from foveal.tasks.textbook.page import AREA, WIDTH, Exercise, Pen


def make_fraction(dice: Dice, difficulty: int) -> Exercise:
    """``shaded`` parts of equal ones; scattered where it is hard."""
    parts = dice.between(3 + difficulty // 2, 8 + difficulty)
    count = dice.between(1, parts - 1)
    start = dice.below(parts)
    shaded = [(start + i) % parts for i in range(count)]
    if difficulty > 2:
        shaded = dice.sample(range(parts), count)
    what = dice.pick(("part", "amount"))
    each = dice.between(2, 5 + 4 * difficulty)
    total = parts * each if what == "amount" else 0
    facts = {
        "form": dice.pick(("bar", "pie", "grid")),
        "parts": parts,
        "shaded": sorted(shaded),
        "total": total,
    }
    share = Fraction(count, parts)
    answer = str(each * count) if total else f"{share.numerator}/{share.denominator}"
    steps = [f"{total} ÷ {parts} = {{{each}}}", f"{{{count}}} · {each} = {{{each * count}}}"]
    return Exercise(what, facts, answer, steps if total else [])


def draw_fraction(pen: Pen, facts: dict[str, Any]) -> None:
    parts, shaded = facts["parts"], facts["shaded"]
    pale = (255, 255, 255)
    high = AREA - (26 if facts["total"] else 4)
    if facts["total"]:
        pen.put((WIDTH / 2, AREA - 12), pen.words["whole"].format(n=facts["total"]))
    if facts["form"] == "pie":
        centre, radius = pen.at(WIDTH / 2, high / 2), high / 2 - 4
        for i in range(parts):
            ends = (i * 360 / parts - 90, (i + 1) * 360 / parts - 90)
            pen.canvas.slice(centre, radius, ends, pen.mark if i in shaded else pale)
            tip = [
                centre[j] + radius * (math.cos, math.sin)[j](math.radians(ends[0])) for j in (0, 1)
            ]
            pen.canvas.line([centre, tip], pen.ink, 1.4)
        pen.canvas.disc(centre, radius, None, pen.ink, 1.6)
        return
    # A grid has two rows where the number of parts allows.
    rows = 2 if facts["form"] == "grid" and parts % 2 == 0 else 1
    columns, left = parts // rows, 40.0
    width, height = (WIDTH - 2 * left) / columns, min(high - 40, 50.0 * rows) / rows
    top = (high - height * rows) / 2 + pen.top
    for i in range(parts):
        x, y = left + i % columns * width, top + i // columns * height
        fill = pen.mark if i in shaded else pale
        pen.canvas.box([x, y, x + width, y + height], fill, pen.ink)


def letters_fraction(facts: dict[str, Any]) -> Letters:
    share = Fraction(len(set(facts["shaded"])), facts["parts"])
    return {"part": share, "amount": share * facts["total"]}


def make_balance(dice: Dice, difficulty: int) -> Exercise:
    """``boxes`` of x kg and ``weights`` in kg on the left and right pan."""
    x = dice.between(2, 7 + 3 * difficulty)
    more = dice.between(1 + (difficulty > 2), 2 + difficulty // 2)
    right = dice.between(0, 2) if difficulty > 1 else 0
    left = right + more
    # Which side has the weights of its own is free; the other side makes up for the boxes.
    extra = dice.between(1, 9 + 3 * difficulty) if difficulty > 1 else 0
    heavy = more * x + extra
    boxes, weights = [left, right], [extra, heavy]
    terms = [_side(boxes[i], weights[i]) for i in (0, 1)]
    steps = [f"{terms[0]} = {terms[1]}", f"{_times(more)} = {{{more * x}}}", f"x = {{{x}}}"]
    if dice.below(2):
        boxes, weights = boxes[::-1], weights[::-1]
    split = difficulty > 2
    discs = [_discs(dice, weight, split) for weight in weights]
    return Exercise("x", {"boxes": boxes, "weights": discs}, str(x), steps)


def _times(count: int) -> str:
    return "x" if count == 1 else f"{count}x"


def _side(boxes: int, weight: int) -> str:
    parts = ([_times(boxes)] if boxes else []) + ([f"{{{weight}}}"] if weight else [])
    return " + ".join(parts)


def _discs(dice: Dice, weight: int, split: bool) -> list[int]:
    if not split or weight < 4:
        return [weight] if weight else []
    first = dice.between(1, weight - 1)
    return [first, weight - first]


def draw_balance(pen: Pen, facts: dict[str, Any]) -> None:
    middle, base = WIDTH / 2, AREA - 14.0
    pen.line([(middle - 40, base + 6), (middle + 40, base + 6)], width=4)
    pen.line([(middle, base + 6), (middle, base - 40)], width=4)
    pen.line([(52, base - 40), (WIDTH - 52, base - 40)], width=3)
    for side, centre in enumerate((102.0, WIDTH - 102.0)):
        pen.line([(centre - 88, base - 52), (centre + 88, base - 52)], width=3)
        pen.line([(centre, base - 52), (centre, base - 40)], width=3)
        things = ["x"] * facts["boxes"][side] + [f"{n}" for n in facts["weights"][side]]
        _stack(pen, things, centre, base - 54)


def _stack(pen: Pen, things: list[str], centre: float, floor: float) -> None:
    """Boxes beside each other in rows of four, weights as the last ones."""
    rows = [things[i : i + 4] for i in range(0, len(things), 4)]
    for number, row in enumerate(rows):
        for i, text in enumerate(row):
            x, y = centre + (i - (len(row) - 1) / 2) * 43, floor - number * 40
            if text == "x":
                frame = [x - 18, y + pen.top - 36, x + 18, y + pen.top]
                pen.canvas.box(frame, (255, 255, 255), pen.mark)
                pen.put((x, y - 18), text, pen.mark, larger=2)
            else:
                corners = [(x - 14, y - 32), (x + 14, y - 32), (x + 20, y), (x - 20, y)]
                pen.canvas.polygon([pen.at(*c) for c in corners], (90, 95, 105))
                pen.put((x, y - 20), text, (255, 255, 255), larger=-1)
                pen.put((x, y - 8), pen.words["units"]["kg"], (255, 255, 255), larger=-4)


def letters_balance(facts: dict[str, Any]) -> Letters:
    boxes, weights = facts["boxes"], [sum(side) for side in facts["weights"]]
    return {"x": Fraction(weights[1] - weights[0], boxes[0] - boxes[1])}


def make_venn(dice: Dice, difficulty: int) -> Exercise:
    """Regions: only the left group, both, only the right one, neither."""
    most = 6 + 6 * difficulty
    a, both, b, none = (dice.between(2, most) for _ in range(4))
    what = dice.pick(("all", "union", "one", "missing"))
    hidden = dice.below(4) if what == "missing" else -1
    regions = [a, both, b, none]
    left = dice.below(2) == 1
    side = a if left else b
    answer, steps = {
        "all": (side + both, [f"{{{side}}} + {{{both}}} = {{{side + both}}}"]),
        "union": (a + both + b, [f"{a} + {{{both}}} + {b} = {{{a + both + b}}}"]),
        "one": (a + b, [f"{{{a}}} + {{{b}}} = {{{a + b}}}"]),
        "missing": (regions[hidden], _missing(regions, hidden)),
    }[what]
    facts = {
        "regions": [-1 if i == hidden else n for i, n in enumerate(regions)],
        "groups": [],
        "left": left,
        "total": sum(regions) if what == "missing" else -1,
    }
    return Exercise(what, facts, str(answer), steps)


def _missing(regions: list[int], hidden: int) -> list[str]:
    known = [n for i, n in enumerate(regions) if i != hidden]
    first = f"{known[0]} + {{{known[1]}}} + {known[2]} = {{{sum(known)}}}"
    return [first, f"{{{sum(regions)}}} − {sum(known)} = {{{regions[hidden]}}}"]


def draw_venn(pen: Pen, facts: dict[str, Any]) -> None:
    middle, y, radius = WIDTH / 2, 88.0, 58.0
    pen.canvas.box([44, pen.top + 4, WIDTH - 44, pen.top + AREA - 4], None, pen.ink)
    for side in (-1, 1):
        pen.canvas.disc(pen.at(middle + side * 40, y), radius, None, pen.mark, 2)
        name = facts["groups"][side > 0]
        pen.put((middle + side * 72, 18), name, pen.mark)
    texts = ["?" if n < 0 else str(n) for n in facts["regions"]]
    places = [(middle - 66, y), (middle, y), (middle + 66, y), (WIDTH - 64, AREA - 30)]
    for place, text in zip(places, texts, strict=True):
        pen.put(place, text, larger=2)
    if facts["total"] >= 0:
        text = pen.words["pupils"].format(n=facts["total"])
        pen.put((54, AREA - 14), text, anchor="l", larger=-1)


def letters_venn(facts: dict[str, Any]) -> Letters:
    a, both, b, _ = facts["regions"]
    known = sum(n for n in facts["regions"] if n >= 0)
    values = {
        "all": (a if facts["left"] else b) + both,
        "union": a + both + b,
        "one": a + b,
        "missing": facts["total"] - known,
    }
    return {name: Fraction(value) for name, value in values.items()}


def make_lever(dice: Dice, difficulty: int) -> Exercise:
    """Two forces on a beam; one force or one distance is unknown."""
    while True:
        force, arm = dice.between(2, 6 + 6 * difficulty), dice.between(2, 8 + 2 * difficulty)
        other_arm = dice.between(2, 8 + 2 * difficulty)
        other = Fraction(force * arm, other_arm)
        fine = other.denominator == 1 or (difficulty > 2 and other.denominator in (2, 5))
        if fine and other_arm != arm and 2 <= other <= 80:
            break
    what = dice.pick(("F", "d"))
    turn, found = force * arm, other_arm if what == "d" else other
    shown = f"{float(other):g}"
    steps = {
        "F": [
            f"{{{force}}} · {arm} = F · {other_arm}",
            f"{{{turn}}} = F · {other_arm}",
            f"F = {{{shown}}}",
        ],
        "d": [
            f"{{{force}}} · {arm} = {shown} · d",
            f"{{{turn}}} = {shown} · d",
            f"d = {{{found}}}",
        ],
    }[what]
    forces: list[float] = [force, -1.0 if what == "F" else float(other)]
    arms = [arm, -1 if what == "d" else other_arm]
    if dice.below(2):
        forces, arms = forces[::-1], arms[::-1]
    return Exercise(what, {"forces": forces, "arms": arms}, f"{float(found):g}", steps)


def draw_lever(pen: Pen, facts: dict[str, Any]) -> None:
    units = pen.words["units"]
    # Arms are no scale drawing: the unknown one would be read off.
    middle, y = WIDTH / 2, 66.0
    pen.line([(44, y), (WIDTH - 44, y)], width=5)
    corners = [pen.at(middle, y + 3), pen.at(middle - 16, y + 30), pen.at(middle + 16, y + 30)]
    pen.canvas.polygon(corners, pen.mark)
    for side, force, arm in zip((-1, 1), facts["forces"], facts["arms"], strict=True):
        x = middle + side * 140
        pen.line([(x, y), (x, y + 52)], pen.mark, 2)
        pen.line([(x - 5, y + 43), (x, y + 53), (x + 5, y + 43)], pen.mark, 2)
        text = "F" if force < 0 else f"{pen.number(force)} {units['N']}"
        pen.put((x, y + 70), text, pen.mark, larger=1)
        pen.line([(middle, y - 26), (x, y - 26)], width=1)
        pen.line([(x, y - 32), (x, y - 20)], width=1)
        text = "d" if arm < 0 else f"{pen.number(arm)} {units['cm']}"
        pen.put((middle + side * 70, y - 40), text)
    pen.line([(middle, y - 32), (middle, y - 20)], width=1)


def letters_lever(facts: dict[str, Any]) -> Letters:
    known = next(i for i in (0, 1) if facts["forces"][i] > 0 and facts["arms"][i] > 0)
    turn = Fraction(facts["forces"][known]) * Fraction(facts["arms"][known])
    force, arm = facts["forces"][1 - known], facts["arms"][1 - known]
    if force < 0:
        return {"F": turn / Fraction(arm)}
    return {"d": turn / Fraction(force).limit_denominator(100)}
