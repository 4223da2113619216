"""Triton kernels of :mod:`foveal.kernels.train_fused`: what stands between two products, both ways.

Each reads its inputs once and writes its results once; sums and activations are in float32.
"""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_kernel(
    x_ptr, branch_ptr, stream_ptr, out_ptr, rstd_ptr, weight_ptr, rows, D, eps,
    BRANCH: tl.constexpr, ADD_ONE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``stream = x + branch`` where there is one, and the norm of the sum."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    at = tl.arange(0, BLOCK_D)
    real = (row < rows)[:, None] & (at < D)[None, :]
    here = row[:, None] * D + at[None, :]
    kept = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + here, mask=real, other=0.0).to(tl.float32)
    if BRANCH:
        x += tl.load(branch_ptr + here, mask=real, other=0.0).to(tl.float32)
        x = x.to(kept)
        tl.store(stream_ptr + here, x, mask=real)
        x = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    weight = tl.load(weight_ptr + at, mask=at < D, other=0.0).to(tl.float32)
    x *= rstd[:, None]
    # Rounded where the stock modules round.
    if ADD_ONE:
        x = (x * (1.0 + weight)[None, :]).to(kept)
    else:
        x = x.to(kept).to(tl.float32) * weight[None, :]
    tl.store(out_ptr + here, x.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def norm_backward_kernel(
    dout_ptr, dstream_ptr, x_ptr, rstd_ptr, weight_ptr, dx_ptr, dbranch_ptr, dweight_ptr, rows, D,
    tiles,
    DSTREAM: tl.constexpr, DBRANCH: tl.constexpr, DWEIGHT: tl.constexpr, ADD_ONE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Every program takes each ``num_programs``-th tile of rows; its share of the weight's
    gradient becomes one row of ``dweight``."""
    program = tl.program_id(0)
    at = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + at, mask=at < D, other=0.0).to(tl.float32)
    if ADD_ONE:
        weight += 1.0
    dweight = tl.zeros((BLOCK_D,), tl.float32)
    for tile in range(program, tiles, tl.num_programs(0)):
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        real = (row < rows)[:, None] & (at < D)[None, :]
        here = row[:, None] * D + at[None, :]
        x = tl.load(x_ptr + here, mask=real, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)[:, None]
        dout = tl.load(dout_ptr + here, mask=real, other=0.0).to(tl.float32)
        x *= rstd
        if DWEIGHT:
            dweight += tl.sum(dout * x, 0)
        dout *= weight[None, :]
        dx = rstd * (dout - x * (tl.sum(dout * x, 1) / D)[:, None])
        if DSTREAM:
            dx += tl.load(dstream_ptr + here, mask=real, other=0.0).to(tl.float32)
        tl.store(dx_ptr + here, dx.to(dx_ptr.dtype.element_ty), mask=real)
        if DBRANCH:
            tl.store(dbranch_ptr + here, dx.to(dbranch_ptr.dtype.element_ty), mask=real)
    if DWEIGHT:
        tl.store(dweight_ptr + program * D + at, dweight, mask=at < D)


@triton.jit
def _rotate(
    x_ptr, out_ptr, row, cos1, cos2, sin1, sin2, column, fits,
    HEADS: tl.constexpr, BLOCK_H: tl.constexpr, HALF_C: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, BLOCK_H)
    real = (head < HEADS)[:, None] & fits[None, :]
    here = row * (HEADS * 2 * HALF_C) + head[:, None] * (2 * HALF_C) + column[None, :]
    kind = x_ptr.dtype.element_ty
    x1 = tl.load(x_ptr + here, mask=real, other=0.0).to(tl.float32)
    x2 = tl.load(x_ptr + here + HALF_C, mask=real, other=0.0).to(tl.float32)
    a1 = x1 * cos1[None, :]
    b1 = x2 * sin1[None, :]
    a2 = x2 * cos2[None, :]
    b2 = x1 * sin2[None, :]
    if ROUND:
        # Each product is rounded, as in q * cos + rotate_half(q) * sin.
        a1 = a1.to(kind).to(tl.float32)
        b1 = b1.to(kind).to(tl.float32)
        a2 = a2.to(kind).to(tl.float32)
        b2 = b2.to(kind).to(tl.float32)
    tl.store(out_ptr + here, (a1 - b1).to(kind), mask=real)
    tl.store(out_ptr + here + HALF_C, (a2 + b2).to(kind), mask=real)


@triton.jit
def rotary_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr,
    HEADS: tl.constexpr, KV: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    HALF_C: tl.constexpr, BLOCK_C: tl.constexpr, BACK: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """All heads of one token; ``BACK`` turns the other way."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_C)
    fits = column < HALF_C
    angle = row * (2 * HALF_C) + column
    cos1 = tl.load(cos_ptr + angle, mask=fits, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + angle + HALF_C, mask=fits, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + angle, mask=fits, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + angle + HALF_C, mask=fits, other=0.0).to(tl.float32)
    s1 = sin1
    s2 = sin2
    if BACK:
        s1 = -sin2
        s2 = -sin1
    _rotate(q_ptr, q_out_ptr, row, cos1, cos2, s1, s2, column, fits, HEADS, BLOCK_H, HALF_C, ROUND)
    _rotate(k_ptr, k_out_ptr, row, cos1, cos2, s1, s2, column, fits, KV, BLOCK_K, HALF_C, ROUND)


@triton.jit
def _activation(gate, GELU: tl.constexpr):
    """The activation and its derivative."""
    if GELU:
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * gate * gate)
        # tanh(z) = 2 sigmoid(2 z) - 1
        share = tl.sigmoid(inner)
    else:
        slope = 1.0
        share = tl.sigmoid(gate)
    return gate * share, share + gate * share * (1.0 - share) * slope


@triton.jit
def gated_kernel(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr, GELU: tl.constexpr):
    """``act(gate) * up``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    kind = out_ptr.dtype.element_ty
    gate = tl.load(gate_ptr + at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=real, other=0.0).to(tl.float32)
    act, _ = _activation(gate, GELU)
    # Rounded where the stock modules round.
    tl.store(out_ptr + at, (act.to(kind).to(tl.float32) * up).to(kind), mask=real)


@triton.jit
def gated_backward_kernel(
    dproduct_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, product_ptr, count,
    BLOCK: tl.constexpr, GELU: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Any result may lie in the memory of any argument: each place is read before it is written."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    kind = dgate_ptr.dtype.element_ty
    dproduct = tl.load(dproduct_ptr + at, mask=real, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=real, other=0.0).to(tl.float32)
    act, slope = _activation(gate, GELU)
    act = act.to(kind).to(tl.float32)
    tl.store(dgate_ptr + at, (dproduct * up * slope).to(kind), mask=real)
    tl.store(dup_ptr + at, (dproduct * act).to(kind), mask=real)
    if PRODUCT:
        tl.store(product_ptr + at, (act * up).to(kind), mask=real)
