"""Products of a few rows with large weights, an adapter added on the way.

With 1 to 128 rows a product takes as long as its weights take to read, so the only question is
what else has to be read, written or launched for it. The reference is what PEFT computes:
``x W' + (x A') B'`` with the scale already in B (arXiv:2106.09685, section 4.1).
"""

# Type checkers do not know how Triton kernels are launched.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.kernels.early_start import early_read

SHARED_BYTES = {(7, 5): 64 << 10, (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10,
                (9, 0): 227 << 10}  # fmt: skip
"""Shared memory that one program may take, by compute capability."""


FEW_PAIRS = 264
"""Gate and up in fewer tiles of 64 rows than two for each multiprocessor of an H100 are cut finer:
else half of them hold one tile and half two."""


@dataclass(frozen=True, slots=True)
class Factors:
    """An adapter's matrices in the base's type: ``a_RK`` and ``b_NR``, the scale within b.

    R is a power of two of at least 16; a smaller rank is filled up with zeros.
    """

    a_RK: Tensor
    b_NR: Tensor


def skinny_linear_reference(
    x_BK: Tensor, weights: Sequence[Tensor], factors: Sequence[Factors | None]
) -> Tensor:
    """The specification of :class:`SkinnyLinear`: float32 ``[B, N]``, matrices side by side."""
    x = x_BK.float()
    parts = []
    for weight_NK, factor in zip(weights, factors, strict=True):
        part = F.linear(x, weight_NK.float())
        if factor is not None:
            low = F.linear(x, factor.a_RK.float()).to(x_BK.dtype).float()
            part = part + F.linear(low, factor.b_NR.float())
        parts.append(part)
    return torch.cat(parts, dim=1)


def gated_reference(
    x_BK: Tensor, weights: Sequence[Tensor], factors: Sequence[Factors | None], gelu: bool
) -> Tensor:
    """The specification of :class:`GatedLinear`: ``act(gate) * up`` ``[B, N]``."""
    both = skinny_linear_reference(x_BK, weights, factors).to(x_BK.dtype)
    gate, up = both.chunk(2, dim=1)
    return (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)) * up


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut: chosen from measurements on an H100, cut down to other cards."""

    block_b: int
    block_n: int
    block_k: int
    stages: int
    warps: int
    split: int


def choose_tiles(
    rows: int, K: int, N: int, rank: int, *, capability: tuple[int, int], pair: bool = False,
    split: bool = True, bytes_each: int = 2,
) -> Tiles:  # fmt: skip
    """Tiles of a product ``[rows, K] x [K, N]``.

    Args:
        pair: two matrices of N rows in one program.
        split: K may be divided over programs where N alone gives too few.
    """
    block_b = max(16, 1 << (rows - 1).bit_length())
    block_n, block_k, stages, warps = (64, 64, 4, 4)
    if not pair and K >= 2 * N and block_b <= 32:
        block_n, block_k, stages, warps = 128, 128, 4, 8
    elif not split and block_b <= 32 and not pair:
        block_n, block_k, stages, warps = 64, 128, 4, 4
    elif block_b >= 64:
        block_n, block_k, stages, warps = 128, 64, 5, 8
    elif pair:
        stages = 3
        if -(-N // block_n) < FEW_PAIRS:
            block_n, block_k = 32, 128
    limit = _shared_limit(capability)
    matrices = 2 if pair else 1
    while True:
        row_bytes = (matrices * (block_n + rank) + block_b) * bytes_each
        fitting = (limit - 2048) // (row_bytes * block_k)
        if fitting >= 2 or (block_k == 32 and block_n == 32):
            break
        block_k, block_n = (block_k // 2, block_n) if block_k > 32 else (block_k, block_n // 2)
    stages = max(1, min(stages, fitting))
    tiles = -(-N // block_n)
    wanted = (288 if block_n <= 64 else 200 if block_b >= 64 else 132) // tiles
    deepest = max(1, K // (block_k * 4))
    splits = max(1, min(wanted, deepest, 8)) if split else 1
    return Tiles(block_b, block_n, block_k, stages, warps, splits)


class SkinnyLinear:
    """One to three matrices that share their input.

    Args:
        weights: ``[N_i, K]`` each, read where they are.
        factors: an adapter for each, or None; all of one rank.
        rows: B of every call.
        split: K may be divided; the output is then parts, to be summed by who reads them.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        factors: Sequence[Factors | None],
        rows: int,
        *,
        split: bool = True,
    ) -> None:
        assert 1 <= len(weights) <= 3
        self.rows, self.K = rows, weights[0].shape[1]
        self.sizes = [w.shape[0] for w in weights] + [0] * (3 - len(weights))
        self.total = sum(self.sizes)
        self.weights = [*weights, *[weights[0]] * (3 - len(weights))]
        self.rank, self.a, self.b = _factor_lists(weights, factors)
        self.tiles = choose_tiles(
            rows, self.K, self.total, self.rank, split=split,
            capability=_capability(weights[0]), bytes_each=weights[0].element_size(),
        )  # fmt: skip

    @property
    def parts(self) -> int:
        """S: how many parts the output has."""
        return self.tiles.split

    def __call__(self, x_BK: Tensor, out_SBN: Tensor) -> None:
        """Write ``[S, B, N]`` parts (or ``[B, N]`` where S is 1), in the type of ``out_SBN``."""
        import triton

        from foveal.kernels.skinny_linear_triton import linear_kernel

        t = self.tiles
        k_blocks = -(-self.K // t.block_k)
        programs = sum(triton.cdiv(size, t.block_n) for size in self.sizes)
        linear_kernel[(programs, t.split)](
            x_BK, out_SBN, *self.weights, *self.a, *self.b,
            self.rows, self.K, *self.sizes, -(-k_blocks // t.split) * t.block_k,
            BLOCK_B=t.block_b, BLOCK_N=t.block_n, BLOCK_K=t.block_k, RANK=self.rank,
            EVEN_K=self.K % t.block_k == 0, STAGES=t.stages,
            num_warps=t.warps, **early_read(x_BK),
        )  # fmt: skip


def small_products(factors: Sequence[Factors], rows: int) -> SkinnyLinear:
    """``x A'`` of one to three adapters of one rank that share their input.

    The output is ``[S, B, R]`` with their columns side by side; it is so narrow that only a deep
    division of K gives programs enough.
    """
    a = [factor.a_RK for factor in factors]
    linear = SkinnyLinear(a, [None] * len(a), rows)
    t = linear.tiles
    # Never more than was chosen, which fits the card.
    block_n, block_k = min(t.block_n, 64, len(a[0])), min(t.block_k, 64)
    # Shares of whole blocks, at most 16 and none empty: each is read by the kernel that follows.
    blocks = -(-linear.K // block_k)
    split = -(-blocks // -(-blocks // 16))
    linear.tiles = replace(t, block_n=block_n, block_k=block_k, split=split)
    return linear


class GatedLinear:
    """``act(x Wg') * (x Wu')`` in one kernel, for up to 32 rows.

    Two sums of more rows than that find no room in the registers of a program, and other ways
    are faster there anyway (:mod:`foveal.kernels.wide_mlp`).
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        factors: Sequence[Factors | None],
        rows: int,
        *,
        gelu: bool,
    ) -> None:
        assert rows <= 32, f"{rows} rows are more than a program takes"
        self.rows, self.gelu = rows, gelu
        self.N, self.K = weights[0].shape
        self.weights = list(weights)
        self.rank, self.a, self.b = _factor_lists(weights, factors)
        self.tiles = choose_tiles(
            rows, self.K, self.N, self.rank, pair=True, split=False,
            capability=_capability(weights[0]), bytes_each=weights[0].element_size(),
        )  # fmt: skip

    def __call__(self, x_BK: Tensor, out_BN: Tensor) -> None:
        """Write ``[B, N]`` in 16 bit."""
        import triton

        from foveal.kernels.skinny_linear_triton import gated_kernel

        t = self.tiles
        gated_kernel[(triton.cdiv(self.N, t.block_n),)](
            x_BK, out_BN, *self.weights, self.a[0], self.a[1], self.b[0], self.b[1],
            self.rows, self.K, self.N,
            BLOCK_B=t.block_b, BLOCK_N=t.block_n, BLOCK_K=t.block_k, RANK=self.rank,
            EVEN_K=self.K % t.block_k == 0, STAGES=t.stages, GELU=self.gelu,
            num_warps=t.warps, **early_read(x_BK),
        )  # fmt: skip


def _factor_lists(
    weights: Sequence[Tensor], factors: Sequence[Factors | None]
) -> tuple[int, list[Tensor], list[Tensor]]:
    """Rank and three tensors each of a and b; a matrix without an adapter must not stand beside
    one that has it (the packer fills zeros in)."""
    given = [f for f in factors if f is not None]
    if not given:
        return 0, [weights[0]] * 3, [weights[0]] * 3
    assert len(given) == len(weights), "matrices that share their input have all an adapter or none"
    a, b = [f.a_RK for f in given], [f.b_NR for f in given]
    fill = 3 - len(given)
    return a[0].shape[0], a + [a[0]] * fill, b + [b[0]] * fill


def _capability(weight: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(weight.device) if weight.is_cuda else (9, 0)


def _shared_limit(capability: tuple[int, int]) -> int:
    known = [c for c in SHARED_BYTES if c <= capability]
    return SHARED_BYTES[max(known)] if known else 48 << 10
