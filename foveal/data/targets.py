"""What a row wants the model to write: the completion of supervised training.

Taken from the first of these that the row has:

    completion               TRL's column: a text, or messages with one turn of the assistant
    messages, conversations  the assistant's last turn, if the conversation ends with it
    a template               such as ``<answer>{answer}</answer>``, filled from the row's columns
    solution                 as it stands (R1-V)

A bare ``answer`` is no completion: how it is to be worded, only a template says.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from foveal.data.columns import normalise_answer
from foveal.data.messages import plain_list, to_messages

__all__ = ["check_template", "target_text", "turn_end"]

_CONVERSATIONS = ("messages", "conversations")
_PROBE = "Answer 42"


def target_text(row: Mapping[str, Any], index: int, template: str | None = None) -> str:
    """The completion of a raw row, not empty.

    Args:
        row: column name -> value, of any format in ``FORMATS``.
        index: row number, for the error messages.
        template: for rows without a completion of their own; ``{answer}`` is the reference answer
            without ``<answer>`` tags, other names are columns.

    Raises:
        ValueError: the row has no completion, an empty one, one with a picture in it, or lacks a
            column of the template.
    """
    text = _own_text(row, index)
    if text is None and template is not None:
        text = _filled(template, row, index)
    if text is None and row.get("solution") is not None:
        text = str(row["solution"])
    if text is None:
        raise ValueError(
            f"row {index}: it has no completion to learn; its columns are "
            f"{sorted(map(str, row))}. Add a column 'completion', end 'messages' with the "
            "assistant's turn, or set completion_template, such as '<answer>{answer}</answer>'."
        )
    if not text.strip():
        raise ValueError(f"row {index}: its completion is empty. Fill it, or drop the row.")
    return text


def check_template(template: str | None) -> None:
    """Raise ValueError for a template that has no ``{name}`` or whose braces do not fit."""
    if template is None:
        return
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"completion_template {template!r} cannot be read ({error}); write {{{{ for a brace"
        ) from None
    if not names or not all(name.isidentifier() for name in names):
        raise ValueError(
            f"completion_template is {template!r}; it needs a column's name in braces, such as "
            "'<answer>{answer}</answer>'"
        )


def _own_text(row: Mapping[str, Any], index: int) -> str | None:
    if row.get("completion") is not None:
        return _assistant_text(row["completion"], index, "completion")
    for column in _CONVERSATIONS:
        if row.get(column) is not None:
            return _last_turn(row[column], index, column)
    return None


def _assistant_text(value: Any, index: int, column: str) -> str:
    if isinstance(value, str):
        return value
    turns = plain_list(value)
    if (
        turns is None
        or len(turns) != 1
        or to_messages(turns, index, column)[0]["role"] != ("assistant")
    ):
        raise ValueError(
            f"row {index}: column '{column}' is {str(value)[:60]!r}. Give a text, or one message "
            "of the assistant; earlier turns belong into 'prompt'."
        )
    text = _last_turn(turns, index, column)
    assert text is not None
    return text


def _last_turn(value: Any, index: int, column: str) -> str | None:
    last = to_messages(value, index, column)[-1]
    if last["role"] != "assistant":
        return None
    if any(part["type"] != "text" for part in last["content"]):
        raise ValueError(
            f"row {index}: the assistant's last turn in '{column}' holds a picture, which a model "
            "cannot write. Take it out, or move it into the question."
        )
    return "".join(part["text"] for part in last["content"])


def _filled(template: str, row: Mapping[str, Any], index: int) -> str:
    values = {str(name): value for name, value in row.items() if value is not None}
    answer = normalise_answer(row)
    if answer is not None:
        values["answer"] = answer
    try:
        return template.format(**values)
    except KeyError as error:
        raise ValueError(
            f"row {index}: completion_template asks for the column {error}, and the row has "
            f"{sorted(values)}. Correct the template, or fill the column."
        ) from None


def turn_end(processor: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> int:
    """The token that closes an assistant's turn in the chat template.

    Raises:
        ValueError: the template leaves out an assistant's text, or puts nothing behind it.
    """
    turns = [{"role": "user", "content": _text_part("?")}]
    turns += [{"role": "assistant", "content": _text_part(_PROBE)}]
    shown = processor.apply_chat_template(turns, tokenize=False, **(chat_template_kwargs or {}))
    _, found, behind = shown.partition(_PROBE)
    ids = processor.tokenizer(behind, add_special_tokens=False)["input_ids"]
    if not found or not ids:
        raise ValueError(
            "the chat template puts no token behind an assistant's turn, so a model could not "
            "learn where to stop; give the processor a chat template that does"
        )
    return int(ids[0])


def _text_part(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]
