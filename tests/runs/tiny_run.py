"""A run on a tiny model in one line, and what is compared between runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from foveal import FastVisionModel, GRPOConfig, GRPOTrainer
from foveal.rollout import ScriptedBackend
from foveal.testing import tiny
from tests.samples import picture, row

WORDS = ("red", "blue", "square", "dark", "round", "large", "striped", "small", "empty", "odd")


def adapted(family: str = "qwen2_5_vl", **flags: Any) -> tuple[Any, Any]:
    model, processor = tiny(family)
    flags = {"finetune_vision_layers": False, "use_gradient_checkpointing": False, **flags}
    return FastVisionModel.get_peft_model(model, r=4, lora_alpha=8, **flags), processor


def questions(count: int) -> list[dict[str, Any]]:
    """Rows of different length; every other one has a picture."""
    return [
        row(f"How many {word} things?", *([picture(i, 56, 56)] if i % 2 else []))
        for i, word in enumerate(WORDS[:count])
    ]


def mean_byte(completion_ids, **_):
    """Hardly ever equal within a group, so that every step has a gradient."""
    return [sum(ids) / len(ids) / 256 for ids in completion_ids]


def trainer(
    folder: Path,
    *,
    model: tuple[Any, Any] | None = None,
    rows: Any = None,
    reward_funcs: Any = mean_byte,
    script: Any = None,
    callbacks: Any = None,
    eval_rows: Any = None,
    **config: Any,
) -> GRPOTrainer:
    """Two groups of two completions a step, quiet; ``config`` overrides."""
    model, processor = model or adapted()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 5,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "num_completions_to_print": 0,
    }
    return GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=reward_funcs,
        train_dataset=questions(6) if rows is None else rows,
        eval_dataset=eval_rows,
        callbacks=callbacks,
        rollout_backend=script and ScriptedBackend(script, processor.tokenizer),
        args=GRPOConfig(**{**settings, **config}),
    )


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == other.keys() and ours
    for name, value in ours.items():
        assert torch.equal(value, other[name]), name


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_logged(folder: Path) -> list[dict[str, Any]]:
    """The entries of single steps, without clocks and memory."""
    measured = ("time/", "rollout_time/", "memory/", "step_time", "tokens_per_second")
    return [
        {name: value for name, value in entry.items() if not name.startswith(measured)}
        for entry in lines(folder / "metrics.jsonl")
        if "loss" in entry
    ]


class KeepGradients(TrainerCallback):
    """The gradients that each optimizer step was given."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
