"""``gradient_checkpointing="captured"``: the layers' inputs of completions come from the rollout.

The decode pass has computed them at the weights that are trained, so that the training pass over
completions is a backward pass that computes each layer once more, without a forward pass before.
In real arithmetic nothing changes; in rounded numbers the decode pass adds in another order. So
the first window's gradient is computed both ways, and a run in which they point apart is refused.

It holds for the weights of the rollout alone: for one optimizer step a rollout.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.family import vision_modules
from foveal.models.state import say
from foveal.rollout import Engine
from foveal.train.config import GRPOConfig
from foveal.train.plain_pass import Row

LEAST_COSINE = 0.999
"""Of each layer's gradient with that of full checkpointing."""
CHUNK = 1 << 24
"""Numbers that are compared at a time, in float64."""
_LAYER = re.compile(r"\blayers\.(\d+)\.")

Learn = Callable[[Sequence[Row]], Any]
"""Forward and backward of a training pass: gradients are added to the parameters."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two gradients of the same rows agree."""

    cosines: dict[str, float]
    """By part of the model: "layer 0" and so on, "vision", "rest"; parts without a gradient, on
    both sides, are left out."""

    @property
    def lowest(self) -> tuple[str, float] | None:
        """The part that agrees least; None where there was no gradient at all."""
        return min(self.cosines.items(), key=lambda item: item[1], default=None)

    @property
    def line(self) -> str:
        """One line for the user."""
        if self.lowest is None:
            return "captured layer inputs: no gradient to compare"
        mean = sum(self.cosines.values()) / len(self.cosines)
        part, least = self.lowest
        return (
            f"captured layer inputs: cosine of gradients with full checkpointing {mean:.6f} in the "
            f"mean of {len(self.cosines)} parts, lowest {least:.6f} in {part}"
        )

    def check(self) -> None:
        """Raise where a part agrees less than :data:`LEAST_COSINE`.

        Raises:
            ValueError: with the part, its cosine and the remedy.
        """
        # A gradient that is not a number agrees with nothing.
        bad = {part: c for part, c in self.cosines.items() if not c >= LEAST_COSINE}
        if bad:
            part, cosine = min(bad.items(), key=lambda item: item[1])
            raise ValueError(
                f'gradient_checkpointing="captured": in {part} the gradient has cosine '
                f"{cosine:.6f} with that of full checkpointing, below {LEAST_COSINE}: on this "
                "model the rollout rounds too differently. Set gradient_checkpointing=True"
            )


def agreement(model: nn.Module, rows: Sequence[Row], learn: Learn) -> Agreement:
    """Compare the gradients with full checkpointing and with captured inputs.

    Both without the correction for what the rollout rounds otherwise: over a long completion small
    differences add up to a weight far from 1, which differs between the two passes whatever their
    gradients are.

    Args:
        model: the policy, under the policy "captured", without gradients; it is left without.
        rows: of one optimizer step, with layer inputs.
        learn: the training pass.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is None or not p.grad.any() for p in found.values())

    def gradients(rows: Sequence[Row]) -> dict[str, Tensor | None]:
        learn(_without_rollout_logprobs(rows))
        gradients = {name: p.grad for name, p in found.items()}
        for parameter in found.values():
            parameter.grad = None
        return gradients

    full = gradients(without_layer_inputs(rows))
    return Agreement(gradient_cosines(model, full, gradients(rows)))


def without_layer_inputs(rows: Sequence[Row]) -> list[Row]:
    """The same rows, to be passed through all layers."""
    return [replace(row, completion=replace(row.completion, layer_inputs=None)) for row in rows]


def _without_rollout_logprobs(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, completion=replace(row.completion, rollout_logprob=None)) for row in rows]


def gradient_cosines(
    model: nn.Module, ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]
) -> dict[str, float]:
    """Cosines between two gradients by part, as in ``Agreement.cosines``.

    Args:
        model: whose parameters they are of.
        ours, theirs: by name of the parameter; None where a pass gave it none.
    """
    tower = {id(p) for module in vision_modules(model) for p in module.parameters()}
    parts = {name: _part(name, id(p) in tower) for name, p in model.named_parameters()}
    dots: dict[str, list[Tensor]] = defaultdict(list)
    for name in ours:
        a, b = ours[name], theirs[name]
        if a is None or b is None:
            assert a is None and b is None, f"only one pass gave {name} a gradient"
            continue
        for pair in zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK), strict=True):
            a, b = (x.double() for x in pair)
            dots[parts[name]].append(torch.stack([a @ b, a @ a, b @ b]))
    sums = {part: torch.stack(found).sum(0).tolist() for part, found in dots.items()}
    return {
        part: ab / max((aa * bb) ** 0.5, torch.finfo(torch.float64).tiny)
        for part, (ab, aa, bb) in sums.items()
        if aa or bb
    }


def _part(name: str, in_tower: bool) -> str:
    if in_tower:
        return "vision"
    number = _LAYER.search(name)
    return f"layer {number[1]}" if number else "rest"


# ------------------------------------------------------------------------------------- in a run


class CapturedRun:
    """What a run does about captured inputs; nothing under any other policy.

    Args:
        model: the policy.
        config: of the run, with its checkpointing settled.
        backend: where completions come from.

    Raises:
        ValueError: for the policy "captured" with another backend than the engine, with the plain
            pass, or with several optimizer steps a rollout.
    """

    def __init__(self, model: nn.Module, config: GRPOConfig, backend: Any) -> None:
        self.model = model
        self.engine: Engine | None = None
        self.agreement: Agreement | None = None
        """Of the first window that had a gradient."""
        if config.gradient_checkpointing == "captured":
            _refuse(config, backend)
            self.engine = backend

    def rollout(self) -> AbstractContextManager[None]:
        """The context of a rollout that is trained."""
        return contextlib.nullcontext() if self.engine is None else (
            self.engine.keeping_layer_inputs()
        )  # fmt: skip

    def learn(self, rows: Sequence[Row], learn: Learn) -> Any:
        """``learn(rows)``; in the first window with a gradient, checked before it counts.

        Raises:
            ValueError: if the gradient agrees less with that of full checkpointing than it must.
        """
        if self.engine is None:
            return learn(rows)
        missing = sum(row.completion.layer_inputs is None for row in rows)
        if missing:
            say(
                f"training: {missing} of {len(rows)} completions were drawn without keeping layer "
                "inputs (their rollout was read from a checkpoint); they are computed with full "
                "checkpointing"
            )
        if self.agreement is not None or missing:
            return learn(rows)
        found = agreement(self.model, rows, learn)
        if found.lowest is not None:
            self.agreement = found
            say(found.line)
            found.check()
        return learn(rows)


def _refuse(config: GRPOConfig, backend: Any) -> None:
    remedy = "or set gradient_checkpointing=True"
    if not isinstance(backend, Engine):
        raise ValueError(
            f'gradient_checkpointing="captured" takes layer inputs from the built-in engine, but '
            f"rollouts come from a {type(backend).__name__}; leave rollout_backend None, {remedy}"
        )
    if config.training_pass != "group":
        raise ValueError(
            f'gradient_checkpointing="captured" needs training_pass="group", not '
            f"{config.training_pass!r}; change it, {remedy}"
        )
    steps = config.optimizer_steps_per_pass * config.num_iterations
    if steps > 1:
        raise ValueError(
            f'gradient_checkpointing="captured" holds for the weights of the rollout, but {steps} '
            "optimizer steps are made with each; set num_iterations=1 and steps_per_generation="
            f"{config.gradient_accumulation_steps}, {remedy}"
        )
