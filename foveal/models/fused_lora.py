"""Adapted linear layers with less kept and fewer products than PEFT's modules, exactly.

PEFT's modules keep, for the backward pass, their input once a layer (in float32, whatever came
in), the small product ``x A'`` and the activations of a feed-forward block; layers that share
their input share nothing. The functions here work on PEFT's own parameters, which it goes on to
save, load and merge:

    y_i  = x W_i' + b_i + (x a_i') B_i',    a_i = s_i A_i
    dx   = sum_i (dy_i W_i + (dy_i B_i) a_i)
    dA_i = s_i (dy_i B_i)' x,    dB_i = dy_i' (x a_i')

The scale ``s`` is in the copy of A that the products take. Of these only ``x`` is kept; ``x a'``,
of the adapters' rank, is computed again. Under autocast
the products are computed in its 16 bit, as PEFT's are, and the parameters' gradients are summed in
float32. A layer of which :func:`foveal.models.packed_lora.lora_of` or this file knows too little
(quantised, with dropout, with hooks, with a trained base) is called as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from foveal.kernels.arithmetic import as_typed, product_dtype
from foveal.kernels.train_fused import ACTIVATIONS, gated, gated_backward_
from foveal.models.adapted_layers import AdaptedLayer, SharedInput, adapted_layer, factors_of


def project(x_ND: Tensor, modules: Sequence[nn.Module]) -> list[Tensor]:
    """``[module(x_ND) for module in modules]``, with the input kept once.

    Args:
        x_ND: input of all modules, ``[..., D]``.
        modules: linear layers of any sizes, adapted by PEFT or not.

    Returns:
        One ``[..., out_features]`` a module.
    """
    known = [adapted_layer(module, x_ND) for module in modules]
    together = tuple(layer for layer in known if layer is not None)
    if not any(layer.adapters for layer in together):
        return [module(x_ND) for module in modules]
    found: Any = _Project.apply(together, _rows(x_ND), *factors_of(together))
    results = iter(found)
    return [
        module(x_ND) if layer is None else _shaped(next(results), x_ND)
        for module, layer in zip(modules, known, strict=True)
    ]


def gated_mlp(
    x_ND: Tensor,
    gate: nn.Module,
    up: nn.Module,
    down: nn.Module,
    act: str,
    *,
    recompute: bool = False,
    result: bool = True,
) -> Tensor:
    """``down(act(gate(x)) * up(x))``; what is kept is x and the results of gate and up.

    Args:
        x_ND: ``[..., D]``.
        gate: linear layer, adapted by PEFT or not.
        up: likewise.
        down: likewise.
        act: "silu" or "gelu_pytorch_tanh".
        recompute: keep x alone; the backward pass applies gate and up again.
        result: False where a checkpoint calls for what is kept and drops the result: then down is
            not applied where that can be helped, and the result holds anything.

    Raises:
        ValueError: for another activation.
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; the activations known here are {', '.join(ACTIVATIONS)}")
    if recompute:
        return _recomputed_mlp(x_ND, gate, up, down, act)
    gate_NF, up_NF = project(x_ND, (gate, up))
    last = adapted_layer(down, gate_NF)
    if last is None:
        kind = torch.promote_types(gate_NF.dtype, up_NF.dtype)
        product: Any = _GatedProduct.apply(act, gate_NF.to(kind), up_NF.to(kind))
        return down(product)
    rows = _rows(gate_NF), _rows(up_NF)
    y: Any = _GatedDown.apply(last, act, result, *rows, *factors_of([last]))
    return _shaped(y, x_ND)


def _recomputed_mlp(
    x_ND: Tensor, gate: nn.Module, up: nn.Module, down: nn.Module, act: str
) -> Tensor:
    layers = tuple(adapted_layer(module, x_ND) for module in (gate, up, down))
    if any(layer is None for layer in layers):
        # What a special layer keeps is its own affair; it is dropped and computed again.
        again: Any = checkpoint(gated_mlp, x_ND, gate, up, down, act, use_reentrant=False)
        return again
    parameters = factors_of([layer for layer in layers if layer is not None])
    y: Any = _GatedMLP.apply(layers, act, _rows(x_ND), *parameters)
    return _shaped(y, x_ND)


def _rows(x_ND: Tensor) -> Tensor:
    """In the type of the product, so that this is what is kept."""
    return x_ND.reshape(-1, x_ND.shape[-1]).to(product_dtype(x_ND))


def _shaped(y_NF: Tensor, x_ND: Tensor) -> Tensor:
    return y_NF.view(*x_ND.shape[:-1], y_NF.shape[-1])


def _wanted(
    found: Sequence[Tensor | None], parameters: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients in the parameters' own types; None for those that ask for none."""
    if not found:
        return [None] * len(parameters)
    return [
        gradient.to(parameter.dtype) if need and gradient is not None else None
        for gradient, parameter, need in zip(found, parameters, needed, strict=True)
    ]


# ------------------------------------------------------------------------------ with autograd


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layers: tuple[AdaptedLayer, ...], x_ND: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.layers, ctx.dtype = layers, x_ND.dtype
        ctx.set_materialize_grads(False)
        # For the gradient in x alone x is not needed.
        ctx.save_for_backward(x_ND if any(ctx.needs_input_grad[2:]) else None, *parameters)
        with as_typed(x_ND):
            return tuple(SharedInput.of(layers, parameters, x_ND.dtype).products(x_ND))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        x_ND, *parameters = ctx.saved_tensors
        present = [dy_NF for dy_NF in upstream if dy_NF is not None]
        if not present:
            return (None,) * (2 + len(parameters))
        with as_typed(present[0]):
            shared = SharedInput.of(ctx.layers, parameters, ctx.dtype)
            dx_ND, found = shared.gradients(x_ND, upstream, into_x=ctx.needs_input_grad[1])
        return None, dx_ND, *_wanted(found, parameters, ctx.needs_input_grad[2:])


class _GatedProduct(torch.autograd.Function):
    """``act(gate) * up`` for a layer after it that keeps the product itself."""

    @staticmethod
    def forward(ctx: Any, act: str, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        ctx.act = act
        ctx.save_for_backward(gate_NF, up_NF)
        return gated(gate_NF, up_NF, act)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate_NF, up_NF = ctx.saved_tensors
        dproduct_NF = upstream[0].clone(memory_format=torch.contiguous_format)
        dgate_NF, dup_NF, _ = gated_backward_(dproduct_NF, gate_NF, up_NF, ctx.act)
        return None, dgate_NF, dup_NF


class _GatedDown(torch.autograd.Function):
    """``down(act(gate) * up)``; the product in the middle is computed again."""

    @staticmethod
    def forward(
        ctx: Any, down: AdaptedLayer, act: str, result: bool, gate_NF: Tensor, up_NF: Tensor,
        *parameters: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.down, ctx.act = down, act
        ctx.save_for_backward(gate_NF, up_NF, *parameters)
        if not result:
            return gate_NF.new_empty(len(gate_NF), len(down.weight))
        with as_typed(gate_NF):
            shared = SharedInput.of((down,), parameters, gate_NF.dtype)
            return shared.products(gated(gate_NF, up_NF, act))[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gate_NF, up_NF, *parameters = ctx.saved_tensors
        with as_typed(gate_NF):
            dgate_NF, dup_NF, found = _down_gradients(
                ctx.act, ctx.down, gate_NF, up_NF, parameters, upstream[0],
                into_factors=any(ctx.needs_input_grad[5:]),
            )  # fmt: skip
        return (
            None, None, None, dgate_NF, dup_NF,
            *_wanted(found, parameters, ctx.needs_input_grad[5:]),
        )  # fmt: skip


def _down_gradients(
    act: str, down: AdaptedLayer, gate_NF: Tensor, up_NF: Tensor, parameters: Sequence[Tensor],
    dy_ND: Tensor, *, into_factors: bool, overwrite: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:  # fmt: skip
    """In gate and up, whose memory may be taken (``overwrite``), and in the factors of down."""
    shared = SharedInput.of((down,), parameters, gate_NF.dtype)
    dsmall_NR = shared.small_gradient([dy_ND])
    dproduct_NF = shared.input_gradient([dy_ND], dsmall_NR)
    dgate_NF, dup_NF, product_NF = gated_backward_(
        dproduct_NF, gate_NF, up_NF, act, product=into_factors, overwrite=overwrite
    )
    found = [] if product_NF is None else shared.factor_gradients(product_NF, [dy_ND], dsmall_NR)
    return dgate_NF, dup_NF, found


class _GatedMLP(torch.autograd.Function):
    """As :class:`_GatedDown`, and gate and up are computed again too."""

    @staticmethod
    def forward(
        ctx: Any, layers: tuple[AdaptedLayer, ...], act: str, x_ND: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.layers, ctx.act = layers, act
        ctx.save_for_backward(x_ND, *parameters)
        count = len(factors_of(layers[:2]))
        with as_typed(x_ND):
            pair = SharedInput.of(layers[:2], parameters[:count], x_ND.dtype)
            down = SharedInput.of(layers[2:], parameters[count:], x_ND.dtype)
            gate_NF, up_NF = pair.products(x_ND)
            product_NF = gated(gate_NF, up_NF, act)
            del gate_NF, up_NF  # before the product behind them
            return down.products(product_NF)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, *parameters = ctx.saved_tensors
        count = len(factors_of(ctx.layers[:2]))
        into_x, needed = ctx.needs_input_grad[2], ctx.needs_input_grad[3:]
        into_pair = any(needed[:count])
        with as_typed(x_ND):
            pair = SharedInput.of(ctx.layers[:2], parameters[:count], x_ND.dtype)
            gate_NF, up_NF = pair.products(x_ND)
            dgate_NF, dup_NF, of_down = _down_gradients(
                ctx.act, ctx.layers[2], gate_NF, up_NF, parameters[count:], upstream[0],
                into_factors=any(needed[count:]), overwrite=True,
            )  # fmt: skip
            del gate_NF, up_NF
            dx_ND, of_pair = None, []
            if into_x or into_pair:
                dx_ND, of_pair = pair.gradients(
                    x_ND if into_pair else None, [dgate_NF, dup_NF], into_x=into_x
                )
        return (
            None, None, dx_ND,
            *_wanted(of_pair, parameters[:count], needed[:count]),
            *_wanted(of_down, parameters[count:], needed[count:]),
        )  # fmt: skip
