"""What a reward function is called, whether it is async, and which arguments it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_KEYWORD_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """A reward function and what was found out about it once."""

    function: Callable[..., Any]
    name: str
    is_async: bool
    accepted: frozenset[str] | None
    """Names of the arguments it takes; None if it takes any (``**kwargs``)."""
    required: frozenset[str]
    """Those without a default."""
    bound: frozenset[str]
    """Those that a functools.partial has already given it."""

    def choose(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The ``arguments`` that the function takes.

        Raises ValueError naming the function and a required argument that is not there.
        """
        if missing := sorted(self.required - set(arguments)):
            raise ValueError(
                f"the reward function '{self.name}' needs {missing}, and the data has only "
                f"{sorted(arguments)}; rename the column or give the argument a default"
            )
        taken = set(arguments) if self.accepted is None else self.accepted
        return {key: arguments[key] for key in arguments if key in taken - self.bound}


def describe(functions: Sequence[Callable[..., Any]]) -> list[RewardSpec]:
    """A ``RewardSpec`` for each function, with distinct names: ``f``, ``f_2``, ``f_3``.

    Raises TypeError for a function with an argument that cannot be given by name.
    """
    specs: list[RewardSpec] = []
    for function in functions:
        name = _distinct(_name(function), {spec.name for spec in specs})
        specs.append(_describe(function, name))
    return specs


def _describe(function: Callable[..., Any], name: str) -> RewardSpec:
    bound = frozenset(function.keywords) if isinstance(function, functools.partial) else frozenset()
    inner = _unwrapped(function)
    # An object is called through its type.
    is_async = any(map(inspect.iscoroutinefunction, (inner, type(inner).__call__)))
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C do not tell
        return RewardSpec(function, name, is_async, None, frozenset(), bound)
    without_default = {p.name: p for p in parameters if p.default is p.empty}
    if nameless := [n for n, p in without_default.items() if p.kind is p.POSITIONAL_ONLY]:
        raise TypeError(
            f"the reward function '{name}' takes {nameless} by position only; reward functions "
            "are called by name: f(prompts=, completions=, completion_ids=, **columns)"
        )
    named = [p for p in parameters if p.kind in _KEYWORD_KINDS]
    return RewardSpec(
        function,
        name,
        is_async,
        None if any(p.kind is p.VAR_KEYWORD for p in parameters) else frozenset(_names(named)),
        frozenset(_names(p for p in named if p.name in without_default)),
        bound,
    )


def _names(parameters: Iterable[inspect.Parameter]) -> list[str]:
    return [parameter.name for parameter in parameters]


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _name(function: Any) -> str:
    inner = _unwrapped(function)
    return getattr(inner, "__name__", None) or type(inner).__name__


def _distinct(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
