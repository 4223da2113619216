"""Triton kernels of :mod:`foveal.kernels.decode_attention`.

One launch holds two kinds of programs, each for one key/value head:

    prefix   a chunk of rows that share a prompt against a stretch of the prompt's keys, which are
             read once for all of them; their query heads fill one tile
    suffix   one row against a stretch of its own keys

Each writes its part and the part's log-sum-exp; a second kernel joins the parts of a row. Work is
divided by counts that lie on the device, so one captured graph serves every length.
"""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from foveal.kernels.early_start_triton import wait_for_inputs

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(
    q, cache_ptr, table_ptr, v_offset, from_t, to_t, lowest_Q, page_stride, scale, softcap,
    QUERIES: tl.constexpr, C: tl.constexpr, PAGE: tl.constexpr, BLOCK_T: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Queries against keys ``from_t`` to ``to_t`` of a page table: output and log-sum-exp (base 2).

    ``from_t`` is a multiple of ``BLOCK_T``. With a window, keys before ``lowest_Q`` are hidden.
    """
    at_t = tl.arange(0, BLOCK_T)
    at_c = tl.arange(0, C)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    out = tl.zeros((QUERIES, C), tl.float32)
    for t in range(from_t, to_t, BLOCK_T):
        page = tl.load(table_ptr + t // PAGE).to(tl.int64)
        rows = cache_ptr + page * page_stride + (t % PAGE + at_t)[:, None] * C + at_c[None, :]
        real = t + at_t < to_t
        k = tl.load(rows, mask=real[:, None], other=0.0).to(q.dtype)
        score = tl.dot(q, k.T, input_precision="ieee") * scale
        if SOFTCAP:
            # tanh(z) = 2 sigmoid(2 z) - 1
            score = softcap * (2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0)
        score = score * LOG2_E
        visible = real[None, :]
        if WINDOW > 0:
            visible = visible & ((t + at_t)[None, :] >= lowest_Q[:, None])
        score = tl.where(visible, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        # A query that has seen nothing yet must not compute inf - inf.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(weight, 1)
        v = tl.load(rows + v_offset, mask=real[:, None], other=0.0).to(q.dtype)
        out = tl.dot(weight.to(q.dtype), v, out * fade[:, None], input_precision="ieee")
        top = higher
    seen = total > 0
    lse = tl.where(seen, top + tl.log2(tl.where(seen, total, 1.0)), float("-inf"))
    return out / tl.where(seen, total, 1.0)[:, None], lse


@triton.jit
def _prefix_program(
    q_ptr, part_ptr, lse_ptr, cache_ptr, page_stride, v_offset, cached_ptr, prompt_length_ptr,
    item_ptr, item_count_ptr, chunk_rows_ptr, chunk_table_ptr, table_stride, scale, softcap,
    head, program,
    KV: tl.constexpr, RATIO: tl.constexpr, C: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_T: tl.constexpr, CHUNK_ROWS: tl.constexpr, QUERIES: tl.constexpr,
    PROGRAMS: tl.constexpr, SUFFIX_SPLITS: tl.constexpr, SLOTS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    at_c = tl.arange(0, C)
    at_q = tl.arange(0, QUERIES)
    place = at_q // RATIO
    for item in range(program, tl.load(item_count_ptr), PROGRAMS):
        chunk = tl.load(item_ptr + item * 4)
        from_t = tl.load(item_ptr + item * 4 + 1)
        to_t = tl.load(item_ptr + item * 4 + 2)
        slot = tl.load(item_ptr + item * 4 + 3)
        row = tl.load(chunk_rows_ptr + chunk * CHUNK_ROWS + place, mask=place < CHUNK_ROWS,
                      other=-1)  # fmt: skip
        real = row >= 0
        query = (row * KV + head) * RATIO + at_q % RATIO
        q = tl.load(q_ptr + query[:, None] * C + at_c[None, :], mask=real[:, None], other=0.0)
        lowest = tl.zeros((QUERIES,), tl.int32)
        if WINDOW > 0:
            position = tl.load(cached_ptr + row, mask=real, other=0)
            position += tl.load(prompt_length_ptr + row, mask=real, other=0)
            lowest = position - WINDOW + 1
            first = tl.min(tl.where(real, lowest, 2147483647))
            from_t = tl.maximum(from_t, first // BLOCK_T * BLOCK_T)
        out, lse = _attend(
            q, cache_ptr, chunk_table_ptr + chunk * table_stride, v_offset, from_t, to_t,
            lowest, page_stride, scale, softcap, QUERIES, C, PAGE, BLOCK_T, WINDOW, SOFTCAP,
        )  # fmt: skip
        where = query * SLOTS + SUFFIX_SPLITS + slot
        tl.store(part_ptr + where[:, None] * C + at_c[None, :], out, mask=real[:, None])
        tl.store(lse_ptr + where, lse, mask=real)


@triton.jit
def _suffix_program(
    q_ptr, part_ptr, lse_ptr, cache_ptr, page_stride, v_offset, suffix_table_ptr, cached_ptr,
    table_stride, scale, softcap, head, row, split,
    KV: tl.constexpr, RATIO: tl.constexpr, C: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_T: tl.constexpr, QUERIES: tl.constexpr, SPLITS: tl.constexpr, SLOTS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    at_c = tl.arange(0, C)
    at_q = tl.arange(0, QUERIES)
    real = at_q < RATIO
    query = (row * KV + head) * RATIO + at_q
    cached = tl.load(cached_ptr + row)
    lowest = tl.zeros((QUERIES,), tl.int32)
    first = 0
    if WINDOW > 0:
        lowest += cached - WINDOW + 1
        first = tl.maximum(cached - WINDOW + 1, 0) // BLOCK_T
    blocks = tl.cdiv(cached + 1, BLOCK_T) - first
    share = tl.cdiv(blocks, SPLITS)
    from_t = (first + split * share) * BLOCK_T
    to_t = tl.minimum(from_t + share * BLOCK_T, cached + 1)
    where = query * SLOTS + split
    if from_t < to_t:
        q = tl.load(q_ptr + query[:, None] * C + at_c[None, :], mask=real[:, None], other=0.0)
        out, lse = _attend(
            q, cache_ptr, suffix_table_ptr + row * table_stride, v_offset, from_t, to_t,
            lowest, page_stride, scale, softcap, QUERIES, C, PAGE, BLOCK_T, WINDOW, SOFTCAP,
        )  # fmt: skip
        tl.store(part_ptr + where[:, None] * C + at_c[None, :], out, mask=real[:, None])
        tl.store(lse_ptr + where, lse, mask=real)
    else:
        nothing = tl.full((QUERIES,), float("-inf"), tl.float32)
        tl.store(lse_ptr + where, nothing, mask=real)


@triton.jit
def parts_kernel(
    q_ptr, part_ptr, lse_ptr, address_ptr, layer_offset, page_stride, v_offset,
    suffix_table_ptr, cached_ptr, prompt_length_ptr,
    item_ptr, item_count_ptr, chunk_rows_ptr, chunk_table_ptr, table_stride, scale, softcap,
    CACHE: tl.constexpr, KV: tl.constexpr, RATIO: tl.constexpr, C: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_T: tl.constexpr, CHUNK_ROWS: tl.constexpr,
    CHUNK_QUERIES: tl.constexpr, ROW_QUERIES: tl.constexpr,
    PREFIX_PROGRAMS: tl.constexpr, SUFFIX_SPLITS: tl.constexpr, SLOTS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(EARLY)
    head = tl.program_id(0)
    program = tl.program_id(1)
    cache_ptr = tl.load(address_ptr).to(tl.pointer_type(CACHE))
    cache_ptr = tl.multiple_of(cache_ptr, 16) + layer_offset + head * PAGE * C
    if program < PREFIX_PROGRAMS:
        _prefix_program(
            q_ptr, part_ptr, lse_ptr, cache_ptr, page_stride, v_offset, cached_ptr,
            prompt_length_ptr, item_ptr, item_count_ptr, chunk_rows_ptr, chunk_table_ptr,
            table_stride, scale, softcap, head, program,
            KV, RATIO, C, PAGE, BLOCK_T, CHUNK_ROWS, CHUNK_QUERIES, PREFIX_PROGRAMS,
            SUFFIX_SPLITS, SLOTS, WINDOW, SOFTCAP,
        )  # fmt: skip
    else:
        work = program - PREFIX_PROGRAMS
        _suffix_program(
            q_ptr, part_ptr, lse_ptr, cache_ptr, page_stride, v_offset, suffix_table_ptr,
            cached_ptr, table_stride, scale, softcap, head, work // SUFFIX_SPLITS,
            work % SUFFIX_SPLITS,
            KV, RATIO, C, PAGE, BLOCK_T, ROW_QUERIES, SUFFIX_SPLITS, SLOTS, WINDOW, SOFTCAP,
        )  # fmt: skip


@triton.jit
def join_kernel(
    part_ptr, lse_ptr, out_ptr, prefix_parts_ptr,
    HEADS: tl.constexpr, C: tl.constexpr, SUFFIX_SPLITS: tl.constexpr, SLOTS: tl.constexpr,
    PADDED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Parts of one query head, weighted by their log-sum-exp."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0)
    query = row * HEADS + tl.program_id(1)
    at_s = tl.arange(0, PADDED)
    at_c = tl.arange(0, C)
    real = at_s < SUFFIX_SPLITS + tl.load(prefix_parts_ptr + row)
    lse = tl.load(lse_ptr + query * SLOTS + at_s, mask=real, other=float("-inf"))
    weight = tl.exp2(lse - tl.max(lse, 0))
    weight = weight / tl.sum(weight, 0)
    used = real & (lse > float("-inf"))
    parts = tl.load(part_ptr + (query * SLOTS + at_s)[:, None] * C + at_c[None, :],
                    mask=used[:, None], other=0.0)  # fmt: skip
    out = tl.sum(parts * weight[:, None], 0)
    tl.store(out_ptr + query * C + at_c, out.to(out_ptr.dtype.element_ty))
