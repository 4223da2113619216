"""Triton kernels of ``draw`` without truncation or penalty, and of ``philox_uniform``.

A row of 262,208 logits is cut into blocks. ``block_stats_kernel`` reads every logit once and
leaves a few numbers a block; ``pick_kernel`` chooses a block from those numbers and reads that
one block again to choose the word.

Two maxima are kept, of all words and of the allowed ones. The first serves the log-probability;
with the second a suppressed word of a huge logit cannot push all allowed weights to zero.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_WORDS = 4096
STATS = 4
"""Rows of the float32 workspace: maximum and sum of weights, of all and of allowed words."""
LAUNCH: dict[str, Any] = {"num_warps": 8}


@triton.jit
def _scaled(logits_ptr, offset, mask, temperature):
    """Logits over temperature in float32, -inf outside the mask."""
    x = tl.load(logits_ptr + offset, mask=mask, other=-float("inf")).to(tl.float32)
    return tl.div_rn(x, tl.zeros_like(x) + temperature)


@triton.jit
def _allowed(x, suppress_ptr, word, mask):
    """``x`` with -inf at suppressed words."""
    if suppress_ptr is not None:
        suppressed = tl.load(suppress_ptr + word, mask=mask, other=1) != 0
        x = tl.where(suppressed, -float("inf"), x)
    return x


@triton.jit
def _weights(x, maximum):
    """``exp(x - maximum)``, zeros if the maximum is -inf (where the difference would be NaN)."""
    return tl.exp(x - tl.where(maximum == -float("inf"), 0.0, maximum))


@triton.jit
def block_stats_kernel(
    logits_ptr,
    suppress_ptr,
    stats_ptr,
    best_ptr,
    row_stride,
    words,
    temperature,
    GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (B, blocks). ``stats`` is ``[4, B, blocks]``, ``best`` int32 ``[B, blocks]``."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    blocks = tl.num_programs(1)
    plane = tl.num_programs(0).to(tl.int64) * blocks
    word = block * BLOCK + tl.arange(0, BLOCK)
    mask = word < words
    x = _scaled(logits_ptr, row * row_stride + word, mask, temperature)
    allowed = _allowed(x, suppress_ptr, word, mask)

    here = stats_ptr + row * blocks + block
    maximum = tl.max(x, 0)
    tl.store(here, maximum)
    tl.store(here + plane, tl.sum(_weights(x, maximum), 0))
    if GREEDY:
        value, place = tl.max(allowed, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(here + 2 * plane, value)
        tl.store(best_ptr + row * blocks + block, block * BLOCK + place)
    else:
        maximum = tl.max(allowed, 0)
        tl.store(here + 2 * plane, maximum)
        tl.store(here + 3 * plane, tl.sum(_weights(allowed, maximum), 0))


@triton.jit
def _first_above(weight, target, place, end):
    """First place of positive weight where the running sum exceeds ``target``, else the last one
    of positive weight; and the running sum before it."""
    running = tl.cumsum(weight, 0)
    positive = weight > 0
    first = tl.min(tl.where(positive & (running > target), place, end), 0)
    last = tl.max(tl.where(positive, place, 0), 0)
    chosen = tl.minimum(first, last)
    before = tl.sum(tl.where(place == chosen, running - weight, 0.0), 0)
    return chosen, before


@triton.jit
def pick_kernel(
    logits_ptr,
    suppress_ptr,
    uniform_ptr,
    stats_ptr,
    best_ptr,
    token_ptr,
    logprob_ptr,
    row_stride,
    token_stride,
    logprob_stride,
    words,
    blocks,
    temperature,
    GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Grid (B,). ``BLOCKS`` is the power of two that holds ``blocks``."""
    row = tl.program_id(0).to(tl.int64)
    plane = tl.num_programs(0).to(tl.int64) * blocks
    block = tl.arange(0, BLOCKS)
    live = block < blocks
    here = stats_ptr + row * blocks + block
    maxima = tl.load(here, mask=live, other=-float("inf"))
    sums = tl.load(here + plane, mask=live, other=0.0)
    maximum = tl.max(maxima, 0)
    log_total = tl.log(tl.sum(sums * _weights(maxima, maximum), 0))

    allowed_maxima = tl.load(here + 2 * plane, mask=live, other=-float("inf"))
    allowed_maximum = tl.max(allowed_maxima, 0)
    if GREEDY:
        best = tl.load(best_ptr + row * blocks + block, mask=live, other=words - 1)
        token = tl.min(tl.where(allowed_maxima == allowed_maximum, best, words - 1), 0)
    else:
        # Running sums are in double precision: with float32's, words near the end of a long
        # vocabulary would be off by more than their own probability.
        allowed_sums = tl.load(here + 3 * plane, mask=live, other=0.0).to(tl.float64)
        scale = _weights(allowed_maxima, allowed_maximum).to(tl.float64)
        mass = allowed_sums * scale
        target = tl.load(uniform_ptr + row).to(tl.float64) * tl.sum(mass, 0)
        chosen, before = _first_above(mass, target, block, BLOCKS)
        # Inside the block weights are relative to its own maximum, so at least one is 1.
        is_chosen = block == chosen
        chosen_scale = tl.sum(tl.where(is_chosen, scale, 0.0), 0)
        chosen_maximum = tl.max(tl.where(is_chosen, allowed_maxima, -float("inf")), 0)
        word = chosen * BLOCK + tl.arange(0, BLOCK)
        mask = word < words
        x = _scaled(logits_ptr, row * row_stride + word, mask, temperature)
        weight = _weights(_allowed(x, suppress_ptr, word, mask), chosen_maximum).to(tl.float64)
        token, _ = _first_above(weight, (target - before) / chosen_scale, word, 2147483647)
    token = tl.minimum(token, words - 1)  # NaN may have left a place beyond the mask
    logit = tl.load(logits_ptr + row * row_stride + token).to(tl.float32)
    logprob = tl.div_rn(logit, temperature) - maximum - log_total
    tl.store(token_ptr + row * token_stride, token.to(tl.int64))
    tl.store(logprob_ptr + row * logprob_stride, logprob)


def draw_triton(
    logits_BV: Tensor,
    uniform_B: Tensor | None,
    *,
    temperature: float,
    suppress_V: Tensor | None = None,
    out_token_B: Tensor | None = None,
    out_logprob_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``draw`` without truncation and penalty; see there for arguments and results."""
    rows, words = logits_BV.shape
    blocks = triton.cdiv(words, BLOCK_WORDS)
    device = logits_BV.device
    if logits_BV.stride(1) != 1:
        logits_BV = logits_BV.contiguous()
    if out_token_B is None:
        out_token_B = torch.empty(rows, dtype=torch.int64, device=device)
    if out_logprob_B is None:
        out_logprob_B = torch.empty(rows, dtype=torch.float32, device=device)
    if suppress_V is not None:
        suppress_V = suppress_V.contiguous()
    stats = torch.empty(STATS, rows, blocks, dtype=torch.float32, device=device)
    greedy = temperature == 0
    best = torch.empty(rows, blocks, dtype=torch.int32, device=device) if greedy else None
    divisor = float(temperature) or 1.0
    constants: dict[str, Any] = {"GREEDY": greedy, "BLOCK": BLOCK_WORDS, **LAUNCH}
    block_stats_kernel[(rows, blocks)](
        logits_BV,
        suppress_V,
        stats,
        best,
        logits_BV.stride(0),
        words,
        divisor,
        **constants,
    )
    constants |= {"BLOCKS": triton.next_power_of_2(blocks)}
    pick_kernel[(rows,)](
        logits_BV,
        suppress_V,
        None if uniform_B is None or greedy else uniform_B.contiguous(),
        stats,
        best,
        out_token_B,
        out_logprob_B,
        logits_BV.stride(0),
        out_token_B.stride(0),
        out_logprob_B.stride(0),
        words,
        blocks,
        divisor,
        **constants,
    )
    return out_token_B, out_logprob_B


@triton.jit
def philox_uniform_kernel(seed_ptr, step_ptr, out_ptr, rows, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    seed = tl.load(seed_ptr + row, mask=mask, other=0)
    step = tl.load(step_ptr + row, mask=mask, other=0)
    low = (step & 0xFFFFFFFF).to(tl.uint32)
    high = ((step >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros_like(low)
    word, _, _, _ = tl.philox(seed, low, high, zero, zero)
    tl.store(out_ptr + row, (word >> 8).to(tl.float32) * (1.0 / 16777216), mask=mask)


def philox_uniform_triton(seed_B: Tensor, step_B: Tensor) -> Tensor:
    """``philox_uniform`` in one launch."""
    rows = seed_B.shape[0]
    uniform_B = torch.empty(rows, dtype=torch.float32, device=seed_B.device)
    constants: dict[str, Any] = {"BLOCK": 256, **LAUNCH}
    philox_uniform_kernel[(triton.cdiv(rows, 256),)](
        seed_B.contiguous(), step_B.contiguous(), uniform_B, rows, **constants
    )
    return uniform_B
