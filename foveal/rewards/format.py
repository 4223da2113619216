r"""Form without content: tags and boxes. Binary, so that equal forms tie exactly.

Form is easy to please, so give it a small weight beside a reward for the answer (0.1 to 0.9 is
usual).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, is_blank, last_boxed

_THINK_ANSWER = re.compile(
    r"\s*<think>(?P<think>.*)</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL
)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def think_answer_format(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 for ``<think>..</think> <answer>..</answer>`` and nothing else, else 0.0.

    Each tag occurs exactly once and neither part is blank. The completion has to open the think
    block itself: this is not for chat templates that put ``<think>`` into the prompt.
    """
    return [float(_is_think_answer(text)) for text in completion_texts(completions)]


def _is_think_answer(text: str) -> bool:
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    match = _THINK_ANSWER.fullmatch(text)
    return bool(match and not is_blank(match["think"]) and not is_blank(match["answer"]))


def boxed_format(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    r"""1.0 for text with exactly one ``\boxed{..}``, closed and not blank, else 0.0.

    Where there are think tags, they are one pair, closed before the box (the opening tag may be
    missing: some chat templates put it into the prompt). An answer tag around the box is fine, one
    beside it earns 0.
    """
    return [float(_is_boxed(text)) for text in completion_texts(completions)]


def _is_boxed(text: str) -> bool:
    thought, _, rest = text.rpartition("</think>")
    if text.count("</think>") > 1 or "<think>" in rest or thought.count("<think>") > 1:
        return False
    box = last_boxed(rest) or ""
    # Beside an answer tag that says something else the box is no answer.
    return text.count("\\boxed") == 1 and not is_blank(box) and extract_answer(rest).text == box
