"""Recipes of supervised training: load one, check what it names, run it.

model: {model_name: ./small_vlm}
lora: false                                   # all weights; or the arguments of get_peft_model
data:
  train:                                      # one, or several that are mixed
    - {task: shapes, n: 40000, difficulty: [1, 2, 3]}     # drawn as they are needed
    - captions.jsonl
  eval: {task: shapes, n: 200, seed: 1}
rewards: [exact_answer]                       # of train.eval_answers; may be left out
train: {output_dir: runs/warm, ...}           # fields of SFTConfig
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.data import RowSource, join_rows, load_rows
from foveal.recipe.file import anchor, apply_override, read_sections, to_yaml
from foveal.recipe.keys import (
    EXAMPLES,
    RecipeError,
    SFTDataSection,
    check_rewards,
    check_section,
)
from foveal.recipe.run import (
    begin_folder,
    check_evaluation,
    family_named,
    refuse_own_file,
    save_result,
)
from foveal.rewards import resolve

if TYPE_CHECKING:
    from foveal.train import SFTConfig, SFTTrainer

__all__ = [
    "CheckedSFTRecipe",
    "SFTRecipe",
    "check_sft_recipe",
    "load_sft_recipe",
    "run_sft_recipe",
]

_REWARD = "exact_answer"
"""What judges answers where a recipe names no rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTRecipe:
    """A recipe whose keys and types are known to be right."""

    path: Path | None
    """The file it was read from; None for one made of options."""
    model: dict[str, Any]
    lora: dict[str, Any] | None
    """None trains the model as it is loaded: an adapter checkpoint, or all weights."""
    data: SFTDataSection
    rewards: list[str]
    train: dict[str, Any]
    """Its ``output_dir`` is absolute."""

    def to_yaml(self) -> str:
        """Text of a recipe that does the same from any folder."""
        data = {key: value for key, value in asdict(self.data).items() if value is not None}
        lora = False if self.lora is None else self.lora
        sections = {"model": self.model, "lora": lora, "data": data, "rewards": self.rewards}
        return to_yaml({**sections, "train": self.train})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSFTRecipe:
    """What was opened while a recipe was checked; no weights are among it."""

    family: str
    """Model type of the checkpoint."""
    config: SFTConfig
    train_rows: RowSource
    eval_rows: RowSource | None
    reward_functions: list[Callable[..., Any]]


def load_sft_recipe(
    source: str | Path | dict[str, Any], overrides: Sequence[str] = ()
) -> SFTRecipe:
    """Read a recipe and check its sections, keys and types.

    Args:
        source: the YAML file, or the sections of a recipe, whose paths start from the current
            folder.
        overrides: ``section.key=value``, values as in YAML: ``train.learning_rate=1e-5``.

    Raises:
        ValueError: for what is no recipe, a missing section, an unknown key (with the nearest
            known one) or a value of the wrong type; names the file and the key.
    """
    path = None if isinstance(source, dict) else Path(source)
    try:
        if isinstance(source, dict):
            sections = {name: source[name] for name in source}
        else:
            sections = read_sections(Path(source))
            anchor(sections, Path(source).absolute().parent)
        for override in overrides:
            apply_override(sections, override)
        anchor(sections, Path.cwd())
        return _checked(path, sections)
    except RecipeError as error:
        raise ValueError(f"{path or 'the options'}: {error}") from None


def _checked(path: Path | None, sections: dict[str, Any]) -> SFTRecipe:
    for name, example in EXAMPLES.items():
        if name not in sections and name != "rewards":
            raise RecipeError(f"the section {name} is missing; add for example `{example}`")
    data = check_section("data", sections["data"], "SFTConfig")
    for role in ("train", "eval"):
        parts = data.get(role)
        if isinstance(parts, list):
            data[role] = [_checked_part(role, part) for part in parts]
        elif parts is not None:
            data[role] = _checked_part(role, parts)
    model = check_section("model", sections["model"])
    lora = None if sections["lora"] is False else check_section("lora", sections["lora"])
    train = check_section("train", sections["train"], "SFTConfig")
    train["output_dir"] = os.path.abspath(os.path.expanduser(train["output_dir"]))
    return SFTRecipe(
        path=path,
        model=model,
        lora=lora,
        data=SFTDataSection(**data),
        rewards=list(check_rewards(sections.get("rewards") or _REWARD)),
        train=train,
    )


def _checked_part(role: str, part: Any) -> str | dict[str, Any]:
    if isinstance(part, str):
        return part
    return check_section(f"data.{role}", part, "SFTConfig")


def check_sft_recipe(recipe: SFTRecipe) -> CheckedSFTRecipe:
    """Open what a recipe names, weights excepted: data, settings, the model's config.

    Raises:
        ValueError: for what would stop the run later; names the file.
    """
    from foveal.train import SFTConfig

    try:
        refuse_own_file(recipe.path, recipe.train)
        functions = [resolve(name) for name in recipe.rewards]
        config = SFTConfig(**recipe.train)
        train_rows = _open(recipe.data.train, recipe.data.split)
        eval_rows = None
        if recipe.data.eval is not None:
            eval_rows = _open(recipe.data.eval, recipe.data.eval_split)
        elif recipe.data.eval_split is not None:
            eval_rows = _open(recipe.data.train, recipe.data.eval_split)
        check_evaluation(config, eval_rows)
        family = family_named(recipe.model)
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"{recipe.path or 'the options'}: {error}") from error
    return CheckedSFTRecipe(
        family=family,
        config=config,
        train_rows=train_rows,
        eval_rows=eval_rows,
        reward_functions=functions,
    )


def run_sft_recipe(recipe: SFTRecipe, resume: bool | str | None = None) -> SFTTrainer:
    """Train. The run folder gets the resolved recipe first and the adapter or weights last.

    Args:
        recipe: from ``load_sft_recipe``.
        resume: a checkpoint folder, or True for the last whole one of the run folder;
            ``train.resume_from_checkpoint`` if None.

    Returns:
        The trainer, with the trained model in it.

    Raises:
        ValueError: as ``check_sft_recipe``, before any weights are loaded.
    """
    from foveal.fast_model import FastVisionModel
    from foveal.train import SFTTrainer

    checked = check_sft_recipe(recipe)
    folder = begin_folder(recipe.train, recipe.to_yaml())
    model, processor = FastVisionModel.from_pretrained(**recipe.model)
    if recipe.lora is not None:
        model = FastVisionModel.get_peft_model(model, **recipe.lora)
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=checked.train_rows,
        eval_dataset=checked.eval_rows,
        reward_funcs=checked.reward_functions,
        args=checked.config,
    )
    trainer.train(recipe.train.get("resume_from_checkpoint") if resume is None else resume)
    save_result(model, processor, folder)
    return trainer


def _open(parts: str | dict[str, Any] | list[Any], split: str | None) -> RowSource:
    """Open data sets, read the first row of each, and join them."""
    opened = []
    for part in parts if isinstance(parts, list) else [parts]:
        rows = _task_rows(part) if isinstance(part, dict) else load_rows(part, split)
        rows[0]
        opened.append(rows)
    return join_rows(opened)


def _task_rows(part: dict[str, Any]) -> RowSource:
    """Rows of a task that are drawn when they are read, with tagged answers to learn."""
    from foveal.tasks import drawn_rows, tagged

    levels = part.get("difficulty", 3)
    levels = levels if isinstance(levels, list) else [levels]
    rows = drawn_rows(part["task"], part["n"], part.get("seed", 0), levels, tagged)
    return replace(load_rows(rows), name=f"the task {part['task']}")
