r"""Multiple choice: one letter, however it is written, and only one.

Read as the choice B: ``B``, ``b``, ``(B)``, ``B.``, ``B)``, ``**B**``, ``\text{B}``, ``B. a dog``,
and after "answer is": ``B because ..``. A text that names a second letter as a choice
(``A or B``, ``A. B. C. D.``, ``(A) (B)``) names none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from foveal.rewards.extract import (
    Answer,
    completion_texts,
    extract_answer,
    reference_texts,
)

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_NOUN = re.compile(r"(?:option|choice|letter)\s+", re.IGNORECASE)
_ALONE = re.compile(r"\(?\s*([A-Za-z])\s*\)?[.:,]?")
_LABELLED = re.compile(r"\(?([A-Z])(?:\)[.:]?|[.:])\s*(\S.*)", re.DOTALL)
_LETTER_FIRST = re.compile(r"([A-Z]),?\s+(\S.*)", re.DOTALL)
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")

# In what follows a label, a further choice looks like "(C)", "C." or "C)", or stands after a
# separator; "B. Vitamin C" and "B. A dog" hold none.
_FURTHER_LABEL = re.compile(
    r"(?<![A-Za-z])(?:\([A-Z]\)|[A-Z][.):](?=\s|$))"
    r"|(?:^|[,;/&|]|\b(?:and|or)\b)\s*\(?[A-Z]\)?(?=\s*(?:$|[,;/&|.)]|and\b|or\b))"
)
# After a bare letter any lone capital is a further choice, but for the words "A .." and "I".
_FURTHER_LETTER = re.compile(r"(?<![A-Za-z'])(?!A\s+[a-z]{2,}|I\b)[A-Z](?![A-Za-z'])")


def choice_letter(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 where the completion chooses the reference's letter and no other, else 0.0.

    None where the reference itself is no choice (a mixed data set). Text without tags, box or
    "answer is" counts if it is a choice as a whole, or if it holds exactly one letter in
    parentheses.

    Columns: ``answer`` (or ``solution``). Raises ValueError naming a row that has neither.
    """
    references = [chosen_letter(text) for text in reference_texts(columns, len(completions))]
    answers = [_answered(extract_answer(text)) for text in completion_texts(completions)]
    return [
        None if reference is None else float(answer == reference)
        for answer, reference in zip(answers, references, strict=True)
    ]


def _answered(answer: Answer) -> str | None:
    letter = chosen_letter(answer.text, sentence=answer.marked)
    if letter is None and not answer.marked:
        bracketed = set(_IN_BRACKETS.findall(answer.text))
        letter = bracketed.pop() if len(bracketed) == 1 else None
    return letter


def chosen_letter(text: str, *, sentence: bool = False) -> str | None:
    """The one choice that ``text`` names, in upper case, or None.

    ``sentence`` also reads a bare first letter followed by words ("B because it barks").
    """
    text = _WRAPPED.sub(r"\1", text).replace("*", "").strip(" \t\n$`\"'")
    text = text[noun.end() :] if (noun := _NOUN.match(text)) else text
    if alone := _ALONE.fullmatch(text):
        return alone[1].upper()
    if labelled := _LABELLED.fullmatch(text):
        return None if _FURTHER_LABEL.search(labelled[2]) else labelled[1]
    if sentence and (first := _LETTER_FIRST.fullmatch(text)):
        is_article = first[1] in "AI" and re.match(r"[a-z]{2,}", first[2])
        return None if is_article or _FURTHER_LETTER.search(first[2]) else first[1]
    return None
