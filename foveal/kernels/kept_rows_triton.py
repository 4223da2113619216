"""Triton kernel of :mod:`foveal.kernels.kept_rows`."""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keep_row(
    x, at, real, row, address_ptr, first_ptr, cached_ptr, offset, stride, KEPT: tl.constexpr
):
    """Write a row's stream into its place, if it has one."""
    place = tl.load(first_ptr + row) + tl.load(cached_ptr + row)
    kept_ptr = tl.load(address_ptr).to(tl.pointer_type(KEPT))
    kept_ptr = tl.multiple_of(kept_ptr, 16) + place.to(tl.int64) * stride + offset
    tl.store(kept_ptr + at, x.to(KEPT), mask=real & (place >= 0))


@triton.jit
def keep_rows_kernel(
    x_ptr, address_ptr, first_ptr, cached_ptr, offset, stride, D,
    KEPT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK_D)
    real = at < D
    x = tl.load(x_ptr + row * D + at, mask=real, other=0.0)
    keep_row(x, at, real, row, address_ptr, first_ptr, cached_ptr, offset, stride, KEPT)
