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
import subprocess
from pathlib import Path
from typing import Any

import torch
from PIL import Image

RESULTS = Path(__file__).parent / "results"
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "plain_step.json")
    parser.add_argument("--commit", default=None)
    parser.add_argument("--new-tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--pass-rows", type=int, default=8)
    arguments = parser.parse_args()
    model, processor = random_model(arguments.layers)
    logs = train_one_step(model, processor, arguments)
    record = {
        "benchmark": "plain_step",
        "case": f"Qwen2.5-VL-7B shape, {arguments.layers} layers, 4 x 8, "
        f"{arguments.new_tokens} new tokens",
        "system": "foveal, plain path",
        "seconds": logs["step_time"],
        "tokens_per_second": logs["tokens_per_second/rollout"],
        "peak_gib": max(v for k, v in logs.items() if k.startswith("memory/")),
        "breakdown": {k: v for k, v in logs.items() if k.startswith(("time/", "memory/"))},
        "sampling_logp_difference_mean": logs["sampling/sampling_logp_difference/mean"],
        "sampling_logp_difference_max": logs["sampling/sampling_logp_difference/max"],
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": installed_versions(),
        "commit": arguments.commit or commit(),
        "command": "python benchmarks/plain_step.py",
    }
    print(json.dumps(record, indent=2), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([record], indent=2) + "\n")


def random_model(layers: int) -> tuple[Any, Any]:
    """Qwen2.5-VL-7B's shape with random weights, and a byte-level processor of its family."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    from foveal import FastVisionModel
    from foveal.testing.tiny_models import _generation_config, _qwen_processor, _qwen_token_ids
    from foveal.testing.tokenizer import qwen_tokenizer

    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": layers,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "out_hidden_size": 3584},
        tie_word_embeddings=False,
        **_qwen_token_ids(tokenizer),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    _generation_config(model, tokenizer, "<|im_end|>", "<|endoftext|>")
    processor = _qwen_processor(Qwen2_5_VLProcessor, tokenizer, patch_size=14)
    processor.image_processor.size = {"shortest_edge": 28**2, "longest_edge": 900 * 28**2}
    adapted = FastVisionModel.get_peft_model(
        model, r=16, lora_alpha=32, finetune_vision_layers=False
    )
    return adapted, processor


def train_one_step(model: Any, processor: Any, arguments: argparse.Namespace) -> dict[str, float]:
    from foveal import GRPOConfig, GRPOTrainer

    pictures = [Image.effect_noise((840, 840), 40 + seed).convert("RGB") for seed in range(4)]
    rows = [
        {"problem": "<image>" + "How many red things are there? " * 4, "images": [p], "answer": "3"}
        for p in pictures
    ]

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(sum(ids) % 5) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=[reward],
        train_dataset=rows,
        args=GRPOConfig(
            output_dir="runs/plain_step",
            importance_sampling_level="sequence",
            loss_type="grpo",
            epsilon=3e-4,
            epsilon_high=4e-4,
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


def installed_versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("torch", "transformers", "peft")}


def commit() -> str:
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
