"""Prompts as users type them -> ``Prompt``: texts, conversations, vLLM's dicts, rows.

a text                          a question, which becomes a user message; unless it holds one
                                of the chat template's own tokens (``<|im_start|>``): then it
                                is a finished prompt and is taken as it stands
a list of messages              a conversation, with pictures in its parts
{"prompt": text,                vLLM's form: a finished prompt with one picture placeholder of
 "multi_modal_data": {...}}     the family for each picture; taken as it stands
{"prompt": text}                as the text alone
any other dict                  a row of a data set (``foveal.data.columns``)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from foveal.data.columns import normalise_row
from foveal.data.images import load_image
from foveal.data.messages import plain_list
from foveal.data.prompts import PromptBuilder
from foveal.types import Prompt

__all__ = ["PromptReader", "list_prompts"]

_VLLM_KEYS = {"prompt", "multi_modal_data"}


def list_prompts(prompts: Any) -> list[Any]:
    """One prompt or a list of prompts, as a list. A list of messages is one prompt."""
    listed = plain_list(prompts)
    return [prompts] if listed is None or _is_conversation(listed) else listed


class PromptReader:
    """Builds prompts of every form with one model's chat template and processor."""

    def __init__(self, builder: PromptBuilder) -> None:
        self.builder = builder

    def read(self, value: Any, index: int) -> Prompt:
        """One prompt of any form.

        Raises:
            TypeError: ``value`` has none of the forms.
            ValueError: as ``normalise_row`` and ``PromptBuilder``; a finished prompt where a
                question belongs; keys of vLLM's form that are not supported.
        """
        if isinstance(value, str):
            if self.is_finished(value):
                return self.builder.build_text(value, [], index)
            return self._row({"prompt": value}, index)
        if isinstance(value, Mapping):
            return self._mapping(value, index)
        listed = plain_list(value)
        if listed is not None and _is_conversation(listed):
            return self._row({"prompt": listed}, index)
        raise TypeError(
            f"prompt {index} is of type {type(value).__name__}. Give a text, a list of messages, "
            f"{{'prompt': text, 'multi_modal_data': {{'image': picture}}}} or a row with a "
            f"question column."
        )

    def is_finished(self, text: str) -> bool:
        """Whether a text has been through a chat template already."""
        return any(token in text for token in self._chat_tokens)

    def _mapping(self, value: Mapping[str, Any], index: int) -> Prompt:
        question = value.get("prompt")
        if "multi_modal_data" in value:
            return self._vllm(value, index)
        if isinstance(question, str) and set(value) == {"prompt"}:
            return self.read(question, index)
        if isinstance(question, str) and self.is_finished(question):
            raise ValueError(
                f"prompt {index}: 'prompt' has been through the chat template already, and a row "
                f"has a question there. Give the pictures as multi_modal_data={{'image': ..}}, or "
                f"the bare question."
            )
        return self._row(value, index)

    def _vllm(self, value: Mapping[str, Any], index: int) -> Prompt:
        unknown = sorted(map(str, set(value) - _VLLM_KEYS))
        data = value["multi_modal_data"] or {}
        others = sorted(map(str, set(data) - {"image"}))
        if unknown or others or not isinstance(value.get("prompt"), str):
            wrong = unknown or [f"multi_modal_data[{name!r}]" for name in others]
            raise ValueError(
                f"prompt {index}: {', '.join(wrong) or 'a prompt that is no text'} is not "
                f"supported. Give {{'prompt': text, 'multi_modal_data': {{'image': a picture or "
                f"a list}}}}."
            )
        given = data.get("image")
        listed = [] if given is None else plain_list(given)
        pictures = [given] if listed is None else listed
        loaded = [load_image(picture, row=index) for picture in pictures]
        return self.builder.build_text(value["prompt"], loaded, index)

    def _row(self, row: Mapping[str, Any], index: int) -> Prompt:
        return self.builder.build(normalise_row(row, index), index)

    @cached_property
    def _chat_tokens(self) -> list[str]:
        """The special tokens that the chat template puts around any message."""
        shown = self.builder.render([{"type": "text", "text": "?"}])
        added = self.builder.processor.tokenizer.added_tokens_decoder.values()
        return [str(token) for token in added if token.special and str(token) in shown]


def _is_conversation(listed: list[Any]) -> bool:
    return bool(listed) and all(
        isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in listed
    )
