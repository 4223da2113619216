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

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from foveal.kernels.arithmetic import as_typed, mm_float32, product_dtype
from foveal.kernels.train_fused import ACTIVATIONS, gated, gated_backward_
from foveal.models.packed_lora import lora_of


def project(x_ND: Tensor, modules: Sequence[nn.Module]) -> list[Tensor]:
    """``[module(x_ND) for module in modules]``, with the input kept once.

    Args:
        x_ND: input of all modules, ``[..., D]``.
        modules: linear layers of any sizes, adapted by PEFT or not.

    Returns:
        One ``[..., out_features]`` a module.
    """
    known = [_layer(module, x_ND) for module in modules]
    together = tuple(layer for layer in known if layer is not None)
    if not any(layer.adapters for layer in together):
        return [module(x_ND) for module in modules]
    found: Any = _Project.apply(together, _rows(x_ND), *_parameters(together))
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
    last = _layer(down, gate_NF)
    if last is None:
        kind = torch.promote_types(gate_NF.dtype, up_NF.dtype)
        product: Any = _GatedProduct.apply(act, gate_NF.to(kind), up_NF.to(kind))
        return down(product)
    rows = _rows(gate_NF), _rows(up_NF)
    y: Any = _GatedDown.apply(last, act, result, *rows, *_parameters([last]))
    return _shaped(y, x_ND)


def _recomputed_mlp(
    x_ND: Tensor, gate: nn.Module, up: nn.Module, down: nn.Module, act: str
) -> Tensor:
    layers = tuple(_layer(module, x_ND) for module in (gate, up, down))
    if any(layer is None for layer in layers):
        # What a special layer keeps is its own affair; it is dropped and computed again.
        again: Any = checkpoint(gated_mlp, x_ND, gate, up, down, act, use_reentrant=False)
        return again
    parameters = _parameters([layer for layer in layers if layer is not None])
    y: Any = _GatedMLP.apply(layers, act, _rows(x_ND), *parameters)
    return _shaped(y, x_ND)


def _rows(x_ND: Tensor) -> Tensor:
    """In the type of the product, so that this is what is kept."""
    return x_ND.reshape(-1, x_ND.shape[-1]).to(product_dtype(x_ND))


def _shaped(y_NF: Tensor, x_ND: Tensor) -> Tensor:
    return y_NF.view(*x_ND.shape[:-1], y_NF.shape[-1])


# ----------------------------------------------------------------------------- what a layer is


@dataclass(frozen=True, slots=True)
class _Layer:
    weight: Tensor
    bias: Tensor | None
    adapters: tuple[tuple[Tensor, Tensor, float], ...]
    """``(A, B, scale)``, PEFT's parameters."""


def _layer(module: nn.Module, x_ND: Tensor) -> _Layer | None:
    """None if the module has to be called as it is."""
    found = lora_of(module)
    if found is None:
        return None
    base: Any = found[0]
    trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    # Torch refuses factors of two types, unless autocast makes one of them.
    mixed = base.weight.dtype != x_ND.dtype and not torch.is_autocast_enabled(x_ND.device.type)
    if trained or mixed or does_more(module) or does_more(base):
        return None
    return _Layer(base.weight, base.bias, tuple(found[1]))


def does_more(module: Any) -> bool:
    """Does calling the module do more, or something else, than its formula?"""
    if "forward" in vars(module) or any(
        (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks,
         module._backward_pre_hooks)
    ):  # fmt: skip
        return True
    # An adapter that is merged and then switched off is unmerged by the call.
    if getattr(module, "merged", False) and module.disable_adapters:
        return True
    dropouts = getattr(module, "lora_dropout", {}).values()
    return any(isinstance(d, nn.Dropout) and d.training and d.p > 0 for d in dropouts)


def _parameters(layers: Sequence[_Layer]) -> list[Tensor]:
    """A and B of every adapter in turn, for autograd to see."""
    return [factor for layer in layers for a, b, _ in layer.adapters for factor in (a, b)]


# ----------------------------------------------- layers that share an input, without autograd


_unchanged: dict[Any, tuple[Tensor, _Adapters]] | None = None
"""Copies of adapters by what they were made from; None where adapters may change from call to
call. Not bound to a thread: backward passes run in threads of their own."""


@contextlib.contextmanager
def adapters_unchanged() -> Iterator[None]:
    """Within it no adapter changes, so copies of them in the product's type are made once.

    A layer is called for each piece of completions, forward and backward; without this, hundreds
    of small copies would be made each time.
    """
    global _unchanged
    before, _unchanged = _unchanged, {}
    try:
        yield
    finally:
        _unchanged = before


_Adapters = list[list[tuple[slice, Tensor, float]]]
"""Of each layer: its rows of the stacked A's, B and scale."""


def _cast_adapters(
    layers: Sequence[_Layer], parameters: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, _Adapters]:
    """All scaled A's, one under the other, and the rest, in the type of the product."""
    pairs, at = iter(zip(parameters[0::2], parameters[1::2], strict=True)), 0
    scaled, adapters = [], []
    for layer in layers:
        own = []
        for _, _, scale in layer.adapters:
            a_RD, b_FR = next(pairs)
            scaled.append((a_RD * scale).to(dtype))
            own.append((slice(at, at + len(a_RD)), b_FR.to(dtype), scale))
            at += len(a_RD)
        adapters.append(own)
    return torch.cat(scaled), adapters


@dataclass(frozen=True, slots=True)
class _Shared:
    """Layers that share their input, everything in the type of the product."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    a_RD: Tensor
    """All A's times their scales, one under the other."""
    adapters: _Adapters

    @classmethod
    def of(
        cls, layers: Sequence[_Layer], parameters: Sequence[Tensor], dtype: torch.dtype
    ) -> _Shared:
        """In the product's type; within :func:`adapters_unchanged` adapters are cast once."""
        weights = [layer.weight.to(dtype) for layer in layers]
        biases = [None if layer.bias is None else layer.bias.to(dtype) for layer in layers]
        if not parameters:
            return cls(
                weights, biases, weights[0].new_empty(0, weights[0].shape[1]), [[]] * len(layers)
            )
        # Not of ``parameters``: what autograd has kept of them are other objects each time.
        key = (dtype, *map(id, _parameters(layers)))
        found = None if _unchanged is None else _unchanged.get(key)
        if found is None:
            found = _cast_adapters(layers, parameters, dtype)
        if _unchanged is not None:
            _unchanged[key] = found
        return cls(weights, biases, *found)

    def products(self, x_ND: Tensor) -> list[Tensor]:
        small_NR = x_ND @ self.a_RD.T
        results = []
        for weight, bias, own in zip(self.weights, self.biases, self.adapters, strict=True):
            y_NF: Tensor | None = None
            for at, b_FR, _ in own:
                start = y_NF if y_NF is not None else bias
                if start is None:
                    y_NF = small_NR[:, at] @ b_FR.T
                else:
                    y_NF = torch.addmm(start, small_NR[:, at], b_FR.T)
            # The large product comes last: it reads what it adds to behind its own work.
            if y_NF is None:
                results.append(F.linear(x_ND, weight, bias))
            else:
                results.append(torch.addmm(y_NF, x_ND, weight.T, out=y_NF))
        return results

    def small_gradient(self, upstream: Sequence[Tensor | None]) -> Tensor:
        """Gradient in ``x a'`` of all adapters side by side, ``[N, R]``."""
        rows = next(len(dy_NF) for dy_NF in upstream if dy_NF is not None)
        dsmall_NR = self.a_RD.new_zeros(rows, len(self.a_RD))
        for dy_NF, own in zip(upstream, self.adapters, strict=True):
            if dy_NF is None:
                continue
            for at, b_FR, _ in own:
                torch.mm(dy_NF, b_FR, out=dsmall_NR[:, at])
        return dsmall_NR

    def input_gradient(self, upstream: Sequence[Tensor | None], dsmall_NR: Tensor) -> Tensor:
        dx_ND = dsmall_NR @ self.a_RD if len(self.a_RD) else None
        for dy_NF, weight in zip(upstream, self.weights, strict=True):
            if dy_NF is not None:
                dx_ND = dy_NF @ weight if dx_ND is None else dx_ND.addmm_(dy_NF, weight)
        assert dx_ND is not None
        return dx_ND

    def factor_gradients(
        self, x_ND: Tensor, upstream: Sequence[Tensor | None], dsmall_NR: Tensor
    ) -> list[Tensor | None]:
        """In A and B of every adapter in turn, float32; None where no gradient comes from."""
        da_RD = self._scaled_(mm_float32(dsmall_NR.T, x_ND))
        small_NR = x_ND @ self.a_RD.T
        found: list[Tensor | None] = []
        for dy_NF, own in zip(upstream, self.adapters, strict=True):
            for at, _, _ in own:
                if dy_NF is None:
                    found += [None, None]
                else:
                    found += [da_RD[at], mm_float32(dy_NF.T, small_NR[:, at])]
        return found

    def _scaled_(self, da_RD: Tensor) -> Tensor:
        """Gradient in the A's from that in the scaled ones, in its place."""
        scales = {scale for own in self.adapters for _, _, scale in own}
        if len(scales) == 1:  # the rule; one small launch instead of many
            return da_RD.mul_(scales.pop())
        for own in self.adapters:
            for at, _, scale in own:
                da_RD[at].mul_(scale)
        return da_RD

    def gradients(
        self, x_ND: Tensor | None, upstream: Sequence[Tensor | None], *, into_x: bool
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """In the input, if asked for, and in the factors, if the input is given."""
        dsmall_NR = self.small_gradient(upstream)
        dx_ND = self.input_gradient(upstream, dsmall_NR) if into_x else None
        if x_ND is None or not len(self.a_RD):
            return dx_ND, []
        return dx_ND, self.factor_gradients(x_ND, upstream, dsmall_NR)


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
        ctx: Any, layers: tuple[_Layer, ...], x_ND: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.layers, ctx.dtype = layers, x_ND.dtype
        ctx.set_materialize_grads(False)
        # For the gradient in x alone x is not needed.
        ctx.save_for_backward(x_ND if any(ctx.needs_input_grad[2:]) else None, *parameters)
        with as_typed(x_ND):
            return tuple(_Shared.of(layers, parameters, x_ND.dtype).products(x_ND))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        x_ND, *parameters = ctx.saved_tensors
        present = [dy_NF for dy_NF in upstream if dy_NF is not None]
        if not present:
            return (None,) * (2 + len(parameters))
        with as_typed(present[0]):
            shared = _Shared.of(ctx.layers, parameters, ctx.dtype)
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
        ctx: Any, down: _Layer, act: str, result: bool, gate_NF: Tensor, up_NF: Tensor,
        *parameters: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.down, ctx.act = down, act
        ctx.save_for_backward(gate_NF, up_NF, *parameters)
        if not result:
            return gate_NF.new_empty(len(gate_NF), len(down.weight))
        with as_typed(gate_NF):
            shared = _Shared.of((down,), parameters, gate_NF.dtype)
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
    act: str, down: _Layer, gate_NF: Tensor, up_NF: Tensor, parameters: Sequence[Tensor],
    dy_ND: Tensor, *, into_factors: bool, overwrite: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:  # fmt: skip
    """In gate and up, whose memory may be taken (``overwrite``), and in the factors of down."""
    shared = _Shared.of((down,), parameters, gate_NF.dtype)
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
        ctx: Any, layers: tuple[_Layer, ...], act: str, x_ND: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.layers, ctx.act = layers, act
        ctx.save_for_backward(x_ND, *parameters)
        count = len(_parameters(layers[:2]))
        with as_typed(x_ND):
            pair = _Shared.of(layers[:2], parameters[:count], x_ND.dtype)
            down = _Shared.of(layers[2:], parameters[count:], x_ND.dtype)
            gate_NF, up_NF = pair.products(x_ND)
            product_NF = gated(gate_NF, up_NF, act)
            del gate_NF, up_NF  # before the product behind them
            return down.products(product_NF)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, *parameters = ctx.saved_tensors
        count = len(_parameters(ctx.layers[:2]))
        into_x, needed = ctx.needs_input_grad[2], ctx.needs_input_grad[3:]
        into_pair = any(needed[:count])
        with as_typed(x_ND):
            pair = _Shared.of(ctx.layers[:2], parameters[:count], x_ND.dtype)
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
