"""Attention of several completions to the one prompt that they share, and to themselves.

    out = softmax([q . prompt keys | q . own keys, causal]) [prompt values | own values]

The prompt's keys stand there once, however many completions there are. The fast form calls a
kernel for each part and joins the results by their log-sum-exp. A softmax over all keys has one
normaliser, so backward calls each part's kernel with the *joined* output and log-sum-exp: what
comes out is that part's share of the gradient, exactly.

``prefix_attention_reference`` is the specification, and what runs on a CPU.
"""

# Type checkers do not know how Triton kernels are launched.
# pyright: reportCallIssue=false
from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.kernels.transfer import to_device
from foveal.kernels.varlen_attention import WIDTH_MULTIPLE, choose_kernel


def prefix_attention(
    q_NHC: Tensor,
    own_k_NKC: Tensor,
    own_v_NKC: Tensor,
    prefix_k_TKC: Tensor,
    prefix_v_TKC: Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Each completion token attends to the prompt and, causally, to its own completion.

    Args:
        q_NHC: queries of all completions, packed one after another.
        own_k_NKC: keys of the same tokens; H is a multiple of K.
        own_v_NKC: values of the same tokens.
        prefix_k_TKC: keys of the prompt.
        prefix_v_TKC: values of the prompt.
        lengths: tokens of each completion, each at least 1; they sum to N.
        scale: factor on the scores.
        window: the token at offset s has position T + s and sees positions above T + s - window;
            0 sees all.
        softcap: ``softcap * tanh(score / softcap)``; 0 caps nothing.

    Returns:
        ``[N, H, C]``, differentiable in all five tensors.

    Raises:
        ValueError: if shapes or lengths do not fit together.
    """
    tensors = (q_NHC, own_k_NKC, own_v_NKC, prefix_k_TKC, prefix_v_TKC)
    _check(*tensors, lengths)
    kernel = KERNELS.get(choose_kernel(q_NHC))
    if kernel is None or softcap or q_NHC.shape[-1] % WIDTH_MULTIPLE:
        return prefix_attention_reference(
            *tensors, lengths, scale=scale, window=window, softcap=softcap
        )
    return joined_attention(kernel, *tensors, lengths, scale=scale, window=window)


def prefix_attention_reference(
    q_NHC: Tensor,
    own_k_NKC: Tensor,
    own_v_NKC: Tensor,
    prefix_k_TKC: Tensor,
    prefix_v_TKC: Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """The specification of :func:`prefix_attention`: one softmax over ``[prompt | own]``."""
    groups, T = q_NHC.shape[1] // own_k_NKC.shape[1], len(prefix_k_TKC)
    k_SHC = torch.cat([prefix_k_TKC, own_k_NKC]).repeat_interleave(groups, dim=1)
    v_SHC = torch.cat([prefix_v_TKC, own_v_NKC]).repeat_interleave(groups, dim=1)
    score_HNS = torch.einsum("nhc,shc->hns", q_NHC, k_SHC) * scale
    if score_HNS.dtype in (torch.float16, torch.bfloat16):
        score_HNS = score_HNS.float()
    if softcap:
        score_HNS = softcap * torch.tanh(score_HNS / softcap)
    seen_NS = _who_sees_whom(T, lengths, window).to(q_NHC.device)
    weight_HNS = score_HNS.masked_fill(~seen_NS, -torch.inf).softmax(-1).to(v_SHC.dtype)
    return torch.einsum("hns,shc->nhc", weight_HNS, v_SHC)


def _who_sees_whom(T: int, lengths: Sequence[int], window: int) -> Tensor:
    """bool ``[N, T + N]``."""
    position_N = torch.cat([torch.arange(T, T + n) for n in lengths])
    number_N = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    key_S = torch.cat([torch.arange(T), position_N])
    distance_NS = position_N[:, None] - key_S
    mine_NS = torch.cat(
        [torch.ones(len(position_N), T, dtype=torch.bool), number_N[:, None] == number_N], dim=1
    )
    seen_NS = mine_NS & (distance_NS >= 0)
    return seen_NS & (distance_NS < window) if window else seen_NS


def causal_attention(
    q_NHC: Tensor,
    k_NKC: Tensor,
    v_NKC: Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    window: int = 0,
) -> Tensor:
    """Packed segments, each attending causally to itself alone.

    Args:
        q_NHC: queries of all segments, one after another.
        k_NKC: keys of the same tokens; H is a multiple of K.
        v_NKC: values of the same tokens.
        lengths: tokens of each segment, each at least 1; they sum to N.
        scale: factor on the scores.
        window: a token sees so many keys, the last of them its own; 0 sees all.

    Returns:
        ``[N, H, C]``, differentiable in all three tensors.
    """
    kernel = KERNELS.get(choose_kernel(q_NHC))
    window = window if window < max(lengths) else 0
    if kernel is None or q_NHC.shape[-1] % WIDTH_MULTIPLE:
        pieces = zip(*(x.split(list(lengths)) for x in (q_NHC, k_NKC, v_NKC)), strict=True)
        return torch.cat([_causal(q, k, v, scale, window) for q, k, v in pieces])
    spans = Spans(tuple(lengths), tuple(lengths), True, window)
    return _Joined.apply(kernel, (spans,), scale, q_NHC, k_NKC, v_NKC)  # pyright: ignore[reportReturnType]


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    mask = None
    if window:
        at = torch.arange(len(q), device=q.device)
        distance = at[:, None] - at
        mask = (distance >= 0) & (distance < window)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, _expand(k, q.shape[1]), _expand(v, q.shape[1])))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return out[0].transpose(0, 1)


# -- the fast form


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


def joined_attention(
    kernel: PartKernel,
    q_NHC: Tensor,
    own_k_NKC: Tensor,
    own_v_NKC: Tensor,
    prefix_k_TKC: Tensor,
    prefix_v_TKC: Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    window: int = 0,
) -> Tensor:
    """:func:`prefix_attention` by ``kernel``, without a cap on the scores."""
    T, own = len(prefix_k_TKC), tuple(lengths)
    if window and T + max(own) > window:
        # Rows differ in what they see of the prompt: its tail stands before each completion, and
        # one causal call with a window covers both.
        tail = min(T, window - 1)
        spans = (Spans(own, tuple(tail + n for n in own), True, window),)
        k, v = (
            torch.cat([x for piece in mine.split(own) for x in (prefix[T - tail :], piece)])
            for mine, prefix in ((own_k_NKC, prefix_k_TKC), (own_v_NKC, prefix_v_TKC))
        )
        if kernel.square_windows:
            return _square_window(kernel, spans[0], scale, q_NHC, k, v)
        return _Joined.apply(kernel, spans, scale, q_NHC, k, v)  # pyright: ignore[reportReturnType]
    spans = (Spans((sum(own),), (T,)), Spans(own, own, causal=True))
    return _Joined.apply(  # pyright: ignore[reportReturnType]
        kernel, spans, scale, q_NHC, prefix_k_TKC, prefix_v_TKC, own_k_NKC, own_v_NKC
    )


def _square_window(
    kernel: PartKernel, spans: Spans, scale: float, q_NHC: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Segments with as many queries as keys: zeros stand for the prompt's, unused afterwards."""
    lengths = spans.queries
    tail = spans.keys[0] - lengths[0]
    zeros = q_NHC.new_zeros(tail, *q_NHC.shape[1:])
    q = torch.cat([x for piece in q_NHC.split(lengths) for x in (zeros, piece)])
    square = Spans(spans.keys, spans.keys, True, spans.window)
    out: Any = _Joined.apply(kernel, (square,), scale, q, k, v)
    return torch.cat([segment[tail:] for segment in out.split(spans.keys)])


class _Joined(torch.autograd.Function):
    """One softmax over the keys of several calls."""

    @staticmethod
    def forward(
        ctx: Any, kernel: PartKernel, spans: tuple[Spans, ...], scale: float, q: Tensor,
        *keys_values: Tensor,
    ) -> Tensor:  # fmt: skip
        q, keys_values = q.contiguous(), tuple(x.contiguous() for x in keys_values)
        parts = [
            kernel.forward(q, k, v, span, scale)
            for k, v, span in zip(keys_values[::2], keys_values[1::2], spans, strict=True)
        ]
        out, lse = _join([part[:2] for part in parts])
        kept = [part[2] for part in parts]
        ctx.save_for_backward(q, out, lse, *keys_values, *itertools.chain(*kept))
        ctx.kernel, ctx.spans, ctx.scale = kernel, spans, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, out, lse, *rest = ctx.saved_tensors
        calls = len(ctx.spans)
        keys_values, kept = rest[: 2 * calls], rest[2 * calls :]
        each = len(kept) // calls
        grad, grad_q, grad_kv = grads[0].contiguous(), None, []
        for i, span in enumerate(ctx.spans):
            dq, dk, dv = ctx.kernel.backward(
                grad, q, keys_values[2 * i], keys_values[2 * i + 1], out, lse,
                tuple(kept[each * i : each * (i + 1)]), span, ctx.scale,
            )  # fmt: skip
            grad_q = dq if grad_q is None else grad_q + dq
            grad_kv += [dk, dv]
        return None, None, None, grad_q, *grad_kv


def _join(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs ``[N, H, C]`` and log-sum-exps ``[H, N]`` over disjoint keys as one of each."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    wide = torch.promote_types(first[0].dtype, torch.float32)
    if first[0].is_cuda and wide == torch.float32:
        return join_fused(*first, *second)
    return join_reference(*first, *second)


def join_reference(
    first_NHC: Tensor, first_lse_HN: Tensor, second_NHC: Tensor, second_lse_HN: Tensor
) -> tuple[Tensor, Tensor]:
    """The specification of :func:`join_fused`."""
    lse_HN = torch.logaddexp(first_lse_HN, second_lse_HN)
    out_NHC = first_NHC * (first_lse_HN - lse_HN).exp().T[..., None]
    out_NHC = out_NHC + second_NHC * (second_lse_HN - lse_HN).exp().T[..., None]
    return out_NHC.to(first_NHC.dtype), lse_HN


def join_fused(
    first_NHC: Tensor, first_lse_HN: Tensor, second_NHC: Tensor, second_lse_HN: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys from attention to each, in one pass over memory.

    Args:
        first_NHC: output over the first set.
        first_lse_HN: its log-sum-exps, float32, finite.
        second_NHC: likewise over the second.
        second_lse_HN: likewise.
    """
    import triton

    from foveal.kernels.prefix_attention_triton import join_parts_kernel

    N, H, C = first_NHC.shape
    tensors = [first_NHC, second_NHC, first_lse_HN, second_lse_HN]
    first, second, first_lse, second_lse = (x.contiguous() for x in tensors)
    out_NHC, lse_HN = torch.empty_like(first), torch.empty_like(first_lse)
    join_parts_kernel[(N,)](
        first, second, first_lse, second_lse, out_NHC, lse_HN, N,
        HEADS=H, C=C, BLOCK_H=triton.next_power_of_2(H), BLOCK_C=triton.next_power_of_2(C),
        num_warps=8,
    )  # fmt: skip
    return out_NHC, lse_HN


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
        k, v = (_expand(x, q.shape[1])[None] for x in (k, v))
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
        k, v = (_expand(x, q.shape[1])[None] for x in (k, v))
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


def _expand(x_SKC: Tensor, heads: int) -> Tensor:
    return x_SKC.repeat_interleave(heads // x_SKC.shape[1], dim=1)


def _check(
    q: Tensor, own_k: Tensor, own_v: Tensor, prefix_k: Tensor, prefix_v: Tensor,
    lengths: Sequence[int],
) -> None:  # fmt: skip
    shapes = [[*x.shape] for x in (q, own_k, own_v, prefix_k, prefix_v)]
    N, H, C = shapes[0]
    T, K = len(prefix_k), own_k.shape[1]
    if shapes[1:] != [[N, K, C], [N, K, C], [T, K, C], [T, K, C]] or H % K or not T:
        raise ValueError(
            f"queries, own keys and values, prompt keys and values are {shapes}; they must be "
            "[N, H, C], twice [N, K, C], twice [T, K, C], with H a multiple of K and T above 0"
        )
    if sum(lengths) != N or min(lengths, default=0) < 1:
        raise ValueError(
            f"lengths are {[*lengths]} for {N} packed tokens; they must be at least 1 each and sum "
            "to the tokens"
        )
