"""Attention of completions to the prompts that groups of them share, and to themselves.

    out = softmax([q . prompt keys | q . own keys, causal]) [prompt values | own values]

A prompt's keys stand there once, however many completions it has. The fast form calls a
kernel for each part and joins the results by their log-sum-exp. A softmax over all keys has one
normaliser, so backward calls each part's kernel with the *joined* output and log-sum-exp: what
comes out is that part's share of the gradient, exactly.

``prefix_attention_reference`` is the specification, and what runs on a CPU.
"""

# Type checkers do not know how Triton kernels are launched.
# pyright: reportCallIssue=false
from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.kernels.part_kernels import KERNELS, PartKernel, Spans, expand
from foveal.kernels.varlen_attention import WIDTH_MULTIPLE, choose_kernel

Groups = Sequence[tuple[int, int]]
"""Of each prompt its tokens and the number of its completions."""


def prefix_attention(
    q_NHC: Tensor,
    own_k_NKC: Tensor,
    own_v_NKC: Tensor,
    prefix_k_TKC: Tensor,
    prefix_v_TKC: Tensor,
    lengths: Sequence[int],
    groups: Groups = (),
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Each completion token attends to its prompt and, causally, to its own completion.

    Args:
        q_NHC: queries of all completions, packed one after another.
        own_k_NKC: keys of the same tokens; H is a multiple of K.
        own_v_NKC: values of the same tokens.
        prefix_k_TKC: keys of the prompts, one after another.
        prefix_v_TKC: values of the prompts.
        lengths: tokens of each completion, each at least 1; they sum to N.
        groups: of each prompt in turn its tokens and the number of its completions, each at least
            1; none for a single prompt.
        scale: factor on the scores.
        window: the token at offset s behind a prompt of T tokens has position T + s and sees
            positions above T + s - window; 0 sees all.
        softcap: ``softcap * tanh(score / softcap)``; 0 caps nothing.

    Returns:
        ``[N, H, C]``, differentiable in all five tensors.

    Raises:
        ValueError: if shapes or lengths do not fit together.
    """
    tensors = (q_NHC, own_k_NKC, own_v_NKC, prefix_k_TKC, prefix_v_TKC)
    groups = tuple(groups) or ((len(prefix_k_TKC), len(lengths)),)
    _check(*tensors, lengths, groups)
    kernel = KERNELS.get(choose_kernel(q_NHC))
    if kernel is None or softcap or q_NHC.shape[-1] % WIDTH_MULTIPLE:
        return prefix_attention_reference(
            *tensors, lengths, groups, scale=scale, window=window, softcap=softcap
        )
    return joined_attention(kernel, *tensors, lengths, groups, scale=scale, window=window)


def prefix_attention_reference(
    q_NHC: Tensor,
    own_k_NKC: Tensor,
    own_v_NKC: Tensor,
    prefix_k_TKC: Tensor,
    prefix_v_TKC: Tensor,
    lengths: Sequence[int],
    groups: Groups = (),
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """The specification of :func:`prefix_attention`: group by group."""
    groups = tuple(groups) or ((len(prefix_k_TKC), len(lengths)),)
    members = _members(lengths, groups)
    own = zip(*(x.split([sum(n) for n in members]) for x in (q_NHC, own_k_NKC, own_v_NKC)),
              strict=True)  # fmt: skip
    prompts = zip(*(x.split([T for T, _ in groups]) for x in (prefix_k_TKC, prefix_v_TKC)),
                  strict=True)  # fmt: skip
    return torch.cat([
        _one_group(*mine, *prompt, n, scale, window, softcap)
        for mine, prompt, n in zip(own, prompts, members, strict=True)
    ])  # fmt: skip


def _members(lengths: Sequence[int], groups: Groups) -> list[tuple[int, ...]]:
    """Tokens of each completion, group by group."""
    found = iter(lengths)
    return [tuple(itertools.islice(found, completions)) for _, completions in groups]


def _one_group(
    q_NHC: Tensor, own_k_NKC: Tensor, own_v_NKC: Tensor, prefix_k_TKC: Tensor,
    prefix_v_TKC: Tensor, lengths: Sequence[int], scale: float, window: int, softcap: float,
) -> Tensor:  # fmt: skip
    """One softmax over ``[prompt | own]``."""
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
    q, k, v = (x.transpose(0, 1)[None] for x in (q, expand(k, q.shape[1]), expand(v, q.shape[1])))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return out[0].transpose(0, 1)


# -- the fast form


def joined_attention(
    kernel: PartKernel,
    q_NHC: Tensor,
    own_k_NKC: Tensor,
    own_v_NKC: Tensor,
    prefix_k_TKC: Tensor,
    prefix_v_TKC: Tensor,
    lengths: Sequence[int],
    groups: Groups = (),
    *,
    scale: float,
    window: int = 0,
) -> Tensor:
    """:func:`prefix_attention` by ``kernel``, without a cap on the scores."""
    own = tuple(lengths)
    groups = tuple(groups) or ((len(prefix_k_TKC), len(own)),)
    members = _members(own, groups)
    prompts = tuple(T for T, _ in groups)
    if window and any(T + max(n) > window for T, n in zip(prompts, members, strict=True)):
        # Rows differ in what they see of a prompt: its tail stands before each completion, and
        # one causal call with a window covers both.
        tails = [min(T, window - 1) for T, completions in groups for _ in range(completions)]
        spans = (Spans(own, tuple(map(sum, zip(tails, own, strict=True))), True, window),)
        k, v = (
            torch.cat(_behind_tails(mine.split(own), prefix.split(prompts), groups, window))
            for mine, prefix in ((own_k_NKC, prefix_k_TKC), (own_v_NKC, prefix_v_TKC))
        )
        if kernel.square_windows:
            return _square_window(kernel, spans[0], scale, q_NHC, k, v)
        return _Joined.apply(kernel, spans, scale, q_NHC, k, v)  # pyright: ignore[reportReturnType]
    spans = (Spans(tuple(map(sum, members)), prompts), Spans(own, own, causal=True))
    return _Joined.apply(  # pyright: ignore[reportReturnType]
        kernel, spans, scale, q_NHC, prefix_k_TKC, prefix_v_TKC, own_k_NKC, own_v_NKC
    )


def _behind_tails(
    pieces: Sequence[Tensor], prompts: Sequence[Tensor], groups: Groups, window: int
) -> list[Tensor]:
    """Each completion's own keys behind those of its prompt's end that a window can reach."""
    own = iter(pieces)
    return [
        x
        for prefix, (T, completions) in zip(prompts, groups, strict=True)
        for piece in itertools.islice(own, completions)
        for x in (prefix[T - min(T, window - 1) :], piece)
    ]


def _square_window(
    kernel: PartKernel, spans: Spans, scale: float, q_NHC: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Segments with as many queries as keys: zeros stand for the prompt's, unused afterwards."""
    tails = [keys - own for keys, own in zip(spans.keys, spans.queries, strict=True)]
    zeros = q_NHC.new_zeros(max(tails), *q_NHC.shape[1:])
    pieces = zip(tails, q_NHC.split(spans.queries), strict=True)
    q = torch.cat([x for tail, piece in pieces for x in (zeros[:tail], piece)])
    square = Spans(spans.keys, spans.keys, True, spans.window)
    out: Any = _Joined.apply(kernel, (square,), scale, q, k, v)
    segments = zip(tails, out.split(spans.keys), strict=True)
    return torch.cat([segment[tail:] for tail, segment in segments])


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


def _check(
    q: Tensor, own_k: Tensor, own_v: Tensor, prefix_k: Tensor, prefix_v: Tensor,
    lengths: Sequence[int], groups: Groups,
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
    numbers = [number for group in groups for number in group]
    sums = sum(T for T, _ in groups), sum(completions for _, completions in groups)
    if sums != (T, len(lengths)) or min(numbers) < 1:
        raise ValueError(
            f"groups are {[*groups]} for {T} prompt tokens and {len(lengths)} completions; their "
            "numbers must be at least 1 each and sum to these"
        )
