"""Attention over packed segments by the kernels that torch ships, with its log-sum-exp.

What ``prefix_attention`` joins: each kernel attends to one set of keys, and its backward pass takes
the output and log-sum-exp over all sets.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from foveal.kernels.transfer import to_device


@dataclass(frozen=True, slots=True)
class Spans:
    """Packed segments: those of the queries attend to those of the keys, one to one."""

    queries: tuple[int, ...]
    """Tokens of each segment of the queries."""
    keys: tuple[int, ...]
    causal: bool = False
    """A segment's last query sees its last key, the query before it one key less, and so on."""
    window: int = 0
    """With ``causal``: only so many keys, the last of them the query's own; 0 for all."""


class PartKernel(Protocol):
    """Attention over one set of keys, by a kernel that gives its log-sum-exp."""

    square_windows: bool
    """Whether a window asks for segments with as many queries as keys."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``(out_NHC, lse_HN, kept)``; ``lse`` in natural units, ``kept`` goes to backward."""
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        kept: tuple[Tensor, ...], spans: Spans, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of q, k, v, where ``out`` and ``lse`` are those over all keys."""
        ...


class FlashKernel:
    """torch's flash attention: 16 bit, from Ampere on; query heads may share key heads."""

    square_windows = False

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        no_dropout, debug = 0.0, False
        out, lse_HN, seed, offset, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, *_extents(spans, q.device), no_dropout, spans.causal, debug,
            scale=scale, **self._window(spans),
        )  # fmt: skip
        return out, lse_HN, (seed, offset)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        kept: tuple[Tensor, ...], spans: Spans, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        no_dropout = 0.0
        return torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, lse, *_extents(spans, q.device), no_dropout, spans.causal, *kept,
            scale=scale, **self._window(spans),
        )  # fmt: skip

    @staticmethod
    def _window(spans: Spans) -> dict[str, int]:
        # Here the window is counted without the query's own key.
        if not spans.window:
            return {}
        return {"window_size_left": spans.window - 1, "window_size_right": 0}


class EfficientKernel:
    """torch's memory-efficient attention: float32, and float16 before Ampere."""

    BOTTOM_RIGHT = 2
    """The mask in which a segment's last query sees its last key."""
    square_windows = True
    """Its backward pass forgets to shift the window where there are more keys than queries."""
    LSE_MULTIPLE = 32
    """Its log-sum-exps are ``[segments, H, longest]``, the longest rounded up to this."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        k, v = (expand(x, q.shape[1])[None] for x in (k, v))
        bias, no_dropout, keep_lse = None, 0.0, True
        out, lse_SHL, seed, offset, *_ = torch.ops.aten._efficient_attention_forward(
            q[None], k, v, bias, *_extents(spans, q.device), no_dropout, self._mask(spans),
            keep_lse, scale=scale, window_size=spans.window or None,
        )  # fmt: skip
        lse_HN = torch.cat([lse[:, :n] for lse, n in zip(lse_SHL, spans.queries, strict=True)], 1)
        return out[0], lse_HN, (seed, offset)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        kept: tuple[Tensor, ...], spans: Spans, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        longest = -(-max(spans.queries) // self.LSE_MULTIPLE) * self.LSE_MULTIPLE
        # exp(score - inf) is 0: what lies behind a segment's end takes no part.
        lse_SHL = lse.new_full((len(spans.queries), q.shape[1], longest), torch.inf)
        for segment, piece in zip(lse_SHL, lse.split(spans.queries, dim=1), strict=True):
            segment[:, : piece.shape[1]] = piece
        kv_heads = k.shape[1]
        k, v = (expand(x, q.shape[1])[None] for x in (k, v))
        bias, no_dropout, bias_asks = None, 0.0, False
        dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
            grad[None], q[None], k, v, bias, out[None], *_extents(spans, q.device), lse_SHL,
            no_dropout, *kept, self._mask(spans), bias_asks,
            scale=scale, window_size=spans.window or None,
        )  # fmt: skip
        dk, dv = (x[0].unflatten(1, (kv_heads, -1)).sum(2) for x in (dk, dv))
        return dq[0], dk, dv

    def _mask(self, spans: Spans) -> int:
        return self.BOTTOM_RIGHT if spans.causal else 0


KERNELS: dict[str, PartKernel] = {"flash": FlashKernel(), "efficient": EfficientKernel()}
"""By the name that ``choose_kernel`` gives; where there is none, the reference computes."""


def _extents(spans: Spans, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Offsets and longest segments of queries and keys, in the order in which kernels take them."""
    return (
        _offsets(spans.queries, device),
        _offsets(spans.keys, device),
        max(spans.queries),
        max(spans.keys),
    )


@functools.lru_cache(maxsize=64)
def _offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 ``[segments + 1]``; kept, since every layer of a pass asks for the same."""
    offsets = [0, *itertools.accumulate(lengths)]
    return to_device(torch.tensor(offsets, dtype=torch.int32), device)


def expand(x_SKC: Tensor, heads: int) -> Tensor:
    """Each key head as often as query heads share it."""
    return x_SKC.repeat_interleave(heads // x_SKC.shape[1], dim=1)
