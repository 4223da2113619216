"""What the products of adapted linear layers have in common: PEFT's parameters, read once.

``fused_lora`` makes autograd functions of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.kernels.arithmetic import mm_float32
from foveal.models.packed_lora import lora_of


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """A linear layer with a frozen base, and its live adapters."""

    weight: Tensor
    bias: Tensor | None
    adapters: tuple[tuple[Tensor, Tensor, float], ...]
    """``(A, B, scale)``, PEFT's parameters."""


def adapted_layer(module: nn.Module, x_ND: Tensor) -> AdaptedLayer | None:
    """What a product with ``x_ND`` takes; None if the module has to be called as it is."""
    if _unchanged is None:
        return _look_at(module, x_ND)
    key = module, x_ND.dtype, torch.is_autocast_enabled(x_ND.device.type)
    if key not in _unchanged.layers:
        _unchanged.layers[key] = _look_at(module, x_ND)
    return _unchanged.layers[key]


def _look_at(module: nn.Module, x_ND: Tensor) -> AdaptedLayer | None:
    found = lora_of(module)
    if found is None:
        return None
    base: Any = found[0]
    trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    # Torch refuses factors of two types, unless autocast makes one of them.
    mixed = base.weight.dtype != x_ND.dtype and not torch.is_autocast_enabled(x_ND.device.type)
    if trained or mixed or does_more(module) or does_more(base):
        return None
    return AdaptedLayer(base.weight, base.bias, tuple(found[1]))


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


def factors_of(layers: Sequence[AdaptedLayer]) -> list[Tensor]:
    """A and B of every adapter in turn, for autograd to see."""
    return [factor for layer in layers for a, b, _ in layer.adapters for factor in (a, b)]


# ----------------------------------------------- layers that share an input, without autograd


@dataclass(frozen=True, slots=True)
class _Known:
    """What is found out once where nothing changes."""

    layers: dict[Any, AdaptedLayer | None]
    """By module, input type and autocast."""
    copies: dict[Any, tuple[Tensor, _Adapters]]
    """Of adapters, by what they were made from."""


_unchanged: _Known | None = None
"""None where layers and adapters may change from call to call. Not bound to a thread: backward
passes run in threads of their own."""


@contextlib.contextmanager
def adapters_unchanged() -> Iterator[None]:
    """Within it no layer and no adapter changes: copies of adapters in the product's type are made
    once, and each layer is looked at once.

    A layer is called for each piece of completions, forward and backward; without this, hundreds
    of small copies would be made each time.
    """
    global _unchanged
    before, _unchanged = _unchanged, _Known({}, {})
    try:
        yield
    finally:
        _unchanged = before


_Adapters = list[list[tuple[slice, Tensor, float]]]
"""Of each layer: its rows of the stacked A's, B and scale."""


def _cast_adapters(
    layers: Sequence[AdaptedLayer], parameters: Sequence[Tensor], dtype: torch.dtype
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
class SharedInput:
    """Layers that share their input, everything in the type of the product.

    The formulas are those of ``fused_lora``; autograd does not see them.
    """

    weights: list[Tensor]
    biases: list[Tensor | None]
    a_RD: Tensor
    """All A's times their scales, one under the other."""
    adapters: _Adapters

    @classmethod
    def of(
        cls, layers: Sequence[AdaptedLayer], parameters: Sequence[Tensor], dtype: torch.dtype
    ) -> SharedInput:
        """In the product's type; within :func:`adapters_unchanged` adapters are cast once."""
        weights = [layer.weight.to(dtype) for layer in layers]
        biases = [None if layer.bias is None else layer.bias.to(dtype) for layer in layers]
        if not parameters:
            return cls(
                weights, biases, weights[0].new_empty(0, weights[0].shape[1]), [[]] * len(layers)
            )
        # Not of ``parameters``: what autograd has kept of them are other objects each time.
        key = (dtype, *map(id, factors_of(layers)))
        known = None if _unchanged is None else _unchanged.copies
        found = None if known is None else known.get(key)
        if found is None:
            found = _cast_adapters(layers, parameters, dtype)
        if known is not None:
            known[key] = found
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
        present = [dy_NF for dy_NF in upstream if dy_NF is not None]
        size = len(present[0]), len(self.a_RD)
        # A layer whose result nobody used leaves its columns as they are.
        whole = len(present) == len(upstream)
        dsmall_NR = self.a_RD.new_empty(size) if whole else self.a_RD.new_zeros(size)
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
