"""Text read from a picture (OCR), by edit distance."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.rewards.extract import (
    after_thinking,
    completion_texts,
    extract_answer,
    reference_values,
)


@dataclass(frozen=True)
class TextEdit:
    """The reward function that ``text_edit`` returns; a class so that it can be pickled."""

    floor: float
    max_ratio: float
    ignore_case: bool

    __name__ = "text_edit"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        references = [
            self._reference(value, row)
            for row, value in enumerate(reference_values(columns, len(completions)))
        ]
        answers = [self._plain(_transcript(text)) for text in completion_texts(completions)]
        return [self._score(*pair) for pair in zip(answers, references, strict=True)]

    def _reference(self, value: Any, row: int) -> str:
        text = self._plain(_transcript(str(value))) if isinstance(value, str | int | float) else ""
        if not text:
            raise ValueError(
                f"row {row}: the reference {value!r:.80} holds no text; give the text itself, or "
                "close its tag or think block"
            )
        return text

    def _plain(self, text: str) -> str:
        text = " ".join(unicodedata.normalize("NFKC", text).split())
        return text.casefold() if self.ignore_case else text

    def _score(self, answer: str, reference: str) -> float:
        if len(answer) > self.max_ratio * len(reference):
            return 0.0
        from rapidfuzz.distance import Levenshtein

        similar = Levenshtein.normalized_similarity(answer, reference)
        return max(0.0, (similar - self.floor) / (1 - self.floor))


def _transcript(text: str) -> str:
    # No "answer is" and no box here: the picture itself may say "Answer: 3".
    return extract_answer(text).text if "<answer>" in text else after_thinking(text)


def text_edit(floor: float = 0.5, max_ratio: float = 2.0, ignore_case: bool = False) -> TextEdit:
    """Reward function: 1 - edit distance / length of the longer text, rescaled above ``floor``.

    The distance is Levenshtein's, in characters after Unicode NFKC with runs of white space as
    one blank. A similarity of ``floor`` or less earns 0 and equality 1, linearly between: letters
    that are right by chance earn nothing. An answer longer than ``max_ratio`` times the reference
    earns 0 unread.

    The answer is what ``<answer>..</answer>`` holds, else all that follows the thinking. Columns:
    ``answer`` (or ``solution``). Raises ValueError unless 0 <= floor < 1 and max_ratio >= 1, and
    for a row without a reference.
    """
    if not 0 <= floor < 1:
        raise ValueError(f"floor is {floor}; it must be at least 0 and below 1")
    if not (math.isfinite(max_ratio) and max_ratio >= 1):
        raise ValueError(f"max_ratio is {max_ratio}; it must be finite and at least 1")
    return TextEdit(float(floor), float(max_ratio), bool(ignore_case))
