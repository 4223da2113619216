"""The text of a recipe: YAML, ``key=value`` overrides, and where relative paths start.

YAML is read by the core schema of version 1.2: ``1e-5`` is a number, ``off`` and ``no`` are words,
and no key stands twice.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from foveal.data.files import EXTENSIONS
from foveal.recipe.keys import EXAMPLES, RecipeError, check_rewards, refuse_unknown

__all__ = ["anchor", "apply_override", "read_sections", "to_yaml"]

_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
"""Type -> what its plain text looks like and begins with."""


class _Loader(yaml.SafeLoader):
    """Every plain scalar is text until ``_learn_schema`` says otherwise."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  as PyYAML has it

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise RecipeError(
                    f"the key {key_node.value!r} stands twice, the second time in line "
                    f"{key_node.start_mark.line + 1}; keep one of them"
                )
            if isinstance(key_node, yaml.ScalarNode):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _learn_schema(kind: Any) -> None:
    for name, (pattern, first) in _CORE_SCHEMA.items():
        kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$"), first
        )


_learn_schema(_Loader)
_learn_schema(_Dumper)


def read_sections(path: Path) -> dict[str, Any]:
    """The sections of a recipe, as they stand in the file.

    Raises:
        RecipeError: for a file that is not there, no YAML, or has other sections.
    """
    if not path.is_file():
        raise RecipeError(f"there is no such file (looked for {path.absolute()}); correct the path")
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"this is no YAML ({_one_line(error)}); correct it there") from None
    if not isinstance(found, dict):
        raise RecipeError(
            f"a recipe has the sections {', '.join(EXAMPLES)}, this file has none; begin with "
            f"{EXAMPLES['model']}"
        )
    refuse_unknown("", found)
    return found


def to_yaml(sections: dict[str, Any]) -> str:
    """Text that ``read_sections`` reads back."""
    return yaml.dump(sections, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def apply_override(sections: dict[str, Any], text: str) -> None:
    """Put one ``section.key=value`` in place; the value is YAML.

    Raises:
        RecipeError: for text that is no override, an unknown section, or a key inside of
            something that has no keys.
    """
    # Rewards have names such as "number_within(rel_tol=0.1)" and "mine.py:brevity".
    is_reward = text.startswith("rewards.")
    key, sign, value = text.rpartition("=") if is_reward else text.partition("=")
    parts = key.strip().split(".", 1 if is_reward else -1)
    if not sign or not all(parts):
        raise RecipeError(
            f"the override {text!r} is no key=value; write it like train.learning_rate=1e-5"
        )
    refuse_unknown("", parts[:1])
    if is_reward:
        named = sections.get("rewards")
        sections["rewards"] = check_rewards(named) if named else {}
    inner = _mapping_at(sections, parts[:-1], text)
    try:
        inner[parts[-1]] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"the value of the override {text!r} is no YAML ({_one_line(error)}); put it in quotes"
        ) from None


def _mapping_at(sections: dict[str, Any], parts: list[str], text: str) -> dict[str, Any]:
    """The mapping that an override reaches into, made if nothing is there."""
    inner = sections
    for part in parts:
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            raise RecipeError(
                f"the override {text!r} does not fit: {part} is {inner!r}, which has no keys; "
                f"override {part} as a whole"
            )
    return inner


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def anchor(sections: dict[str, Any], folder: Path) -> None:
    """Let relative paths of the model, the data and reward files start from ``folder``.

    Absolute ones stay, so what a recipe names is anchored first and what overrides name after it.
    """
    for section, keys in (("model", ["model_name"]), ("data", ["train", "eval"])):
        values = sections.get(section)
        if not isinstance(values, dict):
            continue
        for key in keys:
            value = values.get(key)
            if isinstance(value, str):
                values[key] = _anchored(value, folder)
            elif isinstance(value, list):
                values[key] = [_anchored(v, folder) if isinstance(v, str) else v for v in value]
                for part in values[key]:
                    if isinstance(part, dict) and isinstance(part.get("data"), str):
                        part["data"] = _anchored(part["data"], folder)
                    _anchor_image_dir(part, folder)
        if section == "data":
            _anchor_image_dir(values, folder)
    if sections.get("rewards"):
        rewards = check_rewards(sections["rewards"])
        sections["rewards"] = {_anchored_reward(n, folder): w for n, w in rewards.items()}


def _anchor_image_dir(values: Any, folder: Path) -> None:
    if isinstance(values, dict) and isinstance(values.get("image_dir"), str):
        beside = folder / os.path.expanduser(values["image_dir"])
        values["image_dir"] = os.path.normpath(beside)


def _anchored(name: str, folder: Path) -> str:
    """``name`` from ``folder`` on if it is a path, and not the id of something on the hub."""
    is_path = name.startswith((".", "~")) or Path(name).suffix.lower() in EXTENSIONS
    beside = os.path.normpath(folder / os.path.expanduser(name))
    return beside if is_path or os.path.exists(beside) else name


def _anchored_reward(name: str, folder: Path) -> str:
    source, colon, function = name.rpartition(":")
    if not source.endswith(".py"):
        return name
    return os.path.normpath(folder / os.path.expanduser(source)) + colon + function
