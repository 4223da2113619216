"""Triton kernels of :mod:`foveal.kernels.wide_mlp`: what a product of the vendor's leaves over."""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from foveal.kernels.early_start_triton import wait_for_inputs


@triton.jit
def _low_sum(
    low_ptr, row, real_row, rows, stride, first,
    BLOCK_B: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Columns ``first`` to ``first + RANK`` of ``[PARTS, rows, stride]``, summed in float32."""
    # Four parts side by side and one sum over them at the end: summed tile by tile, each tile would
    # pass through shared memory. Unrolled, so that all loads are under way at once.
    part = tl.arange(0, 4)[:, None, None]
    at_r = (first + tl.arange(0, RANK))[None, None, :]
    low = tl.zeros((4, BLOCK_B, RANK), tl.float32)
    for begin in tl.static_range(0, PARTS, 4):
        here = low_ptr + ((begin + part) * rows + row[None, :, None]) * stride + at_r
        real = (begin + part < PARTS) & real_row[None, :, None]
        low += tl.load(here, mask=real, other=0.0).to(tl.float32)
    return tl.sum(low, 0)


@triton.jit
def adapted_gate_kernel(
    gate_ptr, up_ptr, low_ptr, b_gate_ptr, b_up_ptr, a_down_ptr, low_down_ptr, rows, N,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, RANK: tl.constexpr,
    PARTS: tl.constexpr, RANK_DOWN: tl.constexpr, GELU: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """``act(gate + low B_gate') * (up + low B_up')`` into ``gate``, and its share of the next
    small product: ``low_down[program] = product @ A_down'``.

    A program has BLOCK_B rows and STEPS times BLOCK_N columns; no other reads them.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    real_row = row < rows
    half = gate_ptr.dtype.element_ty
    if RANK > 0:
        at_r = tl.arange(0, RANK)
        low_g = _low_sum(low_ptr, row, real_row, rows, 2 * RANK, 0, BLOCK_B, RANK, PARTS).to(half)
        low_u = _low_sum(low_ptr, row, real_row, rows, 2 * RANK, RANK, BLOCK_B, RANK, PARTS)
        low_u = low_u.to(half)
    if RANK_DOWN > 0:
        at_d = tl.arange(0, RANK_DOWN)
        low_down = tl.zeros((BLOCK_B, RANK_DOWN), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        column = (tl.program_id(0) * STEPS + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        real_column = column < N
        here = row.to(tl.int64)[:, None] * N + column[None, :]
        real = real_row[:, None] & real_column[None, :]
        gate = tl.load(gate_ptr + here, mask=real, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + here, mask=real, other=0.0).to(tl.float32)
        if RANK > 0:
            where = column[:, None] * RANK + at_r[None, :]
            b_gate = tl.load(b_gate_ptr + where, mask=real_column[:, None], other=0.0)
            b_up = tl.load(b_up_ptr + where, mask=real_column[:, None], other=0.0)
            gate = tl.dot(low_g, b_gate.T, gate, input_precision="ieee")
            up = tl.dot(low_u, b_up.T, up, input_precision="ieee")
        # Rounded where the separate layers round.
        gate = gate.to(half).to(tl.float32)
        up = up.to(half).to(tl.float32)
        if GELU:
            inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
            # tanh(z) = 2 sigmoid(2 z) - 1
            act = gate * tl.sigmoid(2.0 * inner)
        else:
            act = gate * tl.sigmoid(gate)
        product = (act.to(half).to(tl.float32) * up).to(half)
        tl.store(gate_ptr + here, product, mask=real)
        if RANK_DOWN > 0:
            where_a = at_d[:, None] * N + column[None, :]
            a_down = tl.load(a_down_ptr + where_a, mask=real_column[None, :], other=0.0)
            low_down = tl.dot(product, a_down.T, low_down, input_precision="ieee")
    if RANK_DOWN > 0:
        where_low = (tl.program_id(0) * rows + row)[:, None] * RANK_DOWN + at_d[None, :]
        tl.store(low_down_ptr + where_low, low_down, mask=real_row[:, None])


@triton.jit
def add_adapter_kernel(
    y_ptr, low_ptr, b_ptr, rows, D,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, RANK: tl.constexpr, PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """``y + low B'`` into ``y``, rounded once more."""
    wait_for_inputs(EARLY)
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    real_row = row < rows
    real_column = column < D
    half = y_ptr.dtype.element_ty
    low = _low_sum(low_ptr, row, real_row, rows, RANK, 0, BLOCK_B, RANK, PARTS).to(half)
    here = row[:, None] * D + column[None, :]
    real = real_row[:, None] & real_column[None, :]
    y = tl.load(y_ptr + here, mask=real, other=0.0).to(tl.float32)
    where_b = column[:, None] * RANK + tl.arange(0, RANK)[None, :]
    b = tl.load(b_ptr + where_b, mask=real_column[:, None], other=0.0)
    y = tl.dot(low, b.T, y, input_precision="ieee")
    tl.store(y_ptr + here, y.to(half), mask=real)
