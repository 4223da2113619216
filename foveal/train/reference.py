"""The reference policy of the KL term: the same weights with the adapter off, or as it began.

No second model exists. For the time of a pass the adapter is switched off, or the values that
the trained parameters had at the start are swapped in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn


class Reference:
    """Enter it to compute under the reference policy.

    Args:
        model: the policy, as it is at the start of the run.
        choice: "off", "start", or "auto" for "off" where the adapter does nothing yet.

    Raises:
        ValueError: for "off" with a model that has no adapter.
    """

    def __init__(self, model: Any, choice: Literal["auto", "off", "start"]) -> None:
        self.model = model
        has_adapter = hasattr(model, "disable_adapter")
        if choice == "off" and not has_adapter:
            raise ValueError(
                'reference="off" switches an adapter off, but the model has none; use '
                'reference="start", or add one with FastVisionModel.get_peft_model'
            )
        if choice == "auto":
            choice = "off" if has_adapter and _does_nothing(model) else "start"
        self.choice = choice
        self._start = None if choice == "off" else _trained_values(model)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """The model computes as the reference within."""
        if self._start is None:
            with self.model.disable_adapter():
                yield
            return
        _swap(self.model, self._start)
        try:
            yield
        finally:
            _swap(self.model, self._start)


def _does_nothing(model: nn.Module) -> bool:
    """Whether every B matrix is zero, so that the adapted model equals its base."""
    up = [p for name, p in model.named_parameters() if "lora_B" in name]
    return bool(up) and all(not p.any() for p in up)


def _trained_values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _swap(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Exchange the trained parameters' values with ``values``, in place on both sides."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values:
                current = parameter.detach().clone()
                parameter.copy_(values[name])
                values[name].copy_(current)
