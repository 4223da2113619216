"""What kernels of :mod:`foveal.kernels.overlap` begin with."""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from foveal.kernels import overlap

PIECE = tl.constexpr(overlap.PREFETCH_PIECE)


@triton.jit
def begin(OVERLAP: tl.constexpr):
    """Let the next kernel start; wait for the end of the one before. Nothing is read earlier."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def fetch_early(w_ptr, row_N, rows, K, k_from, k_to, COLUMNS: tl.constexpr):
    """Ask for the first ``COLUMNS`` columns from ``k_from`` on of a matrix's rows, without waiting.

    ``COLUMNS`` is a multiple of ``PIECE``; a share that is shorter is asked for once more.
    """
    PIECES: tl.constexpr = COLUMNS // PIECE
    first_P = k_from + tl.arange(0, PIECES) * PIECE
    first_P = tl.maximum(tl.minimum(first_P, k_to - PIECE), 0)
    row_N = tl.minimum(row_N, rows - 1).to(tl.int64)
    address = (w_ptr + row_N[:, None] * K + first_P[None, :]).to(tl.int64)
    size = tl.full(address.shape, PIECE * (w_ptr.dtype.element_ty.primitive_bitwidth // 8), tl.int32)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; // no result: $0",
        "=r,l,r", [address, size], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
