"""Exact answers: the text itself, but for case, spacing and a trailing period."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, normalised, reference_texts


def exact_answer(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 where the extracted answer (see ``extract``) equals the reference, else 0.0.

    Case, runs of white space and trailing periods do not matter. Text without tags, box or
    "answer is" must equal the reference as a whole: naming it somewhere earns nothing.

    Columns: ``answer`` (or ``solution``). Raises ValueError naming a row that has neither.
    """
    references = reference_texts(columns, len(completions))
    answers = [extract_answer(text).text for text in completion_texts(completions)]
    return [
        # A reference like "..." is empty once its periods are dropped; no answer must not equal it.
        float(bool(answer) and normalised(answer) == normalised(reference))
        for answer, reference in zip(answers, references, strict=True)
    ]
