"""Foveal: reinforcement learning for vision-language models on one GPU.

Rollout and training are two uses of one set of weights. Load a model, give it an adapter, and
train it on rewards:

    from foveal import FastVisionModel, GRPOConfig, GRPOTrainer

    model, processor = FastVisionModel.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
    model = FastVisionModel.get_peft_model(model, r=16, lora_alpha=32)
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=["exact_answer", "think_answer_format"],
        train_dataset="questions.parquet",
        args=GRPOConfig(output_dir="run", importance_sampling_level="sequence"),
    )
    trainer.train()
    model.fast_generate({"problem": "How many dogs?", "image": "park.jpg"})

Everything runs on a CPU as well, with a model of random weights that needs no download:

    from foveal.testing import tiny

    model, processor = tiny("qwen2_5_vl")

Importing this package loads neither torch nor transformers; a name loads them when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from foveal._version import __version__ as __version__

if TYPE_CHECKING:
    from foveal.fast_model import FastVisionModel
    from foveal.train.config import GRPOConfig
    from foveal.train.sft import SFTTrainer
    from foveal.train.sft_config import SFTConfig
    from foveal.train.trainer import GRPOTrainer
    from foveal.types import SamplingParams

__all__ = [
    "FastVisionModel",
    "GRPOConfig",
    "GRPOTrainer",
    "SFTConfig",
    "SFTTrainer",
    "SamplingParams",
]

_HOMES = {
    "FastVisionModel": "foveal.fast_model",
    "GRPOConfig": "foveal.train.config",
    "GRPOTrainer": "foveal.train.trainer",
    "SFTConfig": "foveal.train.sft_config",
    "SFTTrainer": "foveal.train.sft",
    "SamplingParams": "foveal.types",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
