"""Triton kernel of :mod:`foveal.kernels.prefix_attention`: two parts of a softmax as one."""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def join_parts_kernel(
    first_ptr, second_ptr, first_lse_ptr, second_lse_ptr, out_ptr, lse_ptr, tokens,
    HEADS: tl.constexpr, C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """All heads of one token; outputs ``[N, H, C]``, log-sum-exps ``[H, N]``."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_H)
    column = tl.arange(0, BLOCK_C)
    real = head < HEADS
    at = head.to(tl.int64) * tokens + token
    first_lse = tl.load(first_lse_ptr + at, mask=real, other=0.0)
    second_lse = tl.load(second_lse_ptr + at, mask=real, other=0.0)
    higher = tl.maximum(first_lse, second_lse)
    lse = higher + tl.log(tl.exp(first_lse - higher) + tl.exp(second_lse - higher))
    tl.store(lse_ptr + at, lse, mask=real)
    here = (token * HEADS + head)[:, None] * C + column[None, :]
    inside = real[:, None] & (column < C)[None, :]
    first = tl.load(first_ptr + here, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(second_ptr + here, mask=inside, other=0.0).to(tl.float32)
    out = first * tl.exp(first_lse - lse)[:, None] + second * tl.exp(second_lse - lse)[:, None]
    tl.store(out_ptr + here, out.to(out_ptr.dtype.element_ty), mask=inside)
