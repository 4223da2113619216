"""One step of a real-size model through the plain path: benchmarks/results/plain_step.json.

    python benchmarks/plain_step.py [--out FILE] [--new-tokens 1024]

Random weights of Qwen2.5-VL-7B, 4 prompts x 8 completions, a 900-token picture and about 120 text
tokens each, GSPO, LoRA r=16 on the language layers, bf16, gradient checkpointing. Rollouts go
through transformers' generate: this is the number that faster parts have to beat, and the place
where sampler and trainer are compared at full size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from models import build, picture_rows, size_of
from record import RESULTS, card, command_line, commit, installed_versions, write_records

MODEL = "qwen2.5-vl-7b"


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "plain_step.json")
    parser.add_argument("--commit", default=None, help="what is measured, where there is no git")
    parser.add_argument("--new-tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--pass-rows", type=int, default=8)
    arguments = parser.parse_args(argv)
    measured = commit(arguments.commit)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = build(MODEL, device=device, layers=arguments.layers, scale=arguments.scale)
    logs = train_one_step(model, processor, arguments)
    record = {
        "benchmark": "plain_step",
        "case": f"{MODEL}, {arguments.layers} layers, 4 x 8, {arguments.new_tokens} new tokens",
        "system": "foveal, plain path",
        "seconds": logs["step_time"],
        "tokens_per_second": logs["tokens_per_second/rollout"],
        "peak_gib": max(v for k, v in logs.items() if k.startswith("memory/")),
        "breakdown": {k: v for k, v in logs.items() if k.startswith(("time/", "memory/"))},
        "sampling_logp_difference_mean": logs["sampling/sampling_logp_difference/mean"],
        "sampling_logp_difference_max": logs["sampling/sampling_logp_difference/max"],
        "card": card(),
        "versions": installed_versions(),
        "commit": measured,
        "command": command_line("plain_step.py", argv),
    }
    print(json.dumps(record, indent=2), flush=True)
    write_records(arguments.out, [record])


def train_one_step(model: Any, processor: Any, arguments: argparse.Namespace) -> dict[str, float]:
    from foveal import GRPOConfig, GRPOTrainer

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(sum(ids) % 5) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=[reward],
        train_dataset=picture_rows(size_of(MODEL), 4),
        args=GRPOConfig(
            output_dir="runs/plain_step",
            importance_sampling_level="sequence",
            loss_type="grpo",
            epsilon=3e-4,
            epsilon_high=4e-4,
            training_pass="plain",
            num_generations=8,
            per_device_train_batch_size=arguments.pass_rows,
            gradient_accumulation_steps=32 // arguments.pass_rows,
            max_completion_length=arguments.new_tokens,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


if __name__ == "__main__":
    main()
