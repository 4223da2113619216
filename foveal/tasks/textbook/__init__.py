"""Pages of a school book in several languages, with a worked solution or without.

    triangle  an angle from the other two, one of them outside
    line      a number line: the value at an arrow
    fraction  the shaded part of a figure, as a fraction or as an amount
    balance   a balanced pair of scales: the mass of a box
    slope     a line on a grid: its slope or y intercept
    venn      two groups of pupils: a sum of regions, or the missing one
    lever     a balanced lever: a force or a distance

Two forms of question: ``explain`` asks for the working and the answer; in ``blank`` a worked
solution stands in the picture and the number that belongs in its empty box is asked for. With
difficulty numbers get larger, fractional and negative, lines of the solution go missing, the
question may stand in the picture alone, text shrinks and grain is added.

Questions and pictures are in English, German, Spanish or French (``metadata["language"]``), with
decimal commas where the language has them; an answer may have a comma there too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from foveal.rewards.extract import completion_texts
from foveal.rewards.number import number_within
from foveal.tasks.base import Drawn, DrawnTask, plain, tolerant_reward
from foveal.tasks.canvas import INKS, PALETTE, PAPERS, Canvas
from foveal.tasks.dice import Dice
from foveal.tasks.lettering import Look, random_look, text_width
from foveal.tasks.textbook import amounts, lines
from foveal.tasks.textbook.page import AREA, WIDTH, Exercise, Pen, unsigned
from foveal.tasks.textbook.steps import leave_out, solve_line
from foveal.tasks.textbook.words import DECIMAL_COMMA, LANGUAGES, WORDS

Letters = dict[str, Any]
KINDS: dict[str, tuple[Callable[..., Exercise], Callable[..., None], Callable[..., Letters]]] = {
    "triangle": (lines.make_triangle, lines.draw_triangle, lines.letters_triangle),
    "line": (lines.make_line, lines.draw_line, lines.letters_line),
    "fraction": (amounts.make_fraction, amounts.draw_fraction, amounts.letters_fraction),
    "balance": (amounts.make_balance, amounts.draw_balance, amounts.letters_balance),
    "slope": (lines.make_slope, lines.draw_slope, lines.letters_slope),
    "venn": (amounts.make_venn, amounts.draw_venn, amounts.letters_venn),
    "lever": (amounts.make_lever, amounts.draw_lever, amounts.letters_lever),
}
_COMMA = re.compile(r"(?<![\d.,])(\d+)(?:,|\{,\})(\d{1,2})(?![.,]?\d)")


class TextbookTask(DrawnTask):
    """The task family "textbook"; the registry holds one with these defaults.

    Args:
        languages: keys of ``words.WORDS``; "ru" needs the font DejaVu Sans.

    Raises:
        ValueError: for no language or an unknown one.
    """

    name: str = "textbook"
    kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)

    def __init__(self, languages: Sequence[str] = LANGUAGES) -> None:
        unknown = [language for language in languages if language not in WORDS]
        if unknown or not languages:
            raise ValueError(
                f"languages is {languages!r}; choose one or more of {', '.join(WORDS)}"
            )
        self.languages = tuple(languages)

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        language, kind = dice.pick(self.languages), dice.pick(self.kinds)
        exercise = KINDS[kind][0](dice, difficulty)
        words = WORDS[language]
        if kind == "venn":
            exercise.facts["groups"] = dice.sample(words["groups"], 2)
            first, second = exercise.facts["groups"][:: 1 if exercise.facts["left"] else -1]
            exercise.fills = {"a": first, "b": second}
        form = dice.pick(("explain", "blank")) if exercise.steps else "explain"
        steps, at, answer = [], 0, exercise.answer
        if form == "blank":
            steps, at, answer = _with_box(dice, exercise.steps, difficulty)
        question = dice.pick(words[kind][exercise.what]).format(**exercise.fills)
        inside = difficulty > 2 and dice.below(3) == 0
        picture, printed = _print(
            dice, difficulty, language, (kind, exercise), steps, question if inside else ""
        )
        asked = dice.pick(words["in_picture"]) if inside else question
        ending = dice.pick(words["blank" if form == "blank" else "explain"])
        # A box needs no other question than its own.
        text = ending if form == "blank" and not inside else f"{asked} {ending}"
        metadata = {"kind": kind, "form": form, "language": language, "what": exercise.what}
        metadata |= {"facts": exercise.facts, "steps": steps, "box_line": at}
        metadata |= {"printed": printed, "tolerance": 0.0}
        return Drawn(picture, text, answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Measured on the figure; a box is solved for in its own line, with the letters known."""
        letters = KINDS[metadata["kind"]][2](metadata["facts"])
        if metadata["form"] == "blank":
            return plain(float(solve_line(metadata["steps"][metadata["box_line"]], letters)))
        value = letters[metadata["what"]]
        if metadata["what"] == "part":
            return f"{value.numerator}/{value.denominator}"
        return plain(float(value))

    def reward(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        """``tolerant_reward``; a decimal comma counts where the language has it, and a fraction
        may be written in any way.
        """
        facts = columns.get("metadata") or [{}] * len(completions)
        texts = [
            _COMMA.sub(r"\1.\2", text) if one.get("language") in DECIMAL_COMMA else text
            for text, one in zip(completion_texts(completions), facts, strict=True)
        ]
        rewards = tolerant_reward(prompts, texts, **columns)
        for row, answer in enumerate(columns["answer"]):
            if "/" in answer:
                rewards[row] = float(_FRACTION([texts[row]], answer=[answer])[0] or 0.0)
        return rewards


def _with_box(dice: Dice, steps: list[str], difficulty: int) -> tuple[list[str], int, str]:
    """Like ``leave_out``; where it is hard, lines other than that with the box go missing."""
    lines, at, answer = leave_out(dice, steps)
    if difficulty < 4:
        return lines, at, answer
    kept = [i for i in range(len(lines)) if i == at or dice.below(2)]
    return [lines[i] for i in kept], kept.index(at), answer


_FRACTION = number_within(abs_tol=1e-9)


def _print(
    dice: Dice,
    difficulty: int,
    language: str,
    exercise: tuple[str, Exercise],
    steps: list[str],
    question: str,
) -> tuple[Any, list[str]]:
    """The page and all of its text."""
    kind, made = exercise
    words, comma = WORDS[language], language in DECIMAL_COMMA
    size = (15, 14.5, 14, 13, 12)[difficulty - 1]
    look = random_look(dice, dejavu=language == "ru")
    asked = _wrapped(question, size, look) if question else []
    top = 34 + len(asked) * size * 1.5
    height = round(top + AREA + 32 + (len(steps) + bool(steps)) * size * 1.6)
    paper = dice.pick(PAPERS)
    canvas, ink, mark = Canvas(WIDTH, height, paper), dice.pick(INKS), dice.pick(PALETTE[:6])

    def number(value: float) -> str:
        text = unsigned(value)
        return text.replace(".", ",") if comma else text

    pen = Pen(canvas, ink, mark, paper, size, look, 0.0, number, words, [])
    _heading(dice, pen, difficulty)
    for i, text in enumerate(asked):
        pen.put((20, 40 + i * size * 1.5), text, anchor="l")
    figure = Pen(canvas, ink, mark, paper, size, look, top, number, words, pen.printed)
    KINDS[kind][1](figure, made.facts)
    y = top + AREA + 14
    pen.put((20, y), words["rules"][kind], anchor="l", larger=-1)
    for i, text in enumerate([words["solution"], *steps] if steps else []):
        shown = text.replace(".", ",") if comma and i else text
        shown = shown.replace("÷", words["divided"])
        pen.put((20 if i == 0 else 44, y + (i + 1.1) * size * 1.6), shown, anchor="l")
    return canvas.finish(dice, (0, 0, 2, 4, 7)[difficulty - 1]), pen.printed


def _heading(dice: Dice, pen: Pen, difficulty: int) -> None:
    title = f"{pen.words['exercise']} {dice.between(1, 40)}"
    band = dice.below(2) == 1
    if band:
        pen.canvas.box([0, 0, WIDTH, 25], pen.mark)
    colour = (255, 255, 255) if band else pen.mark
    pen.put((20, 13), title, colour, "l", larger=1)
    if difficulty > 1:
        side = f"{dice.pick(pen.words['chapter'])} {dice.between(1, 12)}"
        pen.put((WIDTH - 14, 13), side, colour if band else (120, 125, 132), "r", larger=-3)


def _wrapped(text: str, size: float, look: Look) -> list[str]:
    rows = [""]
    for word in text.split(" "):
        longer = f"{rows[-1]} {word}".strip()
        if text_width(longer, size, look) <= WIDTH - 36:
            rows[-1] = longer
        else:
            rows.append(word)
    return rows
