"""Short runs of our trainer on a tiny model, with completions written down beforehand."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal import FastVisionModel, GRPOConfig, GRPOTrainer
from foveal.rollout import ScriptedBackend
from foveal.testing import tiny
from foveal.types import Group, Prompt, SamplingParams
from tests.samples import picture

# Every run collects garbage, which takes longer than the run unless the imports are left out of it.
gc.freeze()

MAX_LENGTH = 9
SHAPES = ((1, False), (5, True), (MAX_LENGTH, False), (4, True))
"""Length of each completion of a group, and whether it ends with the stop token. The longest is
cut by up to 3 tokens, by the prompt, so that groups differ."""
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
"""Settings that TRL's configuration takes under the same names."""

Script = Callable[[Sequence[int], int], list[list[int]]]


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
    generator = random.Random(repr(list(prompt_ids)))
    answers = []
    for length, ended in SHAPES:
        if length == MAX_LENGTH:
            length -= len(prompt_ids) % 4
        ids = [generator.randrange(250) for _ in range(length - ended)]
        answers.append(ids + [eos_token_id] * ended)
    return answers


def digit_sum(completion_ids: list[list[int]], digit: list[int], **_: Any) -> list[float]:
    """A reward that differs within groups and takes a column of the data set."""
    return [sum(ids) % 7 / d for ids, d in zip(completion_ids, digit, strict=True)]


class OurScript:
    """A backend that follows ``script``, and says what a sampler would of each token."""

    def __init__(
        self,
        tokenizer: Any,
        rollout_logprobs: list[list[float]] | None = None,
        script: Script = completions,
    ) -> None:
        self.rollout_logprobs = rollout_logprobs
        self.backend = ScriptedBackend(
            lambda prompt, n: script(prompt.ids, tokenizer.eos_token_id)[:n], tokenizer
        )

    def standby(self) -> None:
        pass

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


def our_model(family: str, *, vision: bool = True) -> tuple[Any, Any]:
    """A tiny model with an adapter from :func:`set_adapter`, and its processor."""
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


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained(model).items()}


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
    assert total > 0
    for name, expected in theirs.items():
        # Far below the others only rounding is left to compare.
        scale = expected.norm().clamp(min=1e-5 * total)
        error = ((ours[name] - expected).norm() / scale).item()
        assert error < tolerance, f"{name} is off by {error:.1e} of its norm"
