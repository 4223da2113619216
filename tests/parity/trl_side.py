"""The other side of the parity tests: TRL's own trainer, fed with the same rows and completions.

Only the sampling is replaced, in a subclass: templates, image processing, padding, rewards,
advantages, log-probabilities and the loss are TRL's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from foveal import FastVisionModel, GRPOConfig, GRPOTrainer
from foveal.models.lora import target_pattern
from foveal.rollout import ScriptedBackend
from foveal.testing import tiny
from foveal.types import Group, Prompt, SamplingParams
from tests.samples import picture

trl = pytest.importorskip("trl", reason="needs trl, the oracle")
datasets = pytest.importorskip("datasets")

MAX_LENGTH = 9
SHAPES = ((1, False), (5, True), (MAX_LENGTH, False), (4, True))
"""Length of each completion of a group, and whether it ends with the stop token."""
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "shuffle_dataset": False,
    "num_generations": len(SHAPES),
    "per_device_train_batch_size": 2 * len(SHAPES),
    "max_completion_length": MAX_LENGTH,
    "temperature": 0.8,
}
"""Settings that both configurations take under the same name."""


def rows(count: int = 2) -> list[dict[str, Any]]:
    """One picture, two pictures of different shape, and so on in turn; every length differs."""
    texts = ("How many red things?", "Which is larger, the first one or the second one?")
    sizes = ([(70, 90)], [(100, 60), (64, 64)])
    return [
        {
            "prompt": [{"role": "user", "content": f"{texts[i % 2]}{'!' * (i // 2)}"}],
            "images": [picture(10 * i + j, *size) for j, size in enumerate(sizes[i % 2])],
            "digit": 3 + i,
        }
        for i in range(count)
    ]


def completions(prompt_ids: Sequence[int], eos_token_id: int) -> list[list[int]]:
    """The script: ragged completions that depend on the prompt alone."""
    generator = random.Random(sum(prompt_ids))
    return [
        [generator.randrange(250) for _ in range(length - ended)] + [eos_token_id] * ended
        for length, ended in SHAPES
    ]


def digit_sum(completion_ids: list[list[int]], digit: list[int], **_: Any) -> list[float]:
    """A reward that differs within groups and takes a column of the data set."""
    return [sum(ids) % 7 / d for ids, d in zip(completion_ids, digit, strict=True)]


class ScriptedTRL(trl.GRPOTrainer):  # pyright: ignore[reportGeneralTypeIssues]
    """TRL's trainer with completions written down beforehand."""

    rollout_logprobs: list[list[float]] | None = None
    """What the sampler says of each token, row by row; None if it says nothing."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        group = self.num_generations
        answers = [
            completions(ids, self._tokenizer.eos_token_id)[row % group]
            for row, ids in enumerate(prompt_ids)
        ]
        return answers, self.rollout_logprobs


class OurScript:
    """The same completions for our trainer."""

    def __init__(self, tokenizer: Any, rollout_logprobs: list[list[float]] | None = None) -> None:
        self.rollout_logprobs = rollout_logprobs
        self.backend = ScriptedBackend(
            lambda prompt, n: completions(prompt.ids, tokenizer.eos_token_id)[:n], tokenizer
        )

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[Group]:
        groups = self.backend.generate(prompts, n, sampling)
        if self.rollout_logprobs is None:
            return groups
        known = iter(self.rollout_logprobs)
        return [
            Group(
                group.prompt,
                tuple(replace(c, rollout_logprob=tuple(next(known))) for c in group.completions),
            )
            for group in groups
        ]


def trl_trainer(
    family: str,
    folder: Path,
    data: list[dict[str, Any]],
    *,
    vision: bool = True,
    trainer_class: Any = ScriptedTRL,
    reward_funcs: Sequence[Any] = (digit_sum,),
    **settings: Any,
) -> Any:
    """TRL's trainer on a tiny model, with an adapter from :func:`set_adapter`.

    The adapter is TRL's own, so that its reference policy is the model without one.
    """
    model, processor = tiny(family)
    targets = target_pattern(model, None, vision=vision, language=True, attention=True, mlp=True)
    trainer = trainer_class(
        model=model,
        reward_funcs=list(reward_funcs),
        args=trl.GRPOConfig(output_dir=str(folder), **{**COMMON, **settings}),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=processor,
        peft_config=peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets),
    )
    set_adapter(trainer.model)
    return trainer


def our_model(family: str, *, vision: bool = True) -> tuple[Any, Any]:
    """The same model with the same adapter."""
    model, processor = tiny(family)
    model = FastVisionModel.get_peft_model(
        model, r=4, lora_alpha=8, finetune_vision_layers=vision, use_gradient_checkpointing=False
    )
    set_adapter(model)
    return model, processor


def our_trainer(
    model: Any,
    processor: Any,
    folder: Path,
    data: list[dict[str, Any]],
    *,
    backend: Any = None,
    reward_funcs: Sequence[Any] = (digit_sum,),
    **settings: Any,
) -> GRPOTrainer:
    return GRPOTrainer(
        model=model,
        reward_funcs=list(reward_funcs),
        args=GRPOConfig(output_dir=str(folder), **{**COMMON, **settings}),
        train_dataset=data,
        processing_class=processor,
        rollout_backend=backend or OurScript(processor.tokenizer),
    )


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def set_adapter(model: nn.Module, seed: int = 0) -> None:
    """Random values in order of names: an adapter that acts, so that no gradient vanishes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(trained(model).items()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in trained(model).items()}
    without = [name for name, gradient in found.items() if gradient is None]
    assert not without, f"no gradient reached {without}"
    return {name: g.clone() for name, g in found.items() if g is not None}


def assert_same(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-4
) -> None:
    """Each tensor, measured against its own norm."""
    assert ours.keys() == theirs.keys()
    total = torch.stack([t.norm() for t in theirs.values()]).norm()
    for name, expected in theirs.items():
        # Far below the others only rounding is left to compare.
        scale = expected.norm().clamp(min=1e-5 * total)
        error = ((ours[name] - expected).norm() / scale).item()
        assert error < tolerance, f"{name} is off by {error:.1e} of its norm"
