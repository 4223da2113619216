"""Feed-forward blocks of a vision tower whose width GPUs load badly, filled up on the fly.

    blocks = fast_vision_mlp(model)      # at loading; does nothing the second time
    stock_vision_mlp(model)              # back to what transformers does

Qwen2.5-VL's tower is 3,420 wide there. Rows of 3,420 numbers of 16 bits do not begin at multiples
of 16 bytes, as Hopper's and Ampere's fast loads ask for, so cuBLAS falls back to kernels several
times slower. Four zero rows in gate and up, and four zero columns in down, change no result:

    act(0) * 0 = 0,   and   0 * 0 = 0   is what they add

The parameters stay as they are, for PEFT, saving and merging. Each call copies them, filled up,
into fresh memory (26 MB a layer): the copy takes a small part of the time that it saves. With
gradients the backward pass keeps that copy, unless the layer is checkpointed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.kernels.arithmetic import product_dtype
from foveal.models.adapted_layers import does_more
from foveal.models.family import family_of, stock_model
from foveal.models.packed_lora import lora_of
from foveal.models.state import state_of

ROW_BYTES = 16
"""Rows that begin at multiples of this are loaded fast."""
WIDTH_MULTIPLE = 8
"""Widths are filled up to it: 16 bytes in the narrowest type that is computed in, 16 bits."""
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def fast_vision_mlp(model: nn.Module) -> int:
    """Let the feed-forward blocks of the vision tower compute in a width that is loaded fast.

    Whether a call is filled up is decided by the call, from the type that it computes in. A block
    in which a projection is more than a linear layer with plain adapters (quantised, hooked, with
    dropout) computes as it always did.

    Args:
        model: stock model or its PEFT wrapper.

    Returns:
        How many blocks are changed; 0 where the family has none of this kind, or their width is
        a multiple of 8 already.

    Raises:
        ValueError: if a tower that should have such blocks has none.
    """
    if not family_of(model).FAMILY.gated_vision:
        return 0
    blocks = _blocks(model)
    if not blocks:
        raise ValueError(
            f"the vision tower of {type(stock_model(model)).__name__} has no block with "
            f"{', '.join(PROJECTIONS)}, so none can be made faster; load the model with "
            "transformers' own class"
        )
    changed = 0
    for block in blocks:
        # A forward that somebody else has put there has its reasons.
        if block.gate_proj.out_features % WIDTH_MULTIPLE and "forward" not in vars(block):
            block.forward = PaddedForward(block)
        changed += _is_changed(block)
    if changed:
        line = f"{changed} feed-forward blocks of the vision tower compute in a width filled up"
        state_of(model).record("vision mlp", f"{line} to a multiple of {WIDTH_MULTIPLE}")
    return changed


def stock_vision_mlp(model: nn.Module) -> int:
    """Undo :func:`fast_vision_mlp`; returns how many blocks were switched back."""
    changed = [block for block in _blocks(model) if _is_changed(block)]
    for block in changed:
        del block.forward
    state_of(model).record("vision mlp", None)
    return len(changed)


def needs_padding(width: int, dtype: torch.dtype) -> bool:
    """Whether rows of ``width`` numbers are loaded slowly."""
    return width * dtype.itemsize % ROW_BYTES != 0


@dataclass(eq=False, slots=True)
class PaddedForward:
    """Stands in for ``forward`` on one instance, and is copied and pickled along with it."""

    block: Any

    def __call__(self, x_ND: Tensor) -> Tensor:
        block = self.block
        if needs_padding(block.gate_proj.out_features, product_dtype(x_ND)):
            gate, up, down = (_linear(getattr(block, name), x_ND) for name in PROJECTIONS)
            if gate is not None and up is not None and down is not None:
                return padded_mlp(x_ND, gate, up, down, block.act_fn)
        return type(block).forward(block, x_ND)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer and its live adapters."""

    weight: Tensor
    bias: Tensor
    adapters: Sequence[tuple[Tensor, Tensor, float]] = ()
    """``(A, B, scale)`` each."""


def padded_mlp(
    x_ND: Tensor, gate: Linear, up: Linear, down: Linear, act: Callable[[Tensor], Tensor]
) -> Tensor:
    """``down(act(gate(x)) * up(x))`` with the width in the middle filled up by zeros.

    Gate and up are one product. Differentiable in the input, weights, biases and adapters.

    Args:
        x_ND: ``[..., D]``.
        gate: from D to F.
        up: likewise.
        down: from F to D.
        act: elementwise, finite at 0.

    Returns:
        ``[..., D]``.
    """
    shape, x_ND = x_ND.shape, x_ND.reshape(-1, x_ND.shape[-1])
    width, wide = gate.weight.shape
    missing = -width % WIDTH_MULTIPLE
    zeros = gate.weight.new_zeros(missing * max(wide, down.weight.shape[0]))
    rows = zeros[: missing * wide].view(missing, wide)
    columns = zeros[: missing * down.weight.shape[0]].view(-1, missing)

    both = F.linear(
        x_ND,
        torch.cat([gate.weight, rows, up.weight, rows]),
        torch.cat([gate.bias, zeros[:missing], up.bias, zeros[:missing]]),
    )
    gate_NF, up_NF = (
        _adapted(y_NF, x_ND, [(a_RD, F.pad(b_FR, (0, 0, 0, missing)), s) for a_RD, b_FR, s in own])
        for y_NF, own in zip(both.chunk(2, -1), (gate.adapters, up.adapters), strict=True)
    )
    h_NF = act(gate_NF) * up_NF
    y_ND = F.linear(h_NF, torch.cat([down.weight, columns], 1), down.bias)
    of_down = [(F.pad(a_RF, (0, missing)), b_DR, s) for a_RF, b_DR, s in down.adapters]
    return _adapted(y_ND, h_NF, of_down).view(shape)


def _adapted(
    y_NF: Tensor, x_ND: Tensor, adapters: Sequence[tuple[Tensor, Tensor, float]]
) -> Tensor:
    for a_RD, b_FR, scale in adapters:
        y_NF = torch.addmm(y_NF, F.linear(x_ND, a_RD), b_FR.T, alpha=scale)
    return y_NF


def _linear(module: Any, x_ND: Tensor) -> Linear | None:
    """None if the module has to be called as it is."""
    found = lora_of(module)
    if found is None or found[0].bias is None or does_more(module) or does_more(found[0]):
        return None
    base, adapters = found
    parameters = [base.weight, base.bias, *(p for a, b, _ in adapters for p in (a, b))]
    # Torch refuses factors of two types, unless autocast makes one of them.
    mixed = any(p.dtype != x_ND.dtype for p in parameters)
    if mixed and not torch.is_autocast_enabled(x_ND.device.type):
        return None
    return Linear(base.weight, base.bias, adapters)


def _blocks(model: nn.Module) -> list[Any]:
    tower = stock_model(model).get_submodule(family_of(model).FAMILY.vision_paths[0])
    return [
        module
        for module in tower.modules()
        if all(hasattr(module, name) for name in (*PROJECTIONS, "act_fn"))
    ]


def _is_changed(block: nn.Module) -> bool:
    return isinstance(vars(block).get("forward"), PaddedForward)
