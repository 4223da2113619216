"""JSON in a completion: where it stands, and its value."""

from __future__ import annotations

import json
import re
from typing import Any, TypeGuard

from foveal.rewards.extract import after_thinking, extract_answer

# No white space of its own before the group: a fence that never closes would then take quadratic
# time. JSON does not mind it.
_FENCED = re.compile(r"```(?:json)?(.*?)```", re.DOTALL)


def answered_json(text: str) -> str:
    """The extracted answer, but a code fence goes before "answer is": JSON has several lines."""
    after = after_thinking(text)
    return after if "<answer>" not in after and "```" in after else extract_answer(text).text


def decoded(text: str) -> Any:
    """The value of JSON ``text``, or of its last Markdown code fence if it has one.

    Raises ValueError for what is no JSON, is nested too deeply, or gives a key of an object twice
    (a second try would otherwise replace the first unseen).
    """
    fenced = _FENCED.findall(text)
    try:
        return json.loads(fenced[-1] if fenced else text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object of the JSON gives a key twice")
    return value


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a decoded value is a number (``true`` is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)
