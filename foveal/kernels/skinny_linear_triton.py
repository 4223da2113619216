"""Triton kernels of :mod:`foveal.kernels.skinny_linear`.

A product with few rows is a read of its weights; everything else has to hide behind that read.
Each program streams a tile of weight rows once, with x and the adapter's A coming from the
level-2 cache, and forms the adapter's part on the way: no launch is paid for it.
Where a matrix has too few tiles to fill the card, K is split over programs, and the partial sums
(float32, ``[SPLIT, B, N]``) are added up by the kernel that reads them next.
"""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import triton
import triton.language as tl

from foveal.kernels.early_start_triton import ask_for_rows, wait_for_inputs


@triton.jit
def _accumulate(
    x_ptr, w_ptr, a_ptr, b_ptr, rows, n_local, n, k_from, k_to, K,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    RANK: tl.constexpr, EVEN_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``x[:, k_from:k_to] @ (W + B A)[n_local, k_from:k_to].T`` as float32 ``[BLOCK_N, BLOCK_B]``.

    The weights stand on the left so that their rows fill the matrix units' long side.
    """
    at_b = tl.arange(0, BLOCK_B)
    at_k = tl.arange(0, BLOCK_K)
    real_n = n_local < n
    real_b = at_b < rows
    w_rows = w_ptr + n_local.to(tl.int64)[:, None] * K
    x_rows = x_ptr + at_b[:, None] * K
    acc = tl.zeros((BLOCK_N, BLOCK_B), dtype=tl.float32)
    if RANK > 0:
        at_r = tl.arange(0, RANK)
        a_rows = a_ptr + at_r[:, None] * K
        low = tl.zeros((RANK, BLOCK_B), dtype=tl.float32)
    for k in tl.range(k_from, k_to, BLOCK_K, num_stages=STAGES):
        columns = k + at_k[None, :]
        if EVEN_K:
            w = tl.load(w_rows + columns, mask=real_n[:, None], other=0.0,
                        eviction_policy="evict_first")  # fmt: skip
            x = tl.load(x_rows + columns, mask=real_b[:, None], other=0.0)
        else:
            inside = columns < k_to
            w = tl.load(w_rows + columns, mask=real_n[:, None] & inside, other=0.0)
            x = tl.load(x_rows + columns, mask=real_b[:, None] & inside, other=0.0)
        acc = tl.dot(w, x.T, acc, input_precision="ieee")
        if RANK > 0:
            if EVEN_K:
                a = tl.load(a_rows + columns)
            else:
                a = tl.load(a_rows + columns, mask=columns < k_to, other=0.0)
            low = tl.dot(a, x.T, low, input_precision="ieee")
    if RANK > 0:
        b = tl.load(b_ptr + n_local[:, None] * RANK + at_r[None, :], mask=real_n[:, None],
                    other=0.0)  # fmt: skip
        acc = tl.dot(b, low.to(b.dtype), acc, input_precision="ieee")
    return acc


@triton.jit
def linear_kernel(
    x_ptr, out_ptr, w0, w1, w2, a0, a1, a2, b0, b1, b2,
    rows, K, n0, n1, n2, k_per_split,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    RANK: tl.constexpr, EVEN_K: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Up to three matrices that share x, side by side in the output ``[SPLIT, rows, n0+n1+n2]``."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    tiles0 = tl.cdiv(n0, BLOCK_N)
    tiles1 = tl.cdiv(n1, BLOCK_N)
    w, a, b, n, first = w0, a0, b0, n0, 0
    if tile >= tiles0 + tiles1:
        tile -= tiles0 + tiles1
        w, a, b, n, first = w2, a2, b2, n2, n0 + n1
    elif tile >= tiles0:
        tile -= tiles0
        w, a, b, n, first = w1, a1, b1, n1, n0
    n_local = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k_from = split * k_per_split
    k_to = tl.minimum(k_from + k_per_split, K)
    ask_for_rows(w, n_local, n, k_from, K, EARLY, AHEAD)
    wait_for_inputs(EARLY)
    acc = _accumulate(x_ptr, w, a, b, rows, n_local, n, k_from, k_to, K,
                      BLOCK_B, BLOCK_N, BLOCK_K, RANK, EVEN_K, STAGES)  # fmt: skip
    at_b = tl.arange(0, BLOCK_B)
    total = n0 + n1 + n2
    where = (split * rows + at_b).to(tl.int64)[None, :] * total + (first + n_local)[:, None]
    keep = (n_local < n)[:, None] & (at_b < rows)[None, :]
    tl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def gated_kernel(
    x_ptr, out_ptr, wg, wu, ag, au, bg, bu, rows, K, N,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    RANK: tl.constexpr, EVEN_K: tl.constexpr, STAGES: tl.constexpr,
    GELU: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """``act(x Wg') * (x Wu')`` in 16 bit ``[rows, N]``, both products in one program."""
    n_local = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at_b = tl.arange(0, BLOCK_B)
    at_k = tl.arange(0, BLOCK_K)
    real_n = n_local < N
    real_b = at_b < rows
    ask_for_rows(wg, n_local, N, 0, K, EARLY, AHEAD)
    ask_for_rows(wu, n_local, N, 0, K, EARLY, AHEAD)
    wait_for_inputs(EARLY)
    offsets = n_local.to(tl.int64)[:, None] * K
    x_rows = x_ptr + at_b[:, None] * K
    gate = tl.zeros((BLOCK_N, BLOCK_B), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_B), dtype=tl.float32)
    if RANK > 0:
        at_r = tl.arange(0, RANK)
        a_rows = at_r[:, None] * K
        low_g = tl.zeros((RANK, BLOCK_B), dtype=tl.float32)
        low_u = tl.zeros((RANK, BLOCK_B), dtype=tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        columns = k + at_k[None, :]
        if EVEN_K:
            inside_n = real_n[:, None]
            inside_b = real_b[:, None]
        else:
            inside_n = real_n[:, None] & (columns < K)
            inside_b = real_b[:, None] & (columns < K)
        g = tl.load(wg + offsets + columns, mask=inside_n, other=0.0, eviction_policy="evict_first")
        u = tl.load(wu + offsets + columns, mask=inside_n, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_rows + columns, mask=inside_b, other=0.0)
        gate = tl.dot(g, x.T, gate, input_precision="ieee")
        up = tl.dot(u, x.T, up, input_precision="ieee")
        if RANK > 0:
            if EVEN_K:
                lg = tl.load(ag + a_rows + columns)
                lu = tl.load(au + a_rows + columns)
            else:
                lg = tl.load(ag + a_rows + columns, mask=columns < K, other=0.0)
                lu = tl.load(au + a_rows + columns, mask=columns < K, other=0.0)
            low_g = tl.dot(lg, x.T, low_g, input_precision="ieee")
            low_u = tl.dot(lu, x.T, low_u, input_precision="ieee")
    if RANK > 0:
        where_b = n_local[:, None] * RANK + at_r[None, :]
        hg = tl.load(bg + where_b, mask=real_n[:, None], other=0.0)
        hu = tl.load(bu + where_b, mask=real_n[:, None], other=0.0)
        gate = tl.dot(hg, low_g.to(hg.dtype), gate, input_precision="ieee")
        up = tl.dot(hu, low_u.to(hu.dtype), up, input_precision="ieee")
    half = out_ptr.dtype.element_ty
    # Rounded where the separate layers round, so that both ways give the same numbers.
    gate = gate.to(half).to(tl.float32)
    up = up.to(half).to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        # tanh(z) = 2 sigmoid(2 z) - 1
        act = gate * tl.sigmoid(2.0 * inner)
    else:
        act = gate * tl.sigmoid(gate)
    out = act.to(half).to(tl.float32) * up
    keep = real_n[:, None] & real_b[None, :]
    tl.store(out_ptr + at_b[None, :] * N + n_local[:, None], out.to(half), mask=keep)
