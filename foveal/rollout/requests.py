"""Sampling settings as users have them -> ``SamplingParams``: ours, a dict, or vLLM's object; and
what no backend can do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from foveal.types import Prompt, SamplingParams

DEFAULT_MAX_TOKENS = 512

_OURS = tuple(field.name for field in fields(SamplingParams))
_TUPLES = ("stop", "stop_token_ids", "suppress_token_ids")
# Fields of vllm.SamplingParams that say how results are handed over, not what is drawn.
_WITHOUT_EFFECT = {"output_kind", "output_text_buffer_length", "skip_clone"}
# On by default there; only leaving them on is possible here.
_ALWAYS_ON = {"detokenize", "skip_special_tokens", "spaces_between_special_tokens"}
_REMEDIES = {
    "presence_penalty": "use repetition_penalty",
    "frequency_penalty": "use repetition_penalty",
    "logprobs": "leave it out: Output.logprobs always has those of the drawn tokens",
    "best_of": "ask for n completions and choose among them",
    "min_tokens": "leave it out, or set ignore_eos for exactly max_tokens",
    "bad_words": "give their tokens as suppress_token_ids",
    "include_stop_str_in_output": "Output.token_ids has the tokens of the stop string",
    "max_new_tokens": "it is called max_tokens",
    "max_length": "it is called max_tokens, and counts the completion alone",
    "do_sample": "temperature=0 is greedy, above 0 samples",
}


def sampling_from(
    settings: Any = None, default_max_tokens: int = DEFAULT_MAX_TOKENS
) -> tuple[SamplingParams, int | None]:
    """Take sampling settings over field by field.

    Args:
        settings: a ``SamplingParams``; a dict of its fields; any object with the field names of
            ``vllm.SamplingParams``; None for temperature 1 and nothing cut off.
        default_max_tokens: where ``settings`` has no ``max_tokens``.

    Returns:
        The settings, and how many completions ``settings`` asks for (``n``), None if it says
        nothing of that. ``top_k=-1`` is vLLM's word for the whole vocabulary, 0 ours.

    Raises:
        TypeError: for a field that does not exist, with the nearest one that does.
        ValueError: for a field of vLLM's that is set and not supported; for a value out of range.
    """
    if isinstance(settings, SamplingParams):
        return settings, None
    given = {} if settings is None else _fields_of(settings)
    kept = {name: value for name, value in given.items() if name in _OURS and value is not None}
    for name, value in given.items():
        if name not in _OURS and name != "n":
            _refuse(name, value, is_dict=isinstance(settings, Mapping))
    if kept.get("top_k") == -1:
        kept["top_k"] = 0
    for name in _TUPLES:
        if name in kept:
            kept[name] = (kept[name],) if isinstance(kept[name], (str, int)) else (*kept[name],)
    return SamplingParams(**{"max_tokens": default_max_tokens, **kept}), given.get("n")


def check_count(n: int, sampling: SamplingParams) -> None:
    """Raise ValueError for no completions, or several of a prompt that would all be equal."""
    if n < 1 or (n > 1 and sampling.temperature == 0):
        raise ValueError(
            f"n is {n} at temperature {sampling.temperature}; n must be at least 1, and "
            "exactly 1 at temperature 0, where all completions of a prompt are equal"
        )


def check_lengths(prompts: Sequence[Prompt], sampling: SamplingParams, most: int) -> None:
    """Raise ValueError where a prompt or a completion would have more than ``most`` tokens, for
    which the engine was made."""
    if sampling.max_tokens > most:
        raise ValueError(
            f"max_tokens is {sampling.max_tokens}, but the engine was made for completions of "
            f"at most {most} tokens; lower it, or raise max_seq_length"
        )
    for prompt in prompts:
        if len(prompt.ids) > most:
            raise ValueError(
                f"prompt {prompt.index} has {len(prompt.ids)} tokens, but the engine was made "
                f"for at most {most}; leave it out, make its pictures smaller, or "
                "raise max_seq_length"
            )


def _fields_of(settings: Any) -> dict[str, Any]:
    if isinstance(settings, Mapping):
        return dict(settings)
    # msgspec (vLLM) and dataclasses list their fields; other objects have them as attributes.
    names = getattr(settings, "__struct_fields__", None) or getattr(
        settings, "__dataclass_fields__", None
    )
    if names is None:
        names = getattr(settings, "__dict__", None)
    if not names or not any(name in _OURS for name in names):
        raise TypeError(
            f"sampling_params is a {type(settings).__name__}; give foveal.SamplingParams, a dict "
            "of its fields, or vllm.SamplingParams"
        )
    return {name: getattr(settings, name) for name in names if not name.startswith("_")}


def _refuse(name: str, value: Any, *, is_dict: bool) -> None:
    """Raise for a field that is not ours, unless it is merely there and not set."""
    if is_dict and name not in _REMEDIES:
        near = difflib.get_close_matches(name, [*_OURS, "n"], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_OURS)}, n"
        raise TypeError(f"sampling_params has no field {name!r}; {hint}")
    if name in _WITHOUT_EFFECT or value is None:
        return
    # What a dict names is meant; do_sample=False means greedy.
    if not is_dict and name != "do_sample" and _is_unset(name, value):
        return
    remedy = _REMEDIES.get(name, "leave it at its default")
    raise ValueError(f"sampling_params: {name}={value!r} is not supported; {remedy}")


def _is_unset(name: str, value: Any) -> bool:
    if name in _ALWAYS_ON:
        return value is True
    return isinstance(value, (bool, int, float, str, list, dict)) and not value
