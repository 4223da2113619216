"""Triton kernels of :mod:`foveal.kernels.decode_fused`: what stands between two products."""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from foveal.kernels.early_start_triton import wait_for_inputs
from foveal.kernels.kept_rows_triton import keep_row


@triton.jit
def _normed(x, weight_ptr, at, real, D, eps, ADD_ONE: tl.constexpr, HALF: tl.constexpr):
    """Root-mean-square norm, rounded where the stock modules round."""
    scale = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    weight = tl.load(weight_ptr + at, mask=real, other=0.0).to(tl.float32)
    if ADD_ONE:
        return (x * scale * (1.0 + weight)).to(HALF)
    return ((x * scale).to(HALF).to(tl.float32) * weight).to(HALF)


@triton.jit
def residual_norm_kernel(
    parts_ptr, residual_ptr, out_ptr, after_ptr, before_ptr, rows, D, eps,
    address_ptr, first_ptr, cached_ptr, kept_offset, kept_stride,
    SPLIT: tl.constexpr, BLOCK_D: tl.constexpr, AFTER: tl.constexpr, ADD_ONE: tl.constexpr,
    KEEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(EARLY)
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK_D)
    real = at < D
    here = row * D + at
    half = out_ptr.dtype.element_ty
    x = tl.load(residual_ptr + here, mask=real, other=0.0).to(tl.float32)
    if SPLIT > 0:
        y = tl.zeros((BLOCK_D,), tl.float32)
        for split in tl.static_range(SPLIT):
            y += tl.load(parts_ptr + split * rows * D + here, mask=real, other=0.0)
        y = y.to(half).to(tl.float32)
        if AFTER:
            y = _normed(y, after_ptr, at, real, D, eps, ADD_ONE, half).to(tl.float32)
        x = (x + y).to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + here, x, mask=real)
        if KEEP:
            keep_row(
                x, at, real, row, address_ptr, first_ptr, cached_ptr, kept_offset, kept_stride,
                residual_ptr.dtype.element_ty,
            )  # fmt: skip
        x = x.to(tl.float32)
    tl.store(out_ptr + here, _normed(x, before_ptr, at, real, D, eps, ADD_ONE, half), mask=real)


@triton.jit
def rotary_cache_kernel(
    parts_ptr, bias_q_ptr, bias_k_ptr, bias_v_ptr, norm_q_ptr, norm_k_ptr, cos_ptr, sin_ptr,
    q_ptr, address_ptr, layer_offset, page_stride, v_offset, table_ptr, table_stride,
    cached_ptr, base_position_ptr, rows, eps,
    CACHE: tl.constexpr, SPLIT: tl.constexpr, HEADS: tl.constexpr, KV: tl.constexpr,
    C: tl.constexpr, PAGE: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr,
    ADD_ONE: tl.constexpr, FP8: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head of one row: sum the parts, bias, norm, rotate; q goes out, k and v to the cache."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0)
    head = tl.program_id(1)
    half = q_ptr.dtype.element_ty
    HALF_C: tl.constexpr = C // 2
    at = tl.arange(0, HALF_C)
    is_q = head < HEADS
    is_v = head >= HEADS + KV
    width = (HEADS + 2 * KV) * C
    first = tl.zeros((HALF_C,), tl.float32)
    second = tl.zeros((HALF_C,), tl.float32)
    for split in tl.static_range(SPLIT):
        source = parts_ptr + (split * rows + row) * width + head * C + at
        first += tl.load(source)
        second += tl.load(source + HALF_C)
    if BIAS:
        bias_ptr, local = bias_q_ptr, head
        if is_v:
            bias_ptr, local = bias_v_ptr, head - HEADS - KV
        elif head >= HEADS:
            bias_ptr, local = bias_k_ptr, head - HEADS
        first += tl.load(bias_ptr + local * C + at).to(tl.float32)
        second += tl.load(bias_ptr + local * C + HALF_C + at).to(tl.float32)
    first = first.to(half)
    second = second.to(half)
    cached = tl.load(cached_ptr + row)
    if not is_v:
        x1 = first.to(tl.float32)
        x2 = second.to(tl.float32)
        if NORM:
            norm_ptr = norm_q_ptr
            if not is_q:
                norm_ptr = norm_k_ptr
            scale = tl.rsqrt((tl.sum(x1 * x1, 0) + tl.sum(x2 * x2, 0)) / C + eps)
            w1 = tl.load(norm_ptr + at).to(tl.float32)
            w2 = tl.load(norm_ptr + HALF_C + at).to(tl.float32)
            if ADD_ONE:
                x1 = (x1 * scale * (1.0 + w1)).to(half).to(tl.float32)
                x2 = (x2 * scale * (1.0 + w2)).to(half).to(tl.float32)
            else:
                x1 = ((x1 * scale).to(half).to(tl.float32) * w1).to(half).to(tl.float32)
                x2 = ((x2 * scale).to(half).to(tl.float32) * w2).to(half).to(tl.float32)
        angle = (tl.load(base_position_ptr + row) + cached).to(tl.int64) * C + at
        cos1 = tl.load(cos_ptr + angle).to(tl.float32)
        cos2 = tl.load(cos_ptr + angle + HALF_C).to(tl.float32)
        sin1 = tl.load(sin_ptr + angle).to(tl.float32)
        sin2 = tl.load(sin_ptr + angle + HALF_C).to(tl.float32)
        # Each product is rounded, as in q * cos + rotate_half(q) * sin.
        first = ((x1 * cos1).to(half).to(tl.float32) - (x2 * sin1).to(half).to(tl.float32)).to(half)
        second = ((x2 * cos2).to(half).to(tl.float32) + (x1 * sin2).to(half).to(tl.float32)).to(
            half
        )
    if is_q:
        target = q_ptr + (row * HEADS + head) * C + at
        tl.store(target, first)
        tl.store(target + HALF_C, second)
    else:
        page = tl.load(table_ptr + row * table_stride + cached // PAGE).to(tl.int64)
        cache_ptr = tl.load(address_ptr).to(tl.pointer_type(CACHE))
        cache_ptr = tl.multiple_of(cache_ptr, 16) + layer_offset + page * page_stride
        local = head - HEADS
        if is_v:
            local = head - HEADS - KV
            cache_ptr += v_offset
        cache_ptr += (local * PAGE + cached % PAGE) * C + at
        tl.store(cache_ptr, _stored(first, CACHE, FP8))
        tl.store(cache_ptr + HALF_C, _stored(second, CACHE, FP8))


@triton.jit
def _stored(x, CACHE: tl.constexpr, FP8: tl.constexpr):
    """As the cache holds it. 8-bit floats have no infinity: saturate at their largest value."""
    if FP8:
        return tl.clamp(x.to(tl.float32), -448.0, 448.0).to(CACHE)
    return x.to(CACHE)


@triton.jit
def store_kernel(
    k_ptr, v_ptr, address_ptr, layer_offset, page_stride, v_offset, table_ptr, table_stride,
    cached_ptr, CACHE: tl.constexpr, KV: tl.constexpr, C: tl.constexpr, PAGE: tl.constexpr,
    FP8: tl.constexpr,
):  # fmt: skip
    """Keys and values of one head of one row into its page."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    at = tl.arange(0, C)
    k = tl.load(k_ptr + (row * KV + head) * C + at)
    v = tl.load(v_ptr + (row * KV + head) * C + at)
    cached = tl.load(cached_ptr + row)
    page = tl.load(table_ptr + row * table_stride + cached // PAGE).to(tl.int64)
    cache_ptr = tl.load(address_ptr).to(tl.pointer_type(CACHE))
    cache_ptr = tl.multiple_of(cache_ptr, 16) + layer_offset + page * page_stride
    cache_ptr += (head * PAGE + cached % PAGE) * C + at
    tl.store(cache_ptr, _stored(k, CACHE, FP8))
    tl.store(cache_ptr + v_offset, _stored(v, CACHE, FP8))
