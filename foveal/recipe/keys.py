"""Which keys a recipe may have, and what each of them takes.

Both are read from the signatures that the values are handed to, so a new argument or field is a
new key without a word here.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = [
    "EXAMPLES",
    "DataSection",
    "Kind",
    "RecipeError",
    "SFTDataSection",
    "check_parts",
    "check_rewards",
    "check_section",
    "refuse_unknown",
    "weigh_rewards",
]

Kind = Literal["GRPOConfig", "SFTConfig"]
"""What a recipe trains on, rewards or completions, by the class that its section train fills."""

EXAMPLES = {
    "model": "model: {model_name: Qwen/Qwen2.5-VL-7B-Instruct}",
    "lora": "lora: {r: 16, lora_alpha: 32}, or lora: false to train the model as it is loaded",
    "data": "data: {train: questions.parquet}",
    "rewards": "rewards: [exact_answer, think_answer_format]",
    "train": "train: {output_dir: runs/first, max_steps: 100}",
}
"""The sections, and how each is written."""
_TASK_EXAMPLE = "{task: shapes, n: 512}"
_TASK_KEYS = {"task": str, "n": int, "seed": int, "difficulty": int}
_PART_EXAMPLE = "[{data: questions.parquet, weight: 2}, {task: shapes, difficulty: 2, weight: 1}]"
_TASK_ONLY = ("n", "seed", "difficulty")
_SET_ONLY = ("split", "streaming", "rename", "image_dir")
_PART_KEYS = {
    "data": str,
    "split": str | None,
    "streaming": bool,
    "rename": dict[str, str],
    "image_dir": str,
    **_TASK_KEYS,
    "weight": float,
    "name": str,
}
_SFT_TASK_KEYS = {**_TASK_KEYS, "difficulty": int | list[int]}
_NEEDED = {
    "model": ["model_name"],
    "data": ["train"],
    "train": ["output_dir"],
    "data.train": ["task", "n"],
    "data.eval": ["task", "n"],
}
_SECRETS = {"model": "token", "train": "hub_token"}
_MISFIT = object()


class RecipeError(Exception):
    """What is wrong with a recipe; ``load_recipe`` adds the file and raises ValueError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """What to train and evaluate on: names that ``foveal.data.load_rows`` opens, or tasks."""

    train: str | dict[str, Any] | list[Any]
    """A task is ``{task, n, seed, difficulty}``, the arguments of ``foveal.tasks.dataset``;
    without ``n`` its rows have no end. A list is a mixture: of tasks, and of sets ``{data, split,
    streaming}``, each with a ``weight`` (1) and a ``name`` if need be."""
    eval: str | dict[str, Any] | None = None
    """None with an ``eval_split`` is another split of ``train``."""
    split: str | None = None
    eval_split: str | None = None
    streaming: bool = False
    """Read ``train`` row by row, in order."""
    rename: dict[str, str] | None = None
    """Columns of the data -> columns of a known format, in ``train`` and ``eval``."""
    image_dir: str | None = None
    """Folder that relative picture paths start from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTDataSection:
    """What supervised training reads: as :class:`DataSection`, and lists of such for mixtures."""

    train: str | dict[str, Any] | list[Any]
    """A task may have a list of difficulties, which are taken in turn."""
    eval: str | dict[str, Any] | list[Any] | None = None
    split: str | None = None
    eval_split: str | None = None


@cache
def known_keys(section: str, kind: Kind = "GRPOConfig") -> dict[str, Any]:
    """The keys that a section, or a task in ``data``, may have, with their type hints."""
    if section == "data":
        return get_type_hints(DataSection if kind == "GRPOConfig" else SFTDataSection)
    if section.startswith("data."):
        if kind == "SFTConfig":
            return _SFT_TASK_KEYS
        return _PART_KEYS if section.endswith("]") else _TASK_KEYS
    if section == "train":
        import foveal.train

        config = getattr(foveal.train, kind)
        hints = get_type_hints(config)
        return {field.name: hints[field.name] for field in fields(config) if field.init}
    from foveal.models.load import from_pretrained
    from foveal.models.lora import get_peft_model

    takes = from_pretrained if section == "model" else get_peft_model
    hints = get_type_hints(takes)
    return {
        parameter.name: hints[parameter.name]
        for parameter in inspect.signature(takes).parameters.values()
        # get_peft_model's model is what the section before it loads.
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and parameter.name != "model"
    }


def refuse_unknown(section: str, given: Iterable[Any], kind: Kind = "GRPOConfig") -> None:
    """Raise for the first key that a section does not have; "" stands for the recipe itself."""
    known = known_keys(section, kind) if section else EXAMPLES
    for key in given:
        if key not in known:
            shown = f"{section}.{key}" if section else key
            raise RecipeError(
                f"unknown key {shown}; {_nearest(section, str(key), list(known), kind)}"
            )


def _nearest(section: str, key: str, known: list[str], kind: Kind) -> str:
    """A hint at the key that was meant, in this section or else in another."""
    near = get_close_matches(key, known, n=1)
    if near:
        return f"did you mean {section}.{near[0]}?" if section else f"did you mean {near[0]}?"
    for other in ("model", "lora", "data", "train"):
        if key in known_keys(other, kind):
            return f"did you mean {other}.{key}?"
    if section == "train":
        return f"the section takes the fields of foveal.{kind}"
    return f"known are {', '.join(known)}"


def check_section(section: str, values: Any, kind: Kind = "GRPOConfig") -> dict[str, Any]:
    """The values of a section, each of a type that its key takes.

    Raises:
        RecipeError: for an unknown or missing key, a secret, or a value of another type.
    """
    example = EXAMPLES.get(section, f"{section.removeprefix('data.')}: {_TASK_EXAMPLE}")
    if section.endswith("]"):
        example = f"train: {_PART_EXAMPLE}"
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError(f"{section} is {values!r}, which has no keys; write {example}")
    refuse_unknown(section, values, kind)
    # A task without a number of rows is drawn without end, where a run counts steps anyway.
    endless = section == "data.train" and kind == "GRPOConfig"
    needed = ["task"] if endless else _NEEDED.get(section, [])
    for key in needed:
        if values.get(key) is None:
            raise RecipeError(f"{section}.{key} is missing; write {example}")
    secret = _SECRETS.get(section)
    if secret is not None and values.get(secret) is not None:
        raise RecipeError(
            f"{section}.{secret} would be copied into the run folder; log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
    known = known_keys(section, kind)
    return {key: _typed(f"{section}.{key}", value, known[key]) for key, value in values.items()}


def check_parts(parts: list[Any]) -> list[dict[str, Any]]:
    """The parts of a mixture, each with ``data`` or ``task`` and what goes with it.

    Raises:
        RecipeError: for no part, or as ``check_section``.
    """
    if not parts:
        raise RecipeError(f"data.train is empty; write train: {_PART_EXAMPLE}")
    checked = [check_section(f"data.train[{place}]", part) for place, part in enumerate(parts)]
    for place, part in enumerate(checked):
        if ("data" in part) == ("task" in part):
            raise RecipeError(
                f"data.train[{place}] needs either data or task; write train: {_PART_EXAMPLE}"
            )
        others = _TASK_ONLY if "data" in part else _SET_ONLY
        if wrong := [key for key in others if key in part]:
            kind = "a set" if "data" in part else "a task"
            raise RecipeError(f"data.train[{place}].{wrong[0]} is not for {kind}; take it out")
    return checked


def check_rewards(given: Any) -> dict[str, Any]:
    """Rewards with their weights, None where none was given.

    Raises:
        RecipeError: if there is no reward, a name stands twice, or a weight is no number.
    """
    if given is None or given == [] or given == {}:
        raise RecipeError(f"rewards is empty; write {EXAMPLES['rewards']}")
    items: list[tuple[Any, Any]] = []
    for item in given if isinstance(given, list) else [given]:
        items += item.items() if isinstance(item, dict) else [(item, None)]
    for name, weight in items:
        if not isinstance(name, str):
            raise RecipeError(
                f"rewards has {name!r}, which is no name of a reward; write {EXAMPLES['rewards']}"
            )
        if weight is not None:
            _typed(f"the weight of the reward {name!r}", weight, float)
    if len(dict(items)) < len(items):
        raise RecipeError(f"rewards has a name twice: {', '.join(n for n, _ in items)}; keep one")
    return dict(items)


def weigh_rewards(rewards: Mapping[str, Any], weights: Sequence[float] | None) -> dict[str, float]:
    """Fill in the weights from ``train.reward_weights``, or else with 1."""
    if weights is None:
        return {name: 1.0 if weight is None else weight for name, weight in rewards.items()}
    if len(weights) != len(rewards) or any(weight is not None for weight in rewards.values()):
        raise RecipeError(
            f"train.reward_weights is {list(weights)} for the rewards {', '.join(rewards)}; give "
            "each reward its weight in the section rewards instead"
        )
    return dict(zip(rewards, weights, strict=True))


def _typed(key: str, value: Any, hint: Any) -> Any:
    fitting = _fitting(value, hint)
    if fitting is _MISFIT:
        words = _KINDS.get(type(value), type(value).__name__)
        shown = words if value is None else f"{value!r} ({words})"
        raise RecipeError(f"{key} is {shown}; it takes {_in_words(hint)}")
    return fitting


def _fitting(value: Any, hint: Any) -> Any:
    """``value`` as a type hint has it, or ``_MISFIT``."""
    kind = get_origin(hint) or hint
    if hint is Any:
        return value
    if kind in (Union, types.UnionType):
        tried = (_fitting(value, part) for part in get_args(hint))
        return next((found for found in tried if found is not _MISFIT), _MISFIT)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)  # 1e3 is a float to YAML
    return value if _is_a(value, kind, get_args(hint)) else _MISFIT


def _is_a(value: Any, kind: Any, parts: tuple[Any, ...]) -> bool:
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if not isinstance(kind, type):
        return False
    if kind is float:
        return type(value) in (int, float)
    if kind in _KINDS and not issubclass(kind, dict | list):
        return type(value) is kind  # to isinstance, True would be a whole number
    if issubclass(kind, Enum):
        return any(value == member.value for member in kind)
    if issubclass(kind, Mapping):
        return isinstance(value, dict)
    if issubclass(kind, Sequence):
        item_hint = parts[0] if parts else Any
        fits = isinstance(value, list)
        return fits and all(_fitting(item, item_hint) is not _MISFIT for item in value)
    return False


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    dict: "keys with values",
    list: "a list",
}


def _in_words(hint: Any) -> str:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(_in_words, parts))))
    if kind is Literal:
        return " or ".join(map(repr, parts))
    if kind in _KINDS:
        return _KINDS[kind]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return _KINDS[dict]
    return _KINDS[list] if isinstance(kind, type) and issubclass(kind, Sequence) else ""
