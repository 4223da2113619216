"""Conversations of every spelling -> messages whose content is a list of text and image parts.

The result is the form that chat templates and TRL use: every content is a list of
``{"type": "text", "text": str}`` and ``{"type": "image", "image": PIL.Image}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from PIL import Image

__all__ = ["IMAGE_MARKER", "place_images", "to_messages", "with_system_prompt"]

IMAGE_MARKER = "<image>"
"""Stands in a text where the next picture of the row belongs."""

Message = dict[str, Any]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
_MARKER = {"type": "image"}


def to_messages(value: Any, index: int, column: str) -> list[Message]:
    """A question or a conversation -> messages with parts; pictures are still bare markers.

    Args:
        value: a text, or a list of ``{"role", "content"}`` or ``{"from", "value"}``.
        index: row number, for the error messages.
        column: the column that ``value`` comes from, for the error messages.

    Raises:
        TypeError, ValueError: ``value`` is no conversation; the message says what is wrong.
    """
    where = f"row {index}: column '{column}'"
    if isinstance(value, str):
        return [{"role": "user", "content": _parts(value, where)}]
    turns = plain_list(value)
    if not turns:
        raise ValueError(f"{where} is {value!r}. Give a text or a list of messages, or drop it.")
    return [_message(turn, f"{where}, message {number}") for number, turn in enumerate(turns)]


def place_images(
    messages: list[Message],
    pictures: list[Image.Image],
    index: int,
    load: Callable[[Any], Image.Image],
) -> tuple[list[Message], list[Image.Image]]:
    """Puts the row's pictures where the markers are.

    Without any marker the pictures go before the text of the first user message, as TRL does.

    Args:
        messages: from ``to_messages``.
        pictures: the row's pictures that are not in the messages already, in order.
        index: row number, for the error messages.
        load: reads a picture that a message carries itself.

    Returns:
        New messages with every picture filled in, and all pictures in order of appearance.

    Raises:
        ValueError: the number of markers differs from the number of pictures.
    """
    spots = [part for message in messages for part in message["content"] if _is_image(part)]
    if pictures and not spots:
        messages = _pictures_first(messages, len(pictures), index)
        num_markers = len(pictures)
    else:
        num_markers = sum("image" not in part for part in spots)
    if num_markers != len(pictures):
        raise ValueError(
            f"row {index}: the text has {num_markers} {IMAGE_MARKER} marker(s), the row has "
            f"{len(pictures)} picture(s) for them. Write one {IMAGE_MARKER} for each picture in "
            f"its place, or none at all to put the pictures before the text."
        )
    return _fill(messages, pictures, load)


def with_system_prompt(messages: list[Message], system_prompt: str | None) -> list[Message]:
    """Puts ``system_prompt`` in front, unless it is empty or the row has a system message."""
    if not system_prompt or messages[0]["role"] == "system":
        return messages
    content = [{"type": "text", "text": system_prompt}]
    return [{"role": "system", "content": content}, *messages]


def plain_list(value: Any) -> list[Any] | None:
    """A list, tuple or array as a list; None if it is none of them."""
    if isinstance(value, (list, tuple)):
        return list(value)
    # pandas hands nested columns over as numpy arrays.
    if hasattr(value, "tolist") and not isinstance(value, Image.Image):
        listed = value.tolist()
        return listed if isinstance(listed, list) else None
    return None


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise TypeError(
            f"{where} is of type {type(turn).__name__}. A message is a dict with 'role' and "
            f"'content' (or 'from' and 'value')."
        )
    role = turn.get("role") or turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if role not in _ROLES:
        raise ValueError(f"{where} has the role {role!r}. Known roles: {', '.join(_ROLES)}.")
    return {"role": _ROLES[role], "content": _parts(content, where)}


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return _split_markers(content)
    listed = plain_list(content)
    if listed is None:
        raise TypeError(
            f"{where} has content of type {type(content).__name__}. Give a text or a list of parts."
        )
    return [piece for part in listed for piece in _part(part, where)]


def _split_markers(text: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(IMAGE_MARKER)):
        if number:
            parts.append(dict(_MARKER))
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _part(part: Any, where: str) -> Iterable[dict[str, Any]]:
    if isinstance(part, str):
        return _split_markers(part)
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return _split_markers(part["text"])
    if kind in ("image", "image_url"):
        # datasets fills keys that only other parts have with None.
        carried = [part[key] for key in (kind, "url", "path") if part.get(key) is not None]
        return [{"type": "image", "image": carried[0]}] if carried else [dict(_MARKER)]
    raise ValueError(
        f"{where} has a part of type {kind!r} that cannot be used. Give parts as "
        f"{{'type': 'text', 'text': ..}} and {{'type': 'image'}}; video and audio are not "
        f"supported."
    )


def _is_image(part: dict[str, Any]) -> bool:
    return part["type"] == "image"


def _pictures_first(messages: list[Message], count: int, index: int) -> list[Message]:
    for number, message in enumerate(messages):
        if message["role"] == "user":
            markers = [dict(_MARKER) for _ in range(count)]
            opened = {**message, "content": [*markers, *message["content"]]}
            return [*messages[:number], opened, *messages[number + 1 :]]
    raise ValueError(
        f"row {index}: {count} picture(s) but no user message to put them in. Add the question "
        f"as a message with the role 'user'."
    )


def _fill(
    messages: list[Message], pictures: list[Image.Image], load: Callable[[Any], Image.Image]
) -> tuple[list[Message], list[Image.Image]]:
    waiting = iter(pictures)
    seen: list[Image.Image] = []

    def filled(part: dict[str, Any]) -> dict[str, Any]:
        if not _is_image(part):
            return part
        picture = load(part["image"]) if "image" in part else next(waiting)
        seen.append(picture)
        return {"type": "image", "image": picture}

    done = [{**m, "content": [filled(part) for part in m["content"]]} for m in messages]
    return done, seen
