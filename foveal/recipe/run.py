"""From a recipe to a trained adapter: load it, check what it names, run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.data import Mixture, RowSource, TaskRows, load_rows, mixture, task_rows
from foveal.recipe.file import anchor, apply_override, read_sections, to_yaml
from foveal.recipe.keys import (
    EXAMPLES,
    DataSection,
    RecipeError,
    check_parts,
    check_rewards,
    check_section,
    weigh_rewards,
)
from foveal.rewards import resolve

if TYPE_CHECKING:
    from foveal.train import GRPOConfig, GRPOTrainer
    from foveal.train.run_config import RunConfig

__all__ = ["CheckedRecipe", "DataSection", "Recipe", "check_recipe", "load_recipe", "run_recipe"]

_RESOLVED_FILE = "recipe.yaml"
_RESOLVED_HEADER = "# Written by foveal: the recipe of this run, overrides included.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe whose keys and types are known to be right."""

    path: Path
    """The file it was read from."""
    model: dict[str, Any]
    lora: dict[str, Any] | None
    """None trains the model as it is loaded: an adapter checkpoint, or all weights."""
    data: DataSection
    rewards: dict[str, float]
    """Weight of each reward."""
    train: dict[str, Any]
    """Its ``output_dir`` is absolute."""

    def to_yaml(self) -> str:
        """Text of a recipe that does the same from any folder."""
        given = asdict(self.data).items()
        data = {key: value for key, value in given if value is not None and value is not False}
        lora = False if self.lora is None else self.lora
        sections = {"model": self.model, "lora": lora, "data": data, "rewards": self.rewards}
        return to_yaml({**sections, "train": self.train})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecipe:
    """What was opened while a recipe was checked; no weights are among it."""

    family: str
    """Model type of the checkpoint."""
    config: GRPOConfig
    train_rows: RowSource | TaskRows | Mixture
    eval_rows: RowSource | None
    reward_functions: list[Callable[..., Any]]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check its sections, keys and types.

    Args:
        path: the YAML file.
        overrides: ``section.key=value``, values as in YAML: ``train.learning_rate=1e-5``.

    Raises:
        ValueError: for a file that is no recipe, a missing section, an unknown key (with the
            nearest known one) or a value of the wrong type; names the file and the key.
    """
    path = Path(path)
    try:
        sections = read_sections(path)
        anchor(sections, path.absolute().parent)
        for override in overrides:
            apply_override(sections, override)
        anchor(sections, Path.cwd())
        return _checked(path, sections)
    except RecipeError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked(path: Path, sections: dict[str, Any]) -> Recipe:
    for name, example in EXAMPLES.items():
        if name not in sections:
            raise RecipeError(f"the section {name} is missing; add for example `{example}`")
    # What loads no torch comes first, so that most mistakes show at once.
    rewards = check_rewards(sections["rewards"])
    data = check_section("data", sections["data"])
    for role in ("train", "eval"):
        if isinstance(data.get(role), dict):
            data[role] = check_section(f"data.{role}", data[role])
    if isinstance(data["train"], list):
        data["train"] = check_parts(data["train"])
    model = check_section("model", sections["model"])
    lora = None if sections["lora"] is False else check_section("lora", sections["lora"])
    train = check_section("train", sections["train"])
    train["output_dir"] = os.path.abspath(os.path.expanduser(train["output_dir"]))
    return Recipe(
        path=path,
        model=model,
        lora=lora,
        data=DataSection(**data),
        rewards=weigh_rewards(rewards, train.pop("reward_weights", None)),
        train=train,
    )


def check_recipe(recipe: Recipe) -> CheckedRecipe:
    """Open what a recipe names, weights excepted: data, rewards, settings, the model's config.

    Raises:
        ValueError: for what would stop the run later; names the file.
    """
    from foveal.train import GRPOConfig

    try:
        refuse_own_file(recipe.path, recipe.train)
        functions = [resolve(name) for name in recipe.rewards]
        config = GRPOConfig(**recipe.train, reward_weights=list(recipe.rewards.values()))
        train_rows, eval_rows = _open_data(recipe.data, config)
        check_evaluation(config, eval_rows)
        family = family_named(recipe.model)
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"{recipe.path}: {error}") from error
    return CheckedRecipe(
        family=family,
        config=config,
        train_rows=train_rows,
        eval_rows=eval_rows,
        reward_functions=functions,
    )


def run_recipe(recipe: Recipe, resume: bool | str | None = None) -> GRPOTrainer:
    """Train. The run folder gets the resolved recipe first and the adapter last.

    Args:
        recipe: from ``load_recipe``.
        resume: a checkpoint folder, or True for the last whole one of the run folder;
            ``train.resume_from_checkpoint`` if None.

    Returns:
        The trainer, with the trained model in it.

    Raises:
        ValueError: as ``check_recipe``, before any weights are loaded.
    """
    from foveal.fast_model import FastVisionModel
    from foveal.train import GRPOTrainer

    checked = check_recipe(recipe)
    folder = begin_folder(recipe.train, recipe.to_yaml())
    model, processor = FastVisionModel.from_pretrained(**recipe.model)
    if recipe.lora is not None:
        model = FastVisionModel.get_peft_model(model, **recipe.lora)
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=checked.reward_functions,
        train_dataset=checked.train_rows,
        eval_dataset=checked.eval_rows,
        args=checked.config,
    )
    trainer.train(recipe.train.get("resume_from_checkpoint") if resume is None else resume)
    save_result(model, processor, folder)
    return trainer


def begin_folder(train: dict[str, Any], resolved: str) -> Path:
    """Make the run folder and put the resolved recipe into it."""
    folder = Path(train["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _RESOLVED_FILE).write_text(_RESOLVED_HEADER + resolved, encoding="utf-8")
    return folder


def save_result(model: Any, processor: Any, folder: Path) -> None:
    """Write the trained adapter, or the trained weights with their processor."""
    model.save_pretrained(folder)
    if not hasattr(model, "peft_config"):
        # An adapter finds its processor at its base; whole weights have no base.
        processor.save_pretrained(folder)


def family_named(model: dict[str, Any]) -> str:
    """Model type of the checkpoint that a section names; no weights are read."""
    from foveal.models.family import family_module
    from foveal.models.load import find_checkpoint

    place = find_checkpoint(model["model_name"], model.get("revision"))
    return family_module(str(place.config.get("model_type"))).FAMILY.model_type


def check_evaluation(config: RunConfig, eval_rows: RowSource | None) -> None:
    """Refuse evaluation without data; say so where data would not be used."""
    from foveal.models.state import say

    asked = getattr(config.eval_strategy, "value", config.eval_strategy)
    if eval_rows is None and asked != "no":
        raise ValueError(
            f"train.eval_strategy is {asked!r}, and there is nothing "
            "to evaluate on; add data.eval or data.eval_split, or take eval_strategy out"
        )
    if eval_rows is not None and asked == "no":
        say("the evaluation data is not used: train.eval_strategy is 'no'")


def refuse_own_file(path: Path | None, train: dict[str, Any]) -> None:
    """The resolved recipe may replace an older one of its kind, not what a person wrote."""
    target = Path(train["output_dir"]) / _RESOLVED_FILE
    if path is None or not target.is_file() or not target.samefile(path):
        return
    if not target.read_text(encoding="utf-8").startswith(_RESOLVED_HEADER):
        raise ValueError(
            "the run would write its resolved recipe over this file; give the recipe another "
            "name, or train.output_dir another folder"
        )


def _open_data(
    data: DataSection, config: GRPOConfig
) -> tuple[RowSource | TaskRows | Mixture, RowSource | None]:
    if not isinstance(data.train, str) and data.eval is None and data.eval_split is not None:
        raise ValueError(
            "data.eval_split is a split of a set, and data.train names none; give eval"
        )
    train_rows = _open_train(data)
    endless = not isinstance(train_rows, RowSource) or train_rows.is_streamed
    if endless and config.max_steps <= 0:
        raise ValueError(
            f"{train_rows.name} has no known number of rows, so an epoch has no end; set "
            "train.max_steps"
        )
    if data.eval is None and data.eval_split is None:
        return train_rows, None
    evaluated = data.train if data.eval is None else data.eval
    assert not isinstance(evaluated, list)
    return train_rows, _open(evaluated, data.eval_split, **_reading(data))


def _reading(data: DataSection) -> dict[str, Any]:
    return {"rename": data.rename, "image_dir": data.image_dir}


def _open_train(data: DataSection) -> RowSource | TaskRows | Mixture:
    if not isinstance(data.train, list):
        if isinstance(data.train, dict) and "n" not in data.train:
            return _endless(data.train)
        return _open(data.train, data.split, data.streaming, **_reading(data))
    sources = [_part(part) for part in data.train]
    weights = [part.get("weight", 1.0) for part in data.train]
    plain = mixture(sources, weights)
    names = [part.get("name", name) for part, name in zip(data.train, plain.names, strict=True)]
    return mixture(sources, weights, names)


def _part(part: dict[str, Any]) -> RowSource | TaskRows:
    if "data" in part:
        reading = {key: part.get(key) for key in ("rename", "image_dir")}
        return _open(part["data"], part.get("split"), part.get("streaming", False), **reading)
    task = {key: part[key] for key in ("task", "n", "seed", "difficulty") if key in part}
    return _open(task, None) if "n" in task else _endless(task)


def _endless(spec: dict[str, Any]) -> TaskRows:
    from foveal.tasks import get_task

    rest = {key: value for key, value in spec.items() if key != "task"}
    rows = task_rows(get_task(spec["task"]), **rest)
    rows.task.generate(0, rows.difficulty)
    return rows


def _open(
    spec: str | dict[str, Any], split: str | None, streaming: bool = False, **reading: Any
) -> RowSource:
    """Open a data set and read its first row, so that a wrong one fails now."""
    if isinstance(spec, dict):
        from foveal.tasks import dataset

        settings = {key: value for key, value in spec.items() if key != "task"}
        rows = replace(
            load_rows(dataset(spec["task"], **settings), split), name=f"the task {spec['task']}"
        )
    else:
        rows = load_rows(spec, split, streaming, **reading)
    next(iter(rows))
    return rows
