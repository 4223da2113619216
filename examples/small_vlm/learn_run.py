"""One learning run: measured before and after on held-out rows, with its curve over time."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from foveal import FastVisionModel
from foveal.eval_result import EvalResult, compare, read_result, write_result
from foveal.evaluate import evaluate
from foveal.recipe import Recipe, check_recipe, load_recipe
from foveal.report import versions
from foveal.train import GRPOTrainer

WINDOW = 10
"""Rollouts whose rewards are averaged before a reward counts as reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says about every run."""

    recipes: Path
    """Folder of the recipes."""
    model: Path
    out: Path
    overrides: tuple[str, ...] = ()
    answers: int = 4
    """Sampled to each held-out question, at temperature 1."""
    rows: int | None = None
    """Held-out rows; all if None."""
    targets: tuple[float, ...] = ()
    """Mean rewards whose times are noted."""
    train_seconds: float | None = None
    """Training stops after so many seconds, and held-out rows are answered as ever."""


@dataclass(slots=True)
class Learned:
    """What a run of either system leaves."""

    model: Any
    processor: Any
    before: EvalResult
    history: list[dict[str, Any]]
    """The trainer's log."""
    clock: Clock
    steps: int


@dataclass(slots=True)
class Clock(TrainerCallback):
    """Seconds of training at each optimizer step; evaluation does not count."""

    limit: float | None = None
    """Training stops after so many."""
    seconds: dict[int, float] = field(default_factory=dict)
    """By number of the step."""
    _total: float = 0.0
    _last: float = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = _now()
        self._total += now - self._last
        self._last = now
        self.seconds[state.global_step] = self._total
        if self.limit is not None and self._total >= self.limit:
            control.should_training_stop = True

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._last = _now()


def recipe_of(asked: Asked, name: str, seed: int) -> Recipe:
    """A recipe with the folders, the model and the seed of a run.

    Args:
        asked: what all runs share.
        name: of a file in the folder of recipes.
        seed: of the adapter, the order of rows and the sampling.

    Raises:
        ValueError: as ``load_recipe``.
    """
    path = asked.recipes / f"{name}.yaml"
    plain = load_recipe(path)
    own = [
        f"model.model_name={json.dumps(str(asked.model.absolute()))}",
        f"train.output_dir={json.dumps(str(asked.out / 'work' / f'{name}-{seed}'))}",
        f"train.seed={seed}",
        f"train.use_cpu={json.dumps(not torch.cuda.is_available())}",
    ]
    if plain.lora is not None:
        own.append(f"lora.random_state={seed}")
    for role in ("train", "eval"):
        source = getattr(plain.data, role)
        if isinstance(source, str):
            here = asked.out.absolute() / "data" / Path(source).name
            own.append(f"data.{role}={json.dumps(str(here))}")
    # What the command line asks for goes last, so that it wins.
    return load_recipe(path, [*own, *asked.overrides])


def run_foveal(recipe: Recipe, asked: Asked) -> Learned:
    """Load, measure, train.

    Raises:
        ValueError: as ``check_recipe``, before any weights are loaded.
    """
    checked = check_recipe(recipe)
    model, processor = FastVisionModel.from_pretrained(**recipe.model)
    if recipe.lora is not None:
        # It changes nothing before the first step: B is zero.
        model = FastVisionModel.get_peft_model(model, **recipe.lora)
    before = held_out_before(model, processor, recipe, asked)
    clock = Clock(asked.train_seconds)
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=checked.reward_functions,
        train_dataset=checked.train_rows,
        eval_dataset=checked.eval_rows,
        args=checked.config,
        callbacks=[clock],
    )
    trainer.train()
    return Learned(
        model, processor, before, trainer.state.log_history, clock, trainer.state.global_step
    )


# -- held-out rows


def held_out_before(model: Any, processor: Any, recipe: Recipe, asked: Asked) -> EvalResult:
    """The start's result: measured once for a seed, and read again by runs from the same start."""
    seed = recipe.train["seed"]
    what = [recipe.model, recipe.data.eval, list(recipe.rewards), seed, asked.answers, asked.rows,
            recipe.train.get("max_completion_length")]  # fmt: skip
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    path = asked.out / "before" / f"{key}.json"
    if not path.is_file():
        write_result(path, held_out(model, processor, recipe, asked))
    return read_result(path)


def held_out(model: Any, processor: Any, recipe: Recipe, asked: Asked) -> EvalResult:
    """Answers to the recipe's evaluation rows, sampled at temperature 1."""
    from foveal.data import load_rows

    assert isinstance(recipe.data.eval, str), "recipes of learning runs name a file for eval"
    rows: Any = load_rows(recipe.data.eval)
    if asked.rows is not None:
        rows = load_rows([dict(rows.rows[i]) for i in range(min(asked.rows, len(rows)))])
    model.eval()
    answered = evaluate(
        model,
        processor,
        rows,
        list(recipe.rewards),
        num_generations=asked.answers,
        temperature=1.0,
        max_completion_length=recipe.train.get("max_completion_length", 512),
        batch_size=128,
        seed=recipe.train["seed"],
    )
    settings = {"samples": asked.answers, "temperature": 1.0, "data": recipe.data.eval}
    return answered.result(settings, versions())


def gain(before: EvalResult, after: EvalResult) -> dict[str, Any]:
    """The first reward before and after, with 95 % intervals over questions.

    ``interval`` is that of the mean afterwards, ``gain`` the paired difference with its own.
    """
    name = f"reward/{before.rewards[0]}"
    found = compare(before, after).metrics[name]
    tasks = [result.summary().get("by_task", {}) for result in (before, after)]
    return {
        "metric": f"mean {before.rewards[0]} of {before.settings['samples']} samples a question "
        "at temperature 1, held-out",
        "questions": found.first.prompts,
        "before": found.first.mean,
        "after": found.second.mean,
        "interval": [found.second.low, found.second.high],
        "gain": {
            "mean": found.test.difference,
            "interval": [found.test.low, found.test.high],
            "p_value": found.test.p_value,
        },
        "by_task": {
            task: {
                when: group[task]["metrics"][name]["mean"]
                for when, group in zip(("before", "after"), tasks, strict=True)
            }
            for task in tasks[1]
        },
    }


# -- the curve


def reward_curve(
    history: Sequence[Mapping[str, Any]], seconds: Mapping[int, float]
) -> list[tuple[int, float, float]]:
    """(step, seconds of training, mean reward) of every rollout."""
    return [
        (entry["step"], seconds[entry["step"]], entry["reward"])
        for entry in history
        if "reward" in entry and entry["step"] in seconds and math.isfinite(entry["reward"])
    ]


def seconds_to(
    curve: Sequence[tuple[int, float, float]], target: float, window: int = WINDOW
) -> float | None:
    """When the mean reward of the last ``window`` rollouts first was ``target``; None if never."""
    rewards = [reward for _, _, reward in curve]
    for end in range(window, len(curve) + 1):
        if sum(rewards[end - window : end]) / window >= target:
            return curve[end - 1][1]
    return None


def release() -> None:
    """Give memory of the run before back, once nobody holds its model."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _now() -> float:
    """Seconds, with the device's work done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
