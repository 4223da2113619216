"""Layers whose results are known before the training pass: computed again, never first.

A checkpointed layer is computed twice: forward, for its result, and again for its graph when its
gradient is asked for. Where a rollout has kept the streams between layers (``layer_inputs``), the
first of the two is not needed:

    forward     the stream behind the last layer, as it was kept; no layer is called
    backward    from the last layer down: its kept input, the layer again, its graph backward
                into parameters, prompts' keys and values, and the stream in front of it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveal.models.layer_inputs import PackedInputs

LayerAgain = Callable[[int, Tensor], Tensor]
"""``layer(number, x_ND) -> x_ND``: its graph; the values returned may be any."""


def kept_layers(x_ND: Tensor, kept: PackedInputs, layers: int, layer: LayerAgain) -> Tensor:
    """The stream ``[N, D]`` behind the last layer, and on the way back the gradients of all.

    Args:
        x_ND: input of the first layer; gradients reach it where it asks for them.
        kept: streams behind the layers for the same tokens.
        layers: how many there are.
        layer: calls one. Gradients of whatever it reads beside its input are accumulated in the
            leaves, as by ``Tensor.backward``: everything else that it reads must be a leaf.

    Raises:
        ValueError: if tokens were kept in another number than are asked for.
    """
    if kept.tokens != len(x_ND):
        raise ValueError(
            f"layer inputs of {kept.tokens} tokens were kept in the rollout, but the pass has "
            f"{len(x_ND)}; train the completions as they were drawn, or set "
            "gradient_checkpointing=True"
        )
    # Parameters are not among the function's inputs; without this one it would have no backward.
    anchor = torch.empty(0, device=x_ND.device, requires_grad=torch.is_grad_enabled())
    return _KeptLayers.apply(anchor, x_ND, kept, layers, layer)  # pyright: ignore[reportReturnType]


class _KeptLayers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, x_ND: Tensor, kept: PackedInputs, layers: int, layer: LayerAgain
    ) -> Tensor:
        kind = x_ND.device.type
        ctx.kept, ctx.layers, ctx.layer = kept, layers, layer
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.save_for_backward(x_ND)
        return kept.behind(layers - 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_ND: Tensor) -> tuple[Any, ...]:
        kind, dtype, enabled = ctx.autocast
        (first_ND,) = ctx.saved_tensors
        for number in reversed(range(ctx.layers)):
            x_ND = first_ND if number == 0 else ctx.kept.behind(number - 1)
            asked = number > 0 or ctx.needs_input_grad[1]
            x_ND = x_ND.detach().requires_grad_(asked)
            with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
                y_ND = ctx.layer(number, x_ND)
            if y_ND.requires_grad:
                torch.autograd.backward(y_ND, gradient_ND)
            gradient_ND = x_ND.grad
        ctx.kept = ctx.layer = None
        return None, gradient_ND if ctx.needs_input_grad[1] else None, None, None, None
