"""Triton halves of :mod:`foveal.kernels.early_start`."""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """Let the next kernel start, then wait for what the one before has written."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def ask_for_rows(w_ptr, n_local, n, k_from, K, EARLY: tl.constexpr, AHEAD: tl.constexpr):
    """Ask for the first lines of weight rows, columns ``k_from`` on, into the level-2 cache.

    Nothing waits for them. Places past an edge fall on the last one before it.
    """
    if EARLY and AHEAD > 0:
        LINE: tl.constexpr = 1024 // w_ptr.dtype.element_ty.primitive_bitwidth
        row = tl.minimum(n_local, n - 1).to(tl.int64)
        column = tl.minimum(k_from + tl.arange(0, AHEAD) * LINE, K - 1)
        place = (w_ptr + row[:, None] * K + column[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [place],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
