"""The same recipe through TRL's trainer, whose rollouts come from transformers' ``generate``.

Model, rows, rewards, seed and settings are the recipe's; the adapter lies on the same layers. The
ids that stand for pictures are never drawn, because TRL's training pass stops at them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from learn_run import Asked, Clock, Learned, held_out_before

from foveal.data import load_rows
from foveal.models.lora import target_pattern
from foveal.recipe import Recipe
from foveal.rewards import resolve

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from step_trl import never_sampled  # pyright: ignore[reportMissingImports]

_OTHERS_OWN = ("eval_strategy", "eval_steps", "num_generations_eval", "per_device_eval_batch_size",
               "log_completions", "num_completions_to_print", "use_cpu")  # fmt: skip
"""Settings of a recipe that do not bear on training: TRL neither evaluates nor prints here."""


def check_peer(recipe: Recipe) -> None:
    """Refuse what TRL would train otherwise, before anything is loaded.

    Raises:
        ValueError: for a missing package, or a recipe without a counterpart in TRL.
    """
    if importlib.util.find_spec("trl") is None:
        raise ValueError("--peer trl needs the package trl, which is not installed; pip install it")
    import trl

    known = {field.name for field in dataclasses.fields(trl.GRPOConfig)}
    odd = [name for name in recipe.train if name not in known and name not in _OTHERS_OWN]
    if odd:
        raise ValueError(f"{recipe.path}: TRL has no {odd[0]}; leave the recipe out of --peer trl")
    if not isinstance(recipe.data.train, str):
        raise ValueError(f"{recipe.path}: TRL reads a file; leave the recipe out of --peer trl")
    if recipe.lora is None or recipe.model.get("load_in_4bit"):
        raise ValueError(
            f"{recipe.path}: only adapters on 16-bit weights are set up for TRL; leave the recipe "
            "out of --peer trl"
        )


def run_trl(recipe: Recipe, asked: Asked) -> Learned:
    """Load, measure, train; held-out rows are answered by this library's engine before and after.

    Raises:
        ValueError: as ``check_peer``.
    """
    check_peer(recipe)
    import trl

    model, processor = adapted(recipe)
    before = held_out_before(model, processor, recipe, asked)
    model.train()
    clock = Clock(asked.train_seconds)
    settings = {k: v for k, v in recipe.train.items() if k not in _OTHERS_OWN}
    on_gpu = torch.cuda.is_available()
    trainer: Any = trl.GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=[resolve(name) for name in recipe.rewards],
        train_dataset=conversations(recipe),
        args=trl.GRPOConfig(
            **settings,
            reward_weights=list(recipe.rewards.values()),
            bf16=on_gpu,
            use_cpu=not on_gpu,
            generation_kwargs={"suppress_tokens": never_sampled(model)},
        ),
        callbacks=[clock],
    )
    trainer.train()
    # Without the autocast that TRL's trainer wraps around its forward.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return Learned(
        model, processor, before, trainer.state.log_history, clock, trainer.state.global_step
    )


def adapted(recipe: Recipe) -> tuple[Any, Any]:
    """The checkpoint as transformers loads it, with PEFT's adapter on the recipe's layers."""
    import peft
    from transformers import AutoModelForImageTextToText, AutoProcessor

    on_gpu = torch.cuda.is_available()
    folder = recipe.model["model_name"]
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16 if on_gpu else torch.float32
    )
    stock = loaded.to("cuda" if on_gpu else "cpu")
    lora = recipe.lora or {}
    targets = target_pattern(
        stock,
        vision=lora.get("finetune_vision_layers", True),
        language=lora.get("finetune_language_layers", True),
        attention=lora.get("finetune_attention_modules", True),
        mlp=lora.get("finetune_mlp_modules", True),
    )
    torch.manual_seed(recipe.train["seed"])
    config = peft.LoraConfig(
        r=lora.get("r", 16),
        lora_alpha=lora.get("lora_alpha", 16),
        lora_dropout=0.0,
        target_modules=targets,
    )
    return peft.get_peft_model(stock, config), AutoProcessor.from_pretrained(folder)


def conversations(recipe: Recipe) -> Any:
    """The training rows in TRL's form, with the column that rewards ask for."""
    from datasets import Dataset

    assert isinstance(recipe.data.train, str)
    source, rows = load_rows(recipe.data.train), []
    for index in range(len(source)):
        row = source[index]
        content = row.messages[0]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        parts = [{"type": "image", "text": None}, {"type": "text", "text": text}]
        prompt = [{"role": "user", "content": parts}]
        rows.append({"prompt": prompt, "images": list(row.images), "answer": row.answer})
    return Dataset.from_list(rows)
