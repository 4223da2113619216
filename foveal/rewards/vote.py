"""Answers in one spelling, so that samples which say the same can be counted together."""

from __future__ import annotations

from foveal.rewards.choice import chosen_letter
from foveal.rewards.extract import extract_answer, normalised
from foveal.rewards.number import the_number


def answer_vote(text: str) -> str:
    """What a completion answers, in a spelling that equal answers share.

    The extracted answer (see ``extract``), read as one choice (``(B)``, ``B. a dog`` -> ``B``),
    else as one number (``12.0``, ``x = 12`` -> ``12.0``), else as text without regard to case and
    spacing. Empty if there is none: a sample without an answer has no vote.
    """
    answer = extract_answer(text)
    if not answer.text:
        return ""
    if letter := chosen_letter(answer.text, sentence=answer.marked):
        return letter
    number = the_number(answer.text)
    if number is not None:
        # "0.0" for -0.0 as well.
        return f"{number.bare + 0.0}{'%' if number.percent else ''}"
    return normalised(answer.text)
