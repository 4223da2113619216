"""Counting and locating coloured shapes: pictures, questions and exact answers from a seed.

A picture is a grid of 4 by 4 cells. A cell holds at most one shape, of one colour, at a random size
and place inside the cell, so shapes never touch. Three kinds of question:

    count      "How many red circles are there?"                            -> "3"
    quadrant   "Where is the blue square: top or bottom, left or right?"    -> "top left"
    cell       "Which cell, A1 top left to D4 bottom right, holds the ...?" -> "B3"

The answer is drawn first and the picture built around it, so every answer of a kind is equally
likely and a policy that does not look at the picture gains nothing from the question.

The same seed gives the same pixels on every machine: only ``random.Random.random`` is used (the one
method whose sequence Python promises to keep), and shapes are integer inequalities, not Pillow's
drawing, whose edges differ between its versions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from foveal.rewards.extract import after_thinking, completion_text
from foveal.tasks.dice import Dice

if TYPE_CHECKING:
    from PIL.Image import Image

GRID = 4
COLOURS = {
    "red": (214, 40, 40),
    "green": (38, 160, 65),
    "blue": (45, 85, 220),
    "yellow": (240, 205, 40),
    "purple": (150, 60, 190),
    "orange": (245, 135, 25),
}
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "shape": "shapes",
}
SHAPES = ("circle", "square", "triangle", "cross")
BACKGROUNDS = ((255, 255, 255), (236, 236, 230), (222, 228, 236))
KINDS = ("count", "quadrant", "cell")
QUADRANTS = (("top left", "top right"), ("bottom left", "bottom right"))

TEMPLATES = {
    "count": (
        "How many {things} are there?",
        "How many {things} does the picture show?",
        "Count the {things}.",
        "What is the number of {things}?",
    ),
    "quadrant": (
        "Where is the {thing}: top or bottom, left or right?",
        "Is the {thing} at the top or bottom, left or right?",
        "Which quarter holds the {thing}: top or bottom, left or right?",
    ),
    "cell": (
        "Which cell, A1 top left to D4 bottom right, holds the {thing}?",
        "In which cell, A1 top left to D4 bottom right, is the {thing}?",
        "Name the cell of the {thing}, A1 top left to D4 bottom right.",
    ),
}
INSTRUCTION = "Answer in <answer> tags."


@dataclass(frozen=True, slots=True)
class Level:
    """What a difficulty means: the ranges from which a picture is drawn, ends included."""

    fewest: int
    """Fewest shapes in a picture."""
    most: int
    """Most shapes in a picture."""
    largest_count: int
    """Largest answer to a counting question; all of 0 to this one are equally likely."""
    colours: int
    """How many of ``COLOURS`` appear, from the first."""
    shapes: int
    """How many of ``SHAPES`` appear, from the first."""


LEVELS = {
    1: Level(fewest=1, most=3, largest_count=3, colours=3, shapes=3),
    2: Level(fewest=2, most=5, largest_count=4, colours=4, shapes=3),
    3: Level(fewest=4, most=8, largest_count=5, colours=4, shapes=4),
    4: Level(fewest=6, most=10, largest_count=6, colours=5, shapes=4),
    5: Level(fewest=8, most=14, largest_count=7, colours=6, shapes=4),
}


@dataclass(frozen=True, slots=True)
class ShapesTask:
    """The task family "shapes"; the registry holds one with these defaults."""

    size: int = 112
    """Width and height of a picture in pixels, at least 56. A cell is a quarter of it; at 112 a
    cell is 28 px wide: one merged patch of Qwen2.5-VL."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of question that rows are drawn from."""

    def __post_init__(self) -> None:
        if self.size < 56 or self.size % GRID:
            raise ValueError(
                f"size is {self.size}; it must be a multiple of {GRID} and at least 56 pixels"
            )
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds is {self.kinds}; choose one or more of {', '.join(KINDS)}")

    @property
    def name(self) -> str:
        return "shapes"

    def generate(self, seed: int, difficulty: int = 3) -> dict[str, Any]:
        """One row: ``images`` (one RGB picture), ``problem``, ``answer``, ``task``,
        ``difficulty`` and ``metadata`` (what was asked, and every object's colour, shape, cell
        ``[column, row]`` and box ``[left, top, right, bottom]`` in pixels, right and bottom
        excluded).

        Args:
            seed: 0 or more; the same seed and difficulty give the same row on every machine.
            difficulty: a key of ``LEVELS``.

        Raises:
            ValueError: for a negative seed or an unknown difficulty.
        """
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be 0 or more")
        if difficulty not in LEVELS:
            raise ValueError(f"difficulty is {difficulty!r}; choose one of {sorted(LEVELS)}")
        dice = Dice(seed * (max(LEVELS) + 1) + difficulty)
        level = LEVELS[difficulty]
        kind = dice.pick(self.kinds)
        asked = _draw_asked(dice, level)
        matches = dice.below(level.largest_count + 1) if kind == "count" else 1
        objects = _draw_objects(dice, level, asked, matches, self.size // GRID)
        metadata = {"kind": kind, **asked, "objects": objects, "size": self.size}
        # The first object is one of those asked for, by construction.
        answer = str(matches) if kind == "count" else _place(kind, objects[0]["cell"])
        return {
            "images": [_draw(objects, self.size, dice.pick(BACKGROUNDS))],
            "problem": f"<image>{_question(dice, kind, asked)} {INSTRUCTION}",
            "answer": answer,
            "task": self.name,
            "difficulty": difficulty,
            "metadata": metadata,
        }

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Solve a row from its metadata, without the answer.

        Raises:
            ValueError: if the question does not fit the objects (not exactly one to locate).
        """
        colour, shape = metadata["colour"], metadata["shape"]
        found = [
            thing
            for thing in metadata["objects"]
            if colour in (None, thing["colour"]) and shape in (None, thing["shape"])
        ]
        if metadata["kind"] == "count":
            return str(len(found))
        if len(found) != 1:
            raise ValueError(f"{len(found)} objects match {colour} {shape}; a place needs one")
        return _place(metadata["kind"], found[0]["cell"])

    def reward(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        """See ``shapes_reward``."""
        return shapes_reward(prompts, completions, **columns)


def shapes_reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """1.0 for the right answer in ``<answer>`` tags, else 0.0.

    Right means: exactly one opening and one closing tag in the whole completion, and between them
    the answer and nothing else, up to letter case and white space. A list of guesses, a second
    pair of tags, a tag that is never closed or an answer inside of the thinking earns nothing.

    Args:
        prompts: not used; the signature is TRL's.
        completions: B texts, or B conversations whose last message is the completion.
        columns: the data set's columns, B values each; ``answer`` is needed.

    Raises:
        ValueError: without the column ``answer``, or if its length is not B.
    """
    if "answer" not in columns:
        raise ValueError("shapes_reward needs the column 'answer'; rows of this task have it")
    answers = columns["answer"]
    if len(answers) != len(completions):
        raise ValueError(
            f"shapes_reward got {len(completions)} completions and {len(answers)} answers; "
            "give one answer for each completion"
        )
    return [
        float(_answer_in(completion_text(completion)) == _plain(str(answer)))
        for completion, answer in zip(completions, answers, strict=True)
    ]


def _answer_in(text: str) -> str | None:
    if len(re.findall(r"</?answer\b", text, re.IGNORECASE)) != 2:
        return None
    match = re.search(r"<answer>([^<>]*)</answer>", after_thinking(text))
    return _plain(match.group(1)) if match else None


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()


def _draw_asked(dice: Dice, level: Level) -> dict[str, str | None]:
    """The colour, the shape or both that the question names; None leaves one free."""
    by = dice.pick(("colour", "shape", "both"))
    colour = dice.pick(list(COLOURS)[: level.colours])
    shape = dice.pick(SHAPES[: level.shapes])
    return {
        "colour": None if by == "shape" else colour,
        "shape": None if by == "colour" else shape,
    }


def _draw_objects(
    dice: Dice, level: Level, asked: dict[str, str | None], matches: int, cell_px: int
) -> list[dict[str, Any]]:
    """``matches`` objects of the kind asked for, then the others, in random cells."""
    total = dice.between(max(level.fewest, matches), level.most)
    looks = [(c, s) for c in list(COLOURS)[: level.colours] for s in SHAPES[: level.shapes]]
    colour, shape = asked["colour"], asked["shape"]
    wanted = [(c, s) for c, s in looks if colour in (None, c) and shape in (None, s)]
    others = [look for look in looks if look not in wanted]
    # Half of the others share the colour or the shape, so that both must be looked at.
    near = [(c, s) for c, s in others if c == colour or s == shape] or others
    cells = dice.sample([(x, y) for y in range(GRID) for x in range(GRID)], total)
    objects = []
    for number, (column, row) in enumerate(cells):
        pool = wanted if number < matches else near if dice.below(2) else others
        look = dice.pick(pool)
        box = _draw_box(dice, column, row, cell_px)
        objects.append({"colour": look[0], "shape": look[1], "cell": [column, row], "box": box})
    return objects


def _draw_box(dice: Dice, column: int, row: int, cell_px: int) -> list[int]:
    """A square box of odd width inside the cell, at least one pixel from its edges."""
    radius = dice.between(cell_px * 3 // 14, (cell_px - 3) // 2)
    width = 2 * radius + 1
    left = column * cell_px + dice.between(1, cell_px - 1 - width)
    top = row * cell_px + dice.between(1, cell_px - 1 - width)
    return [left, top, left + width, top + width]


def _question(dice: Dice, kind: str, asked: dict[str, str | None]) -> str:
    noun = asked["shape"] or "shape"
    lead = [asked["colour"]] if asked["colour"] else []
    # "the only triangle": other colours of it do not exist in the picture.
    only = [] if asked["colour"] and asked["shape"] else ["only"]
    things = " ".join([*lead, PLURALS[noun]])
    thing = " ".join([*only, *lead, noun])
    return dice.pick(TEMPLATES[kind]).format(things=things, thing=thing)


def _place(kind: str, cell: Sequence[int]) -> str:
    """The name of a cell ``[column, row]``: "B3", or the quarter of the picture it lies in."""
    column, row = cell
    if kind == "cell":
        return f"{'ABCD'[column]}{row + 1}"
    return QUADRANTS[row * 2 // GRID][column * 2 // GRID]


def _draw(objects: list[dict[str, Any]], size: int, background: tuple[int, int, int]) -> Image:
    from PIL import Image

    picture = Image.new("RGB", (size, size), background)
    for thing in objects:
        left, top, right, _ = thing["box"]
        mask = _mask(thing["shape"], (right - left) // 2)
        picture.paste(COLOURS[thing["colour"]], (left, top), mask)
    return picture


@lru_cache(maxsize=512)
def _mask(shape: str, radius: int) -> Image:
    """255 inside the shape, 0 outside; a square of ``2 * radius + 1`` pixels that it fills."""
    from PIL import Image

    steps = range(-radius, radius + 1)
    inside = {
        "circle": lambda x, y: x * x + y * y <= radius * radius + radius,
        "square": lambda x, y: True,
        "triangle": lambda x, y: 2 * abs(x) <= y + radius,
        "cross": lambda x, y: 3 * min(abs(x), abs(y)) <= radius,
    }[shape]
    pixels = bytes(255 if inside(x, y) else 0 for y in steps for x in steps)
    return Image.frombytes("L", (len(steps), len(steps)), pixels)
