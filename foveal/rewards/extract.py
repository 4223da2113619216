r"""Where the answer of a completion is, and where the reference of a row is.

The rule, in this order (``extract_answer``):

1. Only what follows the last ``</think>`` counts. Reasoning that was opened and never closed has
   no answer.
2. The last complete ``<answer>..</answer>``; if it holds a ``\boxed{..}``, the inside of the box.
3. Else the last ``\boxed{..}`` whose braces balance.
4. Else what follows "answer is", "answer:" or "answer =" on its line, provided that all such
   statements agree. Two different statements are a hedge and leave no answer.
5. Else the whole text, ``marked=False``: a reward may then ask for more certainty.

A tag or box that is opened and never closed (a truncated completion) leaves no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import category

NOT_COLUMNS = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
)
"""Arguments of a reward function that do not come from the data set."""

_INVISIBLE = "\u115f\u1160\u2800\u3164\uffa0"
"""Fillers and the empty Braille cell: letters and signs by their category, but never drawn."""

_BRACES = re.compile(r"(?P<box>\\boxed\s*\{)|\\[\\{}]|(?P<open>\{)|(?P<close>\})")
_LEAD_IN = re.compile(
    r"\b(?:the\s+)?(?:(?:final|correct|right)\s+)?answer\s*(?:is\b|:|=)[\s:]*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a completion answers; ``text`` is stripped and empty where there is no answer."""

    text: str
    marked: bool
    """Found by a tag, a box or "answer is"; False if ``text`` is simply all there is."""


def completion_text(completion: Any) -> str:
    """Text of one completion: a string, or messages of which the last assistant's counts.

    A message's content is a string, None (no text) or a list of parts, of which those with
    ``{"type": "text"}`` are joined. Raises TypeError for anything else.
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and all(isinstance(m, Mapping) for m in completion):
        spoken = [m for m in completion if m.get("role", "assistant") == "assistant"]
        return _content_text(spoken[-1].get("content")) if spoken else ""
    raise TypeError(
        f"a completion is {_shown(completion)}; expected a string or a list of messages like "
        '[{"role": "assistant", "content": "..."}]'
    )


def message_text(message: Mapping[str, Any]) -> str:
    """Text of one message, as in ``completion_text``."""
    return _content_text(message.get("content"))


def completion_texts(completions: Sequence[Any]) -> list[str]:
    """``completion_text`` of each row; errors name the row."""
    texts = []
    for row, completion in enumerate(completions):
        try:
            texts.append(completion_text(completion))
        except TypeError as error:
            raise TypeError(f"row {row}: {error}") from error
    return texts


def _content_text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        return "".join(part.get("text") or "" for part in content if part.get("type") == "text")
    raise TypeError(
        f"the content of a message is {_shown(content)}; expected a string or a list of parts "
        'like [{"type": "text", "text": "..."}]'
    )


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.80}"


def last_boxed(text: str) -> str | None:
    r"""Inside of the last ``\boxed{..}`` that closes, or None. One pass: linear in the text."""
    opened: list[tuple[bool, int]] = []  # (is a box, where its inside begins)
    start, inside = -1, None
    for token in _BRACES.finditer(text):
        if token["box"] or token["open"]:
            opened.append((token["box"] is not None, token.end()))
        elif token["close"] and opened:
            is_box, begin = opened.pop()
            if is_box and begin > start:
                start, inside = begin, text[begin : token.start()].strip()
    return inside


def after_thinking(text: str) -> str:
    """What follows the last ``</think>``, stripped; empty if the thinking never ends."""
    _, closed, after = text.rpartition("</think>")
    return "" if not closed and "<think>" in after else after.strip()


def extract_answer(text: str) -> Answer:
    """The answer in ``text`` by the rule at the top of this file."""
    text = after_thinking(text)
    if "<answer>" in text:
        end = text.rfind("</answer>")
        begin = text.rfind("<answer>", 0, max(end, 0))
        return _unboxed(text[begin + len("<answer>") : end]) if begin >= 0 else Answer("", True)
    if "\\boxed" in text:
        return _unboxed(text)
    if stated := _stated(text):
        agree = len({normalised(statement) for statement in stated}) == 1
        return Answer(stated[-1] if agree else "", marked=True)
    return Answer(text, marked=False)


def _stated(text: str) -> list[str]:
    """What each "answer is" on its line says, in order."""
    pieces = _LEAD_IN.split(text)[1:]
    lines = [piece.partition("\n")[0] for piece in pieces]
    # "The answer is 12. So the final answer is 12": what leads over is not part of the first.
    first = [
        line if "\n" in piece else re.split(r"[.;!?]\s", line, maxsplit=1)[0]
        for line, piece in zip(lines[:-1], pieces[:-1], strict=True)
    ]
    return [said for line in first + lines[-1:] if (said := line.strip(" \t*`"))]


def _unboxed(text: str) -> Answer:
    if "\\boxed" not in text:
        return Answer(text.strip(), marked=True)
    return Answer(last_boxed(text) or "", marked=True)


def normalised(text: str) -> str:
    """Case folded, runs of white space as one blank, trailing periods dropped."""
    return " ".join(text.casefold().split()).rstrip(". ")


def is_blank(text: str) -> bool:
    """Whether ``text`` shows nothing: white space, zero-width and other invisible characters."""
    return all(c.isspace() or c in _INVISIBLE or category(c) in ("Cf", "Cc") for c in text)


def reference_values(columns: Mapping[str, Any], count: int) -> list[Any]:
    """The ``answer`` of each of ``count`` rows, or its ``solution`` where that is missing.

    None and blank strings are missing. Raises ValueError naming the first row with neither.
    """
    empty = [None] * count
    answers, solutions = columns.get("answer") or empty, columns.get("solution") or empty
    values = []
    for row, pair in enumerate(zip(answers, solutions, strict=True)):
        present = [value for value in pair if not _missing(value)]
        if not present:
            names = sorted(set(columns) - NOT_COLUMNS)
            raise ValueError(
                f"row {row} has neither 'answer' nor 'solution' (columns present: {names}); "
                "rename the column that holds the reference to 'answer'"
            )
        values.append(present[0])
    return values


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def reference_texts(columns: Mapping[str, Any], count: int) -> list[str]:
    r"""``reference_values`` as text, taken out of its tags or box by ``extract_answer``.

    Raises ValueError for a row without a reference, TypeError for one that is neither text nor
    a number.
    """
    texts = []
    for row, value in enumerate(reference_values(columns, count)):
        if not isinstance(value, str | int | float):
            raise TypeError(
                f"row {row}: the reference is {_shown(value)}; expected a string or a number"
            )
        text = extract_answer(str(value)).text
        if not text:
            raise ValueError(
                f"row {row}: the reference {value!r:.80} holds no answer; give the answer itself, "
                "or close its tag, box or think block"
            )
        texts.append(text)
    return texts
