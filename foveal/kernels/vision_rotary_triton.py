"""Triton kernel of :mod:`foveal.kernels.vision_rotary`."""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate_kernel(
    x_ptr, out_ptr, cos_ptr, sin_ptr, token_stride, part_stride,
    HEADS: tl.constexpr, C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
    BACK: tl.constexpr,
):  # fmt: skip
    """All heads of one token's queries (part 0) or keys (part 1)."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    HALF_C: tl.constexpr = C // 2
    head = tl.arange(0, BLOCK_H)[:, None]
    at = tl.arange(0, BLOCK_C)[None, :]
    in_half = at < HALF_C
    real = (head < HEADS) & in_half
    source = x_ptr + token * token_stride + part * part_stride + head * C + at
    x1 = tl.load(source, mask=real, other=0.0).to(tl.float32)
    x2 = tl.load(source + HALF_C, mask=real, other=0.0).to(tl.float32)
    angle = token * C + at
    cos1 = tl.load(cos_ptr + angle, mask=in_half, other=0.0)
    cos2 = tl.load(cos_ptr + angle + HALF_C, mask=in_half, other=0.0)
    sin1 = tl.load(sin_ptr + angle, mask=in_half, other=0.0)
    sin2 = tl.load(sin_ptr + angle + HALF_C, mask=in_half, other=0.0)
    if BACK:
        first = x1 * cos1 + x2 * sin2
        second = x2 * cos2 - x1 * sin1
    else:
        first = x1 * cos1 - x2 * sin1
        second = x2 * cos2 + x1 * sin2
    target = out_ptr + ((token * 2 + part) * HEADS + head) * C + at
    kind = out_ptr.dtype.element_ty
    tl.store(target, first.to(kind), mask=real)
    tl.store(target + HALF_C, second.to(kind), mask=real)
