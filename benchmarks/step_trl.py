"""The step of step.py through TRL's GRPOTrainer: same weights, pictures, adapter and settings.

The parts of a step are timed by wrapping two methods of the trainer that are not public (TRL
1.16: ``_generate``, and ``_generate_and_score_completions`` around it).
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
from models import build_stock, start_adapter
from record import Record
from step_workload import (
    StepClock,
    base_dtype,
    last_step,
    run_settings,
    spread_reward,
    step_record,
    step_rows,
)

LORA_RANK = 16
NEVER = -100.0
"""The least that vLLM's ``logit_bias`` takes."""


def measure_trl(arguments: argparse.Namespace, folder: Path) -> tuple[str, Record]:
    """A step of TRL: its name in the table, and what was measured.

    Raises:
        RuntimeError: if TRL, or vLLM where it is asked for, is not installed.
    """
    with_vllm = arguments.peer == "trl-vllm"
    for package in ("trl", *(["vllm"] if with_vllm else [])):
        if importlib.util.find_spec(package) is None:
            raise RuntimeError(
                f"--peer {arguments.peer} needs the package {package}, which is not installed"
            )
    import trl

    settings = run_settings(arguments, folder)
    model, processor = adapted_model(arguments, folder if with_vllm else None)
    never = never_sampled(model)
    rollout = vllm_rollout(never, arguments) if with_vllm else stock_rollout(never, arguments)
    clock = StepClock()
    reward: Any = spread_reward  # a list of TRL's own type takes no narrower function
    trainer: Any = trl.GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=[reward],
        train_dataset=conversations(arguments),
        args=trl.GRPOConfig(
            **settings,
            **rollout,
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=True,
        ),
        callbacks=[clock],
    )
    trainer._generate = clock.timed("rollout", trainer._generate)
    trainer._generate_and_score_completions = clock.timed(
        "rollout and scores", trainer._generate_and_score_completions
    )
    trainer.train()
    last_step(trainer.state.log_history, arguments)
    result = step_record(clock, arguments)
    scored = clock.parts["rollout and scores"]
    result["breakdown"] = {
        "time/rollout": clock.parts["rollout"],
        "time/rewards_and_old_logprob": scored - clock.parts["rollout"],
        "time/train_and_optimizer": result["seconds"] - scored,
    }
    return _system_name(with_vllm), result


def adapted_model(arguments: argparse.Namespace, save_to: Path | None) -> tuple[Any, Any]:
    """The weights of ``models.build`` with PEFT's adapter on the same layers.

    Args:
        arguments: of step.py.
        save_to: where vLLM shall find the weights without the adapter; None writes nothing.
    """
    import peft

    from foveal.models.lora import target_pattern

    device = "cuda" if torch.cuda.is_available() else "cpu"
    stock, processor = build_stock(
        arguments.model,
        device=device,
        layers=arguments.layers,
        scale=arguments.scale,
        dtype=base_dtype(),
    )
    if save_to is not None:
        stock.save_pretrained(save_to / "model")
        processor.save_pretrained(save_to / "model")
        # TRL hands this name to vLLM.
        stock.name_or_path = stock.config._name_or_path = str(save_to / "model")
    targets = target_pattern(stock, vision=False, language=True, attention=True, mlp=True)
    config = peft.LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0, target_modules=targets
    )
    adapted = peft.get_peft_model(stock, config)
    start_adapter(adapted)
    return adapted, processor


def conversations(arguments: argparse.Namespace) -> Any:
    """The rows of the step in TRL's form."""
    from datasets import Dataset

    rows = []
    for row in step_rows(arguments):
        text = row["problem"].removeprefix("<image>")
        content = [{"type": "image", "text": None}, {"type": "text", "text": text}]
        rows.append({"prompt": [{"role": "user", "content": content}], "images": row["images"]})
    return Dataset.from_list(rows)


def never_sampled(model: Any) -> list[int]:
    """Ids that TRL's training pass takes for pictures, and their borders: it stops at the first."""
    from foveal.models.family import placeholder_ids, stock_model

    config = stock_model(model).config
    borders = ("vision_start_token_id", "vision_end_token_id", "boi_token_id", "eoi_token_id",
               "boi_token_index", "eoi_token_index")  # fmt: skip
    found = [getattr(config, name, None) for name in borders]
    return sorted({*placeholder_ids(model), *(int(i) for i in found if i is not None)})


def stock_rollout(never: list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of TRL for rollouts of fixed length by transformers' generate."""
    fixed = {"min_new_tokens": arguments.new_tokens, "suppress_tokens": never}
    return {"generation_kwargs": fixed}


def vllm_rollout(never: list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of TRL for rollouts of fixed length by vLLM in the same process."""
    fixed = {
        "min_tokens": arguments.new_tokens,
        "ignore_eos": True,
        "logit_bias": dict.fromkeys(never, NEVER),
    }
    return {
        "generation_kwargs": fixed,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": arguments.vllm_memory,
        # A picture of 900 tokens and its question, rounded up; room for the picture twice, because
        # TRL 1.16 hands vLLM its placeholders and the picture itself, and vLLM puts more in.
        "vllm_max_model_length": 2304 + arguments.new_tokens,
    }


def _system_name(with_vllm: bool) -> str:
    from importlib.metadata import version

    name = f"TRL {version('trl')}"
    if with_vllm:
        return f"{name} + vLLM {version('vllm')}, colocated"
    return f"{name}, transformers {version('transformers')} generate"
