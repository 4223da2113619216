"""Triton kernels of :mod:`foveal.kernels.head_logprob`: what stands between the head's products.

``logit_stats`` reads every logit once, ``logits_to_gradient_`` reads it once and writes the
gradient in its place. Everything between is in float32 registers.

A row is cut into blocks of one size, whatever the number of rows: a few hundred rows fill the
card, and a row has the same values to the bit among any others.
"""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportOperatorIssue=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_WORDS = 4096
"""Logits of one program: 16 a thread, two loads of 16 bytes in 16 bit. With twice as many, the
registers that the capped gradient takes let two programs share a multiprocessor, and not six."""
LAUNCH: dict[str, Any] = {"num_warps": 8}


@triton.jit
def _tanh(x):
    """Within 3e-7 of the value, relatively, so that small logits keep their digits."""
    # An odd polynomial fitted to tanh on [-0.55, 0.55], where 1 - 2 / (exp(2 x) + 1) would cancel.
    square = x * x
    inner = 0.021077746525406837 - 0.006282458547502756 * square
    inner = -0.05385385453701019 + inner * square
    inner = 0.13332602381706238 + inner * square
    inner = -0.33333319425582886 + inner * square
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.55, x + x * (square * inner), tl.where(x < 0, -far, far))


@triton.jit
def _base(logits_ptr, at, real, inverse_cap, CAPPED: tl.constexpr):
    """Logits or, with a cap, ``tanh(logits / cap)``; -inf behind the row's end."""
    x = tl.load(logits_ptr + at, mask=real, other=0.0).to(tl.float32)
    if CAPPED:
        x = _tanh(x * inverse_cap)
    return tl.where(real, x, -float("inf"))


@triton.jit
def _below(base, peak, slope):
    """``z - largest z``, at most 0; for -inf a number whose exp is 0 and finite as a factor."""
    below = (base - peak) * slope
    # A comparison, not a maximum, which would hide NaN.
    return tl.where(below < -1000.0, -1000.0, below)


@triton.jit
def block_stats_kernel(
    logits_ptr, stats_ptr, words, blocks, slope, inverse_cap,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows * blocks,). ``stats`` is ``[3, rows, blocks]``: of each block the largest base,
    and relative to it the sums of e and of ``-e log e``."""
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    word = (program % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    base = _base(logits_ptr, row * words + word, word < words, inverse_cap, CAPPED)
    peak = tl.max(base, 0)
    # Nothing but -inf sums to 0, where -inf - -inf would be NaN.
    below = _below(base, tl.where(peak == -float("inf"), 0.0, peak), slope)
    e = tl.exp(below)
    plane = tl.num_programs(0).to(tl.int64)
    tl.store(stats_ptr + program, peak)
    tl.store(stats_ptr + plane + program, tl.sum(e, 0))
    tl.store(stats_ptr + 2 * plane + program, tl.sum(-below * e, 0))


@triton.jit
def row_stats_kernel(
    chosen_ptr, stats_ptr, out_ptr, blocks, slope, inverse_cap,
    CAPPED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Grid (rows,). ``out`` is ``[4, rows]``: log-probability, entropy, peak and total.
    ``BLOCKS`` is the power of two that holds ``blocks``."""
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    real = block < blocks
    here = stats_ptr + row * blocks + block
    plane = rows * blocks
    peaks = tl.load(here, mask=real, other=-float("inf"))
    totals = tl.load(here + plane, mask=real, other=0.0)
    spreads = tl.load(here + 2 * plane, mask=real, other=0.0)
    peak = tl.max(peaks, 0)
    below = _below(peaks, peak, slope)
    weight = tl.exp(below)
    total = tl.sum(weight * totals, 0)
    # All terms are positive: nothing cancels.
    spread = tl.sum(weight * (spreads - below * totals), 0)
    chosen = _base(chosen_ptr, row, row < rows, inverse_cap, CAPPED)
    log_total = tl.log(total)
    out = out_ptr + row
    tl.store(out, (chosen - peak) * slope - log_total)
    tl.store(out + rows, log_total + spread / total)
    tl.store(out + 2 * rows, peak)
    tl.store(out + 3 * rows, total)


@triton.jit
def gradient_kernel(
    logits_ptr, target_ptr, entropy_ptr, peak_ptr, total_ptr, g_ptr, h_ptr,
    words, blocks, slope, inverse_cap, inverse_temperature,
    CAPPED: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows * blocks,). The gradient takes the place of the logits."""
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    word = (program % blocks).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    real = word < words
    at = row * words + word
    base = _base(logits_ptr, at, real, inverse_cap, CAPPED)
    total = tl.load(total_ptr + row)
    g = tl.load(g_ptr + row)
    below = _below(base, tl.load(peak_ptr + row), slope)
    share = tl.exp(below) * (1.0 / total)
    # dz = g onehot - (c + h (z - largest z)) e / total
    if ENTROPY:
        h = tl.load(h_ptr + row)
        c = g + h * (tl.load(entropy_ptr + row) - tl.log(total))
        dz = -(c + h * below) * share
    else:
        dz = -g * share
    dz += tl.where(word == tl.load(target_ptr + row), g, 0.0)
    dz *= inverse_temperature
    if CAPPED:
        dz *= 1.0 - base * base
    tl.store(logits_ptr + at, dz.to(logits_ptr.dtype.element_ty), mask=real)


def _settings(temperature: float, softcap: float | None) -> tuple[float, float]:
    """What the base is multiplied by to give z, and what logits are to give the base."""
    return (softcap or 1.0) / temperature, 1.0 / (softcap or 1.0)


def logit_stats(
    logits_NV: Tensor, target_N: Tensor, *, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(logprob_N, entropy_N, peak_N, total_N)`` in float32, of contiguous logits.

    The peak is the largest logit or, with a cap, the largest tanh; the total is the sum of
    ``exp(z - largest z)``.
    """
    rows, words = logits_NV.shape
    blocks = triton.cdiv(words, BLOCK_WORDS)
    # torch's gather refuses a target outside the vocabulary.
    chosen_N = logits_NV.gather(1, target_N[:, None])
    stats = torch.empty(3, rows, blocks, dtype=torch.float32, device=logits_NV.device)
    out_4N = torch.empty(4, rows, dtype=torch.float32, device=logits_NV.device)
    settings, capped = _settings(temperature, softcap), softcap is not None
    if rows:
        block_stats_kernel[(rows * blocks,)](
            logits_NV, stats, words, blocks, *settings, CAPPED=capped, BLOCK=BLOCK_WORDS,
            **LAUNCH,
        )  # fmt: skip
        row_stats_kernel[(rows,)](
            chosen_N, stats, out_4N, blocks, *settings, CAPPED=capped,
            BLOCKS=triton.next_power_of_2(blocks), num_warps=1,
        )  # fmt: skip
    logprob_N, entropy_N, peak_N, total_N = out_4N.unbind()
    return logprob_N, entropy_N, peak_N, total_N


def logits_to_gradient_(
    logits_NV: Tensor,
    target_N: Tensor,
    stats: tuple[Tensor, Tensor, Tensor],
    g_N: Tensor,
    h_N: Tensor | None,
    *,
    temperature: float,
    softcap: float | None,
) -> Tensor:
    """Overwrites contiguous logits with the loss' gradient in them.

    Args:
        logits_NV: as :func:`logit_stats` read them.
        target_N: token ids.
        stats: entropy, peak and total as :func:`logit_stats` gave them.
        g_N: the loss' gradient in each log-probability, float32.
        h_N: in each entropy; None for zeros.
        temperature: as of :func:`logit_stats`.
        softcap: likewise.
    """
    rows, words = logits_NV.shape
    blocks = triton.cdiv(words, BLOCK_WORDS)
    g_N = g_N.contiguous()
    if rows:
        gradient_kernel[(rows * blocks,)](
            logits_NV, target_N.contiguous(), *stats, g_N, g_N if h_N is None else h_N.contiguous(),
            words, blocks, *_settings(temperature, softcap), 1.0 / temperature,
            CAPPED=softcap is not None, ENTROPY=h_N is not None, BLOCK=BLOCK_WORDS, **LAUNCH,
        )  # fmt: skip
    return logits_NV
