"""What makes two rows the same: the conversation, the pixels and the reference answer."""

from __future__ import annotations

import hashlib
from typing import Any

from PIL import Image

from foveal.data.columns import NormalRow

__all__ = ["question_key", "row_key"]


def row_key(row: NormalRow) -> str:
    """64 hex digits that rows with the same question, pictures and answer share.

    Knows no model, no processor and no file, so that answers of two models can be put side by
    side. Pixels count as they are seen in training: RGB, upright.
    """
    answer = "none" if row.answer is None else f"answer {row.answer}"
    seen = f"{question_key(row)} {answer}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(seen).hexdigest()


def question_key(row: NormalRow) -> str:
    """As ``row_key``, whatever the answer."""
    seen = hashlib.sha256()
    for message in row.messages:
        seen.update(_framed(message["role"].encode()))
        for part in message["content"]:
            seen.update(_framed(_part(part)))
    return seen.hexdigest()


def _part(part: dict[str, Any]) -> bytes:
    if part["type"] == "image":
        picture: Image.Image = part["image"]
        return f"image {picture.size}".encode() + picture.tobytes()
    return f"text {part['text']}".encode("utf-8", "surrogatepass")


def _framed(value: bytes) -> bytes:
    # Lengths go in too, or "ab", "c" and "a", "bc" would be one.
    return len(value).to_bytes(8, "big") + value
