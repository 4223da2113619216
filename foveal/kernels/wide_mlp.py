"""Gate, up and down of a step with more rows than few: the vendor's products, adapters beside.

Up to 32 rows a product takes as long as its weights take to read, and kernels of our own add the
adapter on the way for nothing. With more rows the matrix units are busy, and cuBLAS keeps them
busier than we do (gate and up of a 7B model at 128 rows on an H100: 109 us against 143). So here
torch forms the products, in 16 bit, and three small launches add what the adapters give:

    small products    x A' of gate and up, in parts over K
    adapted_gate_     gate and up + low B', activation, product; and its shares of down's x A'
    add_adapter_      down + low B'

The reference is what PEFT computes, as in :mod:`foveal.kernels.skinny_linear`.
"""

# Type checkers do not know how Triton kernels are launched.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.kernels.early_start import early_start
from foveal.kernels.skinny_linear import (
    Factors,
    gated_reference,
    skinny_linear_reference,
    small_products,
)

WIDE_ROWS = 33
"""From so many rows on the vendor's products are faster (measured on an H100; equal at 32)."""


def wide_mlp_reference(
    x_BK: Tensor, weights: Sequence[Tensor], factors: Sequence[Factors | None], gelu: bool
) -> Tensor:
    """The specification of :class:`WideMLP`: float32 ``[B, D]``; gate, up and down in order."""
    act_BN = gated_reference(x_BK, weights[:2], factors[:2], gelu)
    return skinny_linear_reference(act_BN, weights[2:], factors[2:])


# ------------------------------------------------------------------------------ gate and adapter


@dataclass(frozen=True, slots=True)
class GateTiles:
    """What a program of :func:`adapted_gate_` takes: ``block_b`` rows, and ``steps`` times
    ``block_n`` columns."""

    block_b: int
    block_n: int
    steps: int

    @property
    def columns(self) -> int:
        return self.block_n * self.steps

    def shares(self, N: int) -> int:
        """P: programs beside each other, each with a part of down's small product."""
        return -(-N // self.columns)


def gate_tiles(rows: int, N: int, rank: int, rank_down: int = 0) -> GateTiles:
    """Tiles of ``[rows, N]`` for adapters of gate and up, and of down where it takes part."""
    # Prompts have thousands of rows: higher tiles read B less often. With down's small product
    # they would not fit every card.
    block_b, columns = (16 if rows <= 256 or rank_down else 64), 512
    # Programs for every multiprocessor. Narrow tiles mean many parts to be summed later.
    while columns > 128 and -(-rows // block_b) * -(-N // columns) < 128:
        columns //= 2
    # Wider steps spill registers: down's small product has each warp hold all of a row tile.
    widest = 128 if block_b == 16 else 64
    block_n = max(16, min(widest, 4096 // max(rank, rank_down, 1)))
    return GateTiles(block_b, block_n, columns // block_n)


def adapted_gate_reference(
    gate_BN: Tensor,
    up_BN: Tensor,
    *,
    gelu: bool,
    low_SBR: Tensor | None = None,
    b_gate_NR: Tensor | None = None,
    b_up_NR: Tensor | None = None,
) -> Tensor:
    """The specification of :func:`adapted_gate_`: what it leaves in ``gate_BN``."""
    half = gate_BN.dtype
    if low_SBR is not None:
        assert b_gate_NR is not None and b_up_NR is not None
        low_g, low_u = low_SBR.float().sum(0).to(half).float().chunk(2, dim=1)
        gate_BN = (gate_BN.float() + low_g @ b_gate_NR.float().T).to(half)
        up_BN = (up_BN.float() + low_u @ b_up_NR.float().T).to(half)
    return (F.gelu(gate_BN, approximate="tanh") if gelu else F.silu(gate_BN)) * up_BN


def adapted_gate_(
    gate_BN: Tensor,
    up_BN: Tensor,
    *,
    gelu: bool,
    low_SBR: Tensor | None = None,
    b_gate_NR: Tensor | None = None,
    b_up_NR: Tensor | None = None,
    a_down_RN: Tensor | None = None,
    low_down_PBR: Tensor | None = None,
) -> None:
    """``act(gate + low B_gate') * (up + low B_up')``, written over ``gate_BN``.

    Args:
        gate_BN, up_BN: products without adapters, in 16 bit, contiguous.
        gelu: GELU in its tanh form; SiLU otherwise.
        low_SBR: ``x A'`` in S parts, ``[S, B, 2 R]``: gate's, then up's; None without adapters.
        b_gate_NR, b_up_NR: go with ``low_SBR``; the scale is within.
        a_down_RN: of the product that follows; None if it has no adapter.
        low_down_PBR: goes with ``a_down_RN``: float32 parts of its ``x A'``, written; P is
            ``gate_tiles(B, N, ...).shares(N)``.
    """
    from foveal.kernels.wide_mlp_triton import adapted_gate_kernel

    B, N = gate_BN.shape
    assert gate_BN.is_contiguous() and up_BN.is_contiguous(), "columns must lie side by side"
    rank = 0 if b_gate_NR is None else b_gate_NR.shape[1]
    rank_down = 0 if a_down_RN is None else a_down_RN.shape[0]
    tiles = gate_tiles(B, N, rank, rank_down)
    shares = tiles.shares(N)
    assert low_SBR is None or (low_SBR.shape[1:] == (B, 2 * rank) and low_SBR.is_contiguous())
    assert low_down_PBR is None or low_down_PBR.shape == (shares, B, rank_down)
    adapted_gate_kernel[(shares, -(-B // tiles.block_b))](
        gate_BN,
        up_BN,
        gate_BN if low_SBR is None else low_SBR,
        gate_BN if b_gate_NR is None else b_gate_NR,
        gate_BN if b_up_NR is None else b_up_NR,
        gate_BN if a_down_RN is None else a_down_RN,
        gate_BN if low_down_PBR is None else low_down_PBR,
        B,
        N,
        BLOCK_B=tiles.block_b,
        BLOCK_N=tiles.block_n,
        STEPS=tiles.steps,
        RANK=rank,
        PARTS=0 if low_SBR is None else low_SBR.shape[0],
        RANK_DOWN=rank_down,
        GELU=gelu,
        STAGES=3,
        num_warps=4,
        **early_start(gate_BN),
    )


def add_adapter_reference(y_BD: Tensor, low_PBR: Tensor, b_DR: Tensor) -> Tensor:
    """The specification of :func:`add_adapter_`: what it leaves in ``y_BD``."""
    low_BR = low_PBR.sum(0).to(y_BD.dtype).float()
    return (y_BD.float() + low_BR @ b_DR.float().T).to(y_BD.dtype)


def add_adapter_(y_BD: Tensor, low_PBR: Tensor, b_DR: Tensor) -> None:
    """``y + low B'`` written over ``y_BD``, in 16 bit.

    Args:
        y_BD: a product without its adapter.
        low_PBR: float32 parts of ``x A'``.
        b_DR: the scale is within.
    """
    from foveal.kernels.wide_mlp_triton import add_adapter_kernel

    B, D = y_BD.shape
    rank, block_b = b_DR.shape[1], 16
    block_d = 128 if -(-B // block_b) * -(-D // 128) >= 128 and rank <= 64 else 64
    add_adapter_kernel[(-(-D // block_d), -(-B // block_b))](
        y_BD, low_PBR, b_DR, B, D, BLOCK_B=block_b, BLOCK_D=block_d, RANK=rank,
        PARTS=low_PBR.shape[0], num_warps=4, **early_start(y_BD),
    )  # fmt: skip


# ------------------------------------------------------------------------------------ the layers


@dataclass(frozen=True, slots=True)
class WideRoom:
    """What a :class:`WideMLP` writes: of :attr:`WideMLP.shapes`, at fixed addresses."""

    pair_2BN: Tensor
    """Gate and up, in 16 bit; after the call the first is their gated product."""
    out_1BD: Tensor
    """The result, in 16 bit."""
    low_SBR: Tensor
    """float32 parts of gate's and up's ``x A'``; empty without adapters."""
    low_down_PBR: Tensor
    """float32 parts of down's."""


class WideMLP:
    """``(act(x Wg') * (x Wu')) Wd'`` with adapters, for :data:`WIDE_ROWS` rows and more.

    Args:
        weights: gate and up ``[N, K]``, down ``[D, N]``, read where they are.
        factors: an adapter for each, or None; gate and up have both one or none.
        rows: B of every call.
        gelu: GELU in its tanh form; SiLU otherwise.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        factors: Sequence[Factors | None],
        rows: int,
        *,
        gelu: bool,
    ) -> None:
        gate, up, self.down = factors
        assert (gate is None) == (up is None), "gate and up have both an adapter or none"
        self.rows, self.gelu, self.weights = rows, gelu, list(weights)
        self.pair = None if gate is None or up is None else (gate, up)
        self.low = None if self.pair is None else small_products(self.pair, rows)

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Of the tensors of a :class:`WideRoom`, by name."""
        (N, _), D, B = self.weights[0].shape, self.weights[2].shape[0], self.rows
        low = (0, B, 0) if self.low is None else (self.low.parts, B, self.low.total)
        rank = 0 if self.pair is None else self.pair[0].a_RK.shape[0]
        down = 0 if self.down is None else self.down.a_RK.shape[0]
        shares = gate_tiles(B, N, rank, down).shares(N) if down else 0
        return {
            "pair_2BN": (2, B, N),
            "out_1BD": (1, B, D),
            "low_SBR": low,
            "low_down_PBR": (shares, B, down),
        }

    def __call__(self, x_BK: Tensor, room: WideRoom) -> Tensor:
        """The result ``[1, B, D]`` in 16 bit: ``room.out_1BD``, overwritten by the next call."""
        gate, up, down = (weight.detach().T for weight in self.weights)
        self._small_products(x_BK, room)
        torch.mm(x_BK, gate, out=room.pair_2BN[0])
        torch.mm(x_BK, up, out=room.pair_2BN[1])
        self._gate(room)
        torch.mm(room.pair_2BN[0], down, out=room.out_1BD[0])
        self._add_adapter(room)
        return room.out_1BD

    def launches(self, x_BK: Tensor, room: WideRoom) -> list[Callable[[], None]]:
        """The kernels of our own, which have to be compiled before a graph is captured."""
        return [
            partial(self._small_products, x_BK, room),
            partial(self._gate, room),
            partial(self._add_adapter, room),
        ]

    def _small_products(self, x_BK: Tensor, room: WideRoom) -> None:
        if self.low is not None:
            self.low(x_BK, room.low_SBR)

    def _gate(self, room: WideRoom) -> None:
        given: dict[str, Tensor] = {}
        if self.pair is not None:
            b_gate, b_up = (factor.b_NR for factor in self.pair)
            given |= {"low_SBR": room.low_SBR, "b_gate_NR": b_gate, "b_up_NR": b_up}
        if self.down is not None:
            given |= {"a_down_RN": self.down.a_RK, "low_down_PBR": room.low_down_PBR}
        adapted_gate_(*room.pair_2BN, gelu=self.gelu, **given)

    def _add_adapter(self, room: WideRoom) -> None:
        if self.down is not None:
            add_adapter_(room.out_1BD[0], room.low_down_PBR, self.down.b_NR)
