"""Where a completion ends, and its text as it grows: the same for every backend.

A text is searched and shown as the user sees it, without special tokens. Characters may be split
over tokens; decoders show the part that has come so far as U+FFFD, which is no character yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from foveal.types import SamplingParams, StopReason

HALF = "\ufffd"
_MARGIN = 3
"""Bytes of a character, beside its first, that the edge of a window may have cut off it."""


class StopRule:
    """Says after each token whether a completion ends with it.

    Args:
        tokenizer: decodes completions.
        stop_ids: the model's end-of-sequence tokens; without effect under ``ignore_eos``.
        sampling: stop tokens and stop strings of the request.
    """

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int], sampling: SamplingParams) -> None:
        self.tokenizer = tokenizer
        self.stop = sampling.stop
        self.stop_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else stop_ids)}
        self._hidden = _special_ids(tokenizer) if self.stop else set()
        # A token that is shown has at least one byte.
        self._window = _MARGIN + max((len(text.encode()) for text in self.stop), default=0)

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether the last of ``ids`` is a stop token or completes a stop string."""
        if ids[-1] in self.stop_ids:
            return True
        if not self.stop:
            return False
        text = self._last_text(ids)
        return any(stop in text for stop in self.stop)

    def finish(
        self, ids: Sequence[int], reached_end: bool
    ) -> tuple[tuple[int, ...], str, StopReason]:
        """Tokens, text and stop reason of a completion.

        Args:
            ids: up to and including the token for which ``ends`` was true.
            reached_end: whether it was; otherwise the token budget cut the completion.

        Returns:
            ``(ids, text, stop_reason)``: all of the ids, and the text before the first stop
            string.
        """
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return tuple(ids), text[: _first(self.stop, text)], "stop" if reached_end else "length"

    def _last_text(self, ids: Sequence[int]) -> str:
        """The end of the text, from a whole character to a whole character."""
        tail = self._tail(ids)
        text = self.tokenizer.decode(tail, skip_special_tokens=True)
        # SentencePiece shows a run of bytes that begins inside a character as no character at all.
        for begin in range(1, _MARGIN + 1):
            if not text.startswith(HALF):
                break
            text = self.tokenizer.decode(tail[begin:], skip_special_tokens=True)
        return text.strip(HALF)

    def _tail(self, ids: Sequence[int]) -> list[int]:
        """The last tokens that are shown, enough of them for any stop string."""
        tail: list[int] = []
        for token in reversed(ids):
            if token not in self._hidden:
                tail.append(token)
            if len(tail) == self._window:
                break
        return tail[::-1]


class TextStream:
    """Tokens in, text out, piece by piece; the pieces join to the text of ``StopRule.finish``.

    Half a character, or what may become a stop string, is held back until it is settled.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self._ids: list[int] = []
        self._start = self._shown = 0
        """Tokens before ``_start`` are not decoded again; those before ``_shown`` are in the text.
        The ones between give the decoder its context."""
        self._waiting = ""
        self._closed = False

    def push(self, ids: Iterable[int]) -> str:
        """The text that ``ids`` settle; often empty."""
        if self._closed:
            return ""
        self._ids += ids
        new = self._new_text()
        if new.endswith(HALF) or self._in_bytes():
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        self._waiting += new
        return self._release(len(self._waiting) - _held(self.stop, self._waiting))

    def finish(self) -> str:
        """The rest, after the last token."""
        if self._closed:
            return ""
        self._waiting += self._new_text()
        rest = self._release(len(self._waiting))
        self._closed = True
        return rest

    def _new_text(self) -> str:
        known = self._decode(self._ids[self._start : self._shown])
        return self._decode(self._ids[self._start :])[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _in_bytes(self) -> bool:
        """Whether the last token is one byte, as SentencePiece writes it.

        Such bytes are decoded as a run: a half character takes the whole ones before it along.
        """
        if not self._ids:
            return False
        token = self.tokenizer.convert_ids_to_tokens(self._ids[-1])
        return isinstance(token, str) and token.startswith("<0x")

    def _release(self, count: int) -> str:
        end = _first(self.stop, self._waiting)
        if end is not None:
            self._closed, count = True, end
        text, self._waiting = self._waiting[:count], self._waiting[count:]
        return text


def _first(stops: Sequence[str], text: str) -> int | None:
    """Where the first stop string begins; None if there is none."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _held(stops: Sequence[str], text: str) -> int:
    """How many of the last characters may be the beginning of a stop string."""
    return max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])),
        default=0,
    )


def _special_ids(tokenizer: Any) -> Collection[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
