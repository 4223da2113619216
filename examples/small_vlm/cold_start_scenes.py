"""Drawn pictures of three boxes with small things in them: NLVR's kind, without end.

NLVR's half has 950 pictures, too few to learn to count from. These are drawn anew for each row:
things scattered in three boxes, or towers of blocks, with three kinds of question.

    list     everything, box by box from left to right: what an untrained tower needs most
    count    NLVR's seven forms of question. Few rows: that a picture's list answers them, and that
             listing what was asked for comes first, is left to reinforcement learning to find
    locate   the boxes around the things that are named, in pixels of the picture
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

SIDES = ("left", "middle", "right")
COLOURS = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
SHAPES = ("circle", "square", "triangle")
SIZES = {10: "small", 20: "medium", 30: "large"}
"""Pixels along an edge."""
BOX, GAP = 100, 50
"""Edge of a box and space between two, in pixels."""
PAPER, BETWEEN = (211, 211, 211), (128, 128, 128)
MOST_THINGS, TALLEST = 8, 4
"""In a box."""
FINER = 2
"""Pictures are drawn so much larger and reduced, which smooths their edges."""
MOST_LOCATED = 6
LIST_QUESTION = "<image>List the objects of each box, from left to right."
COUNT_INSTRUCTION = "Answer in <answer> tags."
LOCATE_INSTRUCTION = "Answer in <answer> tags as [[x1,y1,x2,y2],...]."
LISTED_SHARE = 0.7
"""Of the counting rows whose answers list what was asked for first."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape; ``x`` and ``y`` are its upper left corner in pixels of the picture."""

    side: int
    colour: str
    shape: str
    size: int
    x: int
    y: int

    @property
    def box(self) -> list[int]:
        return [self.x, self.y, self.x + self.size, self.y + self.size]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which things are asked for; None means any."""

    colour: str | None = None
    shape: str | None = None
    side: int | None = None

    def fits(self, thing: Thing) -> bool:
        return (
            self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
            and self.side in (None, thing.side)
        )

    @property
    def words(self) -> str:
        """``blue squares``, ``objects``."""
        return " ".join(filter(None, [self.colour, f"{self.shape or 'object'}s"]))


def listed(seed: int, difficulty: int) -> dict[str, Any]:
    """A picture, all of which is to be listed."""
    things = scene(random.Random(f"list {seed}"))
    return _row(things, LIST_QUESTION, listing(things), "list")


def counted(seed: int, difficulty: int) -> dict[str, Any]:
    """A picture and one of NLVR's forms of counting question."""
    rng = random.Random(f"count {seed}")
    things = scene(rng)
    by_box = rng.random() < 0.12
    wanted = wanted_of(rng, things, by_box)
    sides = [sum(wanted.fits(thing) for thing in things if thing.side == s) for s in range(3)]
    answer = sum(n > 0 for n in sides) if by_box else sum(sides)
    tagged = f"<answer>{answer}</answer>"
    found = listing([thing for thing in things if wanted.fits(thing)], sizes=False)
    completion = f"{found}. {tagged}" if rng.random() < LISTED_SHARE else tagged
    question = f"<image>{count_question(wanted, by_box)} {COUNT_INSTRUCTION}"
    return {**_row(things, question, str(answer), "count"), "completion": completion}


def located(seed: int, difficulty: int) -> dict[str, Any]:
    """A picture and a request for the boxes of at most six things."""
    rng = random.Random(f"locate {seed}")
    while True:
        things = scene(rng)
        wanted = Wanted(*_kind(rng, things))
        found = sorted(thing.box for thing in things if wanted.fits(thing))
        if 0 < len(found) <= MOST_LOCATED:
            break
    noun = wanted.words.removesuffix("s")
    answer = str(found).replace(" ", "")
    question = f"<image>Locate every {noun}. {LOCATE_INSTRUCTION}"
    row = _row(things, question, answer, "locate")
    return {**row, "completion": f"<answer>{answer}</answer>"}


# -- scenes


def scene(rng: random.Random) -> list[Thing]:
    """Things of all three boxes: towers as often as scattered ones."""
    fill = tower if rng.random() < 0.5 else scattered
    return [thing for side in range(3) for thing in fill(rng, side)]


def tower(rng: random.Random, side: int) -> list[Thing]:
    """One to four blocks on top of each other."""
    left = side * (BOX + GAP) + 40
    return [
        Thing(side, rng.choice(list(COLOURS)), "square", 20, left, 80 - 21 * floor)
        for floor in range(rng.randint(1, TALLEST))
    ]


def scattered(rng: random.Random, side: int) -> list[Thing]:
    """Things of all sizes that do not overlap."""
    things: list[Thing] = []
    wanted = rng.randint(1, MOST_THINGS)
    for _ in range(4 * wanted):  # a place may be taken, so some tries fail
        size = rng.choice(list(SIZES))
        x = side * (BOX + GAP) + rng.randint(0, BOX - size)
        y = rng.choice((rng.randint(0, BOX - size), BOX - size))
        new = Thing(side, rng.choice(list(COLOURS)), rng.choice(SHAPES), size, x, y)
        if all(_apart(new, old) for old in things):
            things.append(new)
        if len(things) == wanted:
            break
    return things


def _apart(one: Thing, other: Thing) -> bool:
    a, b = one.box, other.box
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def picture(things: list[Thing]) -> Image.Image:
    """The boxes ``[400 x 100]``, RGB."""
    width = 3 * BOX + 2 * GAP
    image = Image.new("RGB", (width * FINER, BOX * FINER), PAPER)
    draw = ImageDraw.Draw(image)
    for gap in (BOX, 2 * BOX + GAP):
        draw.rectangle([gap * FINER, 0, (gap + GAP) * FINER - 1, BOX * FINER], fill=BETWEEN)
    for thing in things:
        x1, y1, x2, y2 = (FINER * edge for edge in thing.box)
        fill = COLOURS[thing.colour]
        if thing.shape == "circle":
            draw.ellipse([x1, y1, x2 - 1, y2 - 1], fill=fill)
        elif thing.shape == "square":
            draw.rectangle([x1, y1, x2 - 1, y2 - 1], fill=fill)
        else:
            draw.polygon([((x1 + x2) / 2, y1), (x2 - 1, y2 - 1), (x1, y2 - 1)], fill=fill)
    return image.reduce(FINER)


# -- words


def listing(things: list[Thing], *, sizes: bool = True) -> str:
    """``left: small black circle, large blue square; middle: nothing; ...``."""
    texts = []
    for side, name in enumerate(SIDES):
        inside = sorted((t for t in things if t.side == side), key=lambda t: (t.x, t.y))
        names = [f"{SIZES[t.size]} " * sizes + f"{t.colour} {t.shape}" for t in inside]
        texts.append(f"{name}: {', '.join(names) or 'nothing'}")
    return "; ".join(texts)


def count_question(wanted: Wanted, by_box: bool) -> str:
    if by_box:
        noun = wanted.words.removesuffix("s")
        return f"How many boxes contain at least one {noun}?"
    if wanted.side is not None:
        return f"How many {wanted.words} are there in the {SIDES[wanted.side]} box?"
    total = " in total" if wanted == Wanted() else ""
    return f"How many {wanted.words} are there{total}?"


def wanted_of(rng: random.Random, things: list[Thing], by_box: bool) -> Wanted:
    """What a counting question asks for, in NLVR's proportions."""
    colour, shape = _kind(rng, things)
    if by_box:
        return Wanted(colour or rng.choice(list(COLOURS)), shape or rng.choice(SHAPES))
    form = rng.random()
    if form < 0.36:
        return Wanted(colour or rng.choice(list(COLOURS)), shape or rng.choice(SHAPES))
    if form < 0.54:
        return Wanted(colour or rng.choice(list(COLOURS)))
    if form < 0.65:
        return Wanted(shape=shape or rng.choice(SHAPES))
    if form < 0.72:
        return Wanted()
    named = colour or rng.choice(list(COLOURS))
    return Wanted(named if form < 0.88 else None, side=rng.randrange(3))


def _kind(rng: random.Random, things: list[Thing]) -> tuple[str | None, str | None]:
    """Colour and shape to ask for, mostly those of something that is there."""
    if rng.random() < 0.2:
        return rng.choice(list(COLOURS)), rng.choice(SHAPES)
    thing = rng.choice(things)
    part = rng.random()
    return (thing.colour if part < 0.8 else None), (thing.shape if part > 0.3 else None)


def _row(things: list[Thing], problem: str, answer: str, task: str) -> dict[str, Any]:
    return {
        "images": [picture(things)],
        "problem": problem,
        "answer": answer,
        "task": task,
        "metadata": {"objects": len(things)},
    }
