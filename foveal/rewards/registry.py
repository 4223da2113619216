"""Reward functions by name: built in, or from a module or file of the user's."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from foveal.rewards.adapt import from_easyr1, from_ms_swift, from_verl, from_vlm_r1
from foveal.rewards.answer import exact_answer
from foveal.rewards.boxes import boxes_iou
from foveal.rewards.boxes_more import boxes_giou, boxes_map
from foveal.rewards.chart import chart_relaxed
from foveal.rewards.choice import choice_letter
from foveal.rewards.count import count_shaped
from foveal.rewards.format import boxed_format, think_answer_format
from foveal.rewards.json_fields import json_fields
from foveal.rewards.language import language_of
from foveal.rewards.length import soft_overlong
from foveal.rewards.maths import math_answer
from foveal.rewards.model_judge import judge
from foveal.rewards.number import number_answer, number_within
from foveal.rewards.points import points_within
from foveal.rewards.quantity import quantity_within
from foveal.rewards.repetition import repetition_penalty_reward
from foveal.rewards.sets import exact_set, set_f1
from foveal.rewards.smiles import smiles_match, smiles_similar
from foveal.rewards.text import text_edit

RewardFunction = Callable[..., Any]
"""``f(prompts=, completions=, completion_ids=, **columns) -> list[float | None]``, or async."""

BUILTIN_REWARDS: dict[str, RewardFunction] = {
    "exact_answer": exact_answer,
    "choice_letter": choice_letter,
    "number_answer": number_answer,
    "math_answer": math_answer,
    "exact_set": exact_set,
    "smiles_match": smiles_match,
    "boxes_iou": boxes_iou,
    "think_answer_format": think_answer_format,
    "boxed_format": boxed_format,
}
"""The reward functions that need no settings."""

REWARD_FACTORIES: dict[str, Callable[..., RewardFunction]] = {
    "number_within": number_within,
    "quantity_within": quantity_within,
    "chart_relaxed": chart_relaxed,
    "count_shaped": count_shaped,
    "set_f1": set_f1,
    "text_edit": text_edit,
    "smiles_similar": smiles_similar,
    "json_fields": json_fields,
    "points_within": points_within,
    "boxes_giou": boxes_giou,
    "boxes_map": boxes_map,
    "language_of": language_of,
    "repetition_penalty_reward": repetition_penalty_reward,
    "soft_overlong": soft_overlong,
    "judge": judge,
    "from_verl": from_verl,
    "from_easyr1": from_easyr1,
    "from_vlm_r1": from_vlm_r1,
    "from_ms_swift": from_ms_swift,
}
"""Those that do: ``"number_within(rel_tol=0.05)"``, ``"soft_overlong(1024, 128)"``."""

ELSEWHERE: dict[str, str] = {"task_reward": "foveal.tasks:task_reward"}
"""Reward functions of other parts of the library, which is imported when one is asked for."""


def reward_names() -> list[str]:
    """The names that ``resolve`` knows, sorted."""
    return sorted([*BUILTIN_REWARDS, *REWARD_FACTORIES, *ELSEWHERE])


def resolve(reward: str | RewardFunction) -> RewardFunction:
    """The reward function that ``reward`` names; a function is returned as it is.

    A name is one of ``BUILTIN_REWARDS`` or ``ELSEWHERE``, a call of one of ``REWARD_FACTORIES``
    with plain values, ``"package.module:function"`` or ``"path/file.py:function"``. Raises
    ValueError for a name that is none of them (with the nearest names) and TypeError for what
    cannot be called.
    """
    if not isinstance(reward, str):
        return _callable(reward, repr(reward))
    name = ELSEWHERE.get(reward.strip(), reward.strip())
    if name in BUILTIN_REWARDS:
        return BUILTIN_REWARDS[name]
    if name.partition("(")[0].strip() in REWARD_FACTORIES:
        return _build(name)
    if ":" in name:
        return _from_source(name)
    raise ValueError(
        f"unknown reward {reward!r}; {_nearest(name, reward_names())}. "
        "Your own function is given as 'package.module:function' or 'path/file.py:function'"
    )


def _callable(value: Any, shown: str) -> RewardFunction:
    if not callable(value):
        raise TypeError(f"the reward {shown} is a {type(value).__name__}, not a function")
    return value


def _nearest(name: str, names: Iterable[str]) -> str:
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {names}"


def _build(text: str) -> RewardFunction:
    """Evaluate ``factory(1, key=2)``: literals only, never arbitrary code."""
    name = text.partition("(")[0].strip()
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("it needs settings in parentheses")
        args = [ast.literal_eval(arg) for arg in call.args]
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        return REWARD_FACTORIES[name](*args, **kwargs)
    except (ValueError, TypeError, SyntaxError) as error:
        raise ValueError(
            f"the reward {text!r} could not be made: {error}; write for example "
            "'number_within(rel_tol=0.05)' or 'soft_overlong(1024, 128)'"
        ) from error


def _from_source(name: str) -> RewardFunction:
    source, _, attribute = name.rpartition(":")
    module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if callable(getattr(module, n)) and n[0] != "_"]
        raise ValueError(f"{source!r} has no {attribute!r}; {_nearest(attribute, public)}")
    return _callable(getattr(module, attribute), repr(name))


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError, TypeError) as error:
        raise ValueError(
            f"the module {name!r} of a reward could not be imported: {error}; a file that is not "
            "installed is given as 'path/file.py:function'"
        ) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"the file {str(path)!r} of a reward does not exist in {Path.cwd()}")
    name = f"foveal_user_rewards_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(
            f"the file {str(path)!r} of a reward could not be run: {type(error).__name__}: {error}"
        ) from error
    return module
