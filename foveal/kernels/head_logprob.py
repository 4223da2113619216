"""Log-probability and entropy of chosen tokens from hidden states, without the full logits.

The full logits of one group are gigabytes (4,096 tokens x 152k words in float32: 2.5 GB). Here the
head is applied to a few tokens at a time, and no more than two tensors of a piece's size in
float32 exist at any moment; on a GPU, only the logits themselves, which become their own gradient
in one launch (:mod:`foveal.kernels.head_logprob_triton`). The backward pass computes each piece's
logits again and turns them into their own gradient: three products with the head in all. Where the
loss' gradient in the log-probabilities is known beforehand, :func:`head_policy_gradient` needs two.

With z = logits / temperature, p = softmax(z), and the loss' gradients g in the log-probability of
the target y and h in the entropy H:

    dz = g (onehot(y) - p) - h p (log p + H)

``head_logprob_reference`` is the specification: the textbook formula on full logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveal.kernels.arithmetic import as_typed, mm_float32, product_dtype

LOGITS_PER_CHUNK = 1 << 26
"""Logits that exist at once: 64 Mi values, 256 MiB in float32 beside 128 MiB in 16 bit."""
BYTES_PER_CHUNK = 3 << 27
"""Where kernels need no float32 copy: 384 MiB, three times as many logits of 16 bit."""
_ROWS = 128
"""A whole number of these in a piece wastes none of the product's tiles."""
_KERNEL_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def head_logprob_reference(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of :func:`head_logprob`, with logits ``[N, V]`` in full."""
    logits_NV = F.linear(hidden_ND, weight_VD).float()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    logprob_NV = torch.log_softmax(logits_NV / temperature, dim=-1)
    logprob_N = logprob_NV.gather(-1, target_N[:, None])[:, 0]
    # exp(-inf) * -inf is nan; a word of probability zero adds nothing to the entropy.
    entropy_N = -torch.where(logprob_NV.isinf(), 0.0, logprob_NV.exp() * logprob_NV).sum(-1)
    return logprob_N, entropy_N


def head_logprob(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, in nats.

    Args:
        hidden_ND: hidden state that predicts each target, ``[N, D]``.
        weight_VD: output embedding, ``[V, D]``; one that asks for no gradient costs none.
        target_N: token ids, ``[N]``.
        temperature: logits are divided by it; must be above 0.
        softcap: Gemma's ``softcap * tanh(logits / softcap)``, before the temperature.
        chunk_tokens: tokens a piece; by default as many as ``LOGITS_PER_CHUNK`` or, in kernels,
            ``BYTES_PER_CHUNK`` allow.

    Returns:
        ``(logprob_N, entropy_N)``, both float32 and differentiable (once) in hidden states and
        weight. A word of probability zero adds nothing to either gradient.

    Raises:
        ValueError: for a temperature of 0 or less, or a piece of no tokens.
        TypeError: if hidden states and weight differ in type and autocast is off.
    """
    dtype = _product_dtype(hidden_ND, weight_VD)
    rule = _rule(weight_VD, dtype, temperature, softcap, chunk_tokens)
    hidden_ND = hidden_ND.to(dtype)
    # pyright cannot see what `apply` returns.
    return _HeadLogprob.apply(hidden_ND, weight_VD, target_N, rule)  # pyright: ignore


@torch.no_grad()
def head_policy_gradient(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    weight_N: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of :func:`head_logprob` and the gradient in the hidden states, in one pass.

    For a loss whose gradient in each log-probability is known before the log-probability, such as
    the policy gradient at ratio 1: ``loss = (weight_N * logprob_N).sum()``.

    Args:
        hidden_ND: hidden state that predicts each target, ``[N, D]``.
        weight_VD: output embedding, ``[V, D]``, frozen: its gradient is not computed.
        target_N: token ids, ``[N]``.
        weight_N: gradient of the loss in each target's log-probability, ``[N]``.
        temperature: logits are divided by it; must be above 0.
        softcap: Gemma's ``softcap * tanh(logits / softcap)``, before the temperature.
        chunk_tokens: tokens a piece; by default as many as ``LOGITS_PER_CHUNK`` or, in kernels,
            ``BYTES_PER_CHUNK`` allow.

    Returns:
        ``(logprob_N, entropy_N, dhidden_ND)`` without a graph: the first two float32, the last in
        the type of ``hidden_ND``.

    Raises:
        ValueError, TypeError: as :func:`head_logprob` does.
    """
    dtype = _product_dtype(hidden_ND, weight_VD)
    rule = _rule(weight_VD, dtype, temperature, softcap, chunk_tokens)
    head = _head(weight_VD.to(dtype), rule)
    found, dhidden_ND = [], torch.empty_like(hidden_ND)
    for at in rule.pieces(len(hidden_ND)):
        stats, kept_NV = head.values(hidden_ND[at], target_N[at], keep=True)
        g_N = weight_N[at].to(rule.wide)
        dhidden_ND[at] = head.dlogits(kept_NV, target_N[at], stats, g_N, None) @ head.weight_VD
        del kept_NV  # before the next piece's logits
        found.append(stats)
    stats = _Stats.joined(found)
    return stats.logprob_N, stats.entropy_N, dhidden_ND


def _product_dtype(hidden_ND: Tensor, weight_VD: Tensor) -> torch.dtype:
    autocast = torch.is_autocast_enabled(hidden_ND.device.type)
    if not autocast and hidden_ND.dtype != weight_VD.dtype:
        raise TypeError(
            f"hidden states are {hidden_ND.dtype} and the head's weight is {weight_VD.dtype}; "
            "bring them to one type, or switch autocast on"
        )
    return product_dtype(hidden_ND)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How logits become log-probabilities, and how many at a time."""

    temperature: float
    softcap: float | None
    chunk: int
    wide: torch.dtype = torch.float32
    """What everything after the product is computed in."""

    def pieces(self, tokens: int) -> Iterator[slice]:
        # No tokens are one empty piece, whose results have the right types.
        for start in range(0, max(tokens, 1), self.chunk):
            yield slice(start, start + self.chunk)


def _rule(
    weight_VD: Tensor, dtype: torch.dtype, temperature: float, softcap: float | None,
    chunk_tokens: int | None,
) -> _Rule:  # fmt: skip
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; a piece has at least one token")
    chunk = chunk_tokens or _most_tokens(weight_VD, dtype)
    return _Rule(temperature, softcap, chunk)


def _takes_kernel(weight_VD: Tensor, dtype: torch.dtype) -> bool:
    return weight_VD.is_cuda and dtype in _KERNEL_TYPES


def _most_tokens(weight_VD: Tensor, dtype: torch.dtype) -> int:
    """Tokens of a piece, whose logits are of type ``dtype``."""
    V = weight_VD.shape[0]
    if not _takes_kernel(weight_VD, dtype):
        return max(1, LOGITS_PER_CHUNK // V)
    most = max(1, BYTES_PER_CHUNK // (V * dtype.itemsize))
    return most if most < _ROWS else most - most % _ROWS


@dataclass(frozen=True, slots=True)
class _Stats:
    """What is kept of a piece's logits, four numbers a token."""

    logprob_N: Tensor
    entropy_N: Tensor
    peak_N: Tensor
    """Largest logit; with a cap, the largest tanh."""
    total_N: Tensor
    """Sum of ``exp(z - largest z)``: at least 1."""

    @classmethod
    def joined(cls, pieces: list[_Stats]) -> _Stats:
        columns = zip(*(
            (stats.logprob_N, stats.entropy_N, stats.peak_N, stats.total_N) for stats in pieces
        ), strict=True)  # fmt: skip
        return cls(*(torch.cat(column) for column in columns))


@dataclass(frozen=True, slots=True)
class _Head:
    """One piece at a time, in at most two float32 tensors of its size.

    ``z = base * slope``, where the base is the logits or, with a cap, ``tanh(logits / cap)``.
    """

    weight_VD: Tensor
    """In the type of the product."""
    rule: _Rule

    @property
    def slope(self) -> float:
        return (self.rule.softcap or 1.0) / self.rule.temperature

    def base(self, hidden_ND: Tensor) -> Tensor:
        base_NV = F.linear(hidden_ND.to(self.weight_VD.dtype), self.weight_VD)
        if self.rule.softcap is not None:
            return base_NV.to(self.rule.wide).div_(self.rule.softcap).tanh_()
        return base_NV.to(self.rule.wide) if base_NV.dtype == torch.float64 else base_NV

    def exp_(self, base_NV: Tensor, peak_N: Tensor, *, keep_base: bool = False) -> Tensor:
        """``exp(z - largest z)``; unless 16 bit or kept, the base is overwritten."""
        if keep_base or base_NV.dtype != self.rule.wide:
            z_NV = base_NV - peak_N[:, None]
        else:
            z_NV = base_NV.sub_(peak_N[:, None])
        return (z_NV if self.slope == 1 else z_NV.mul_(self.slope)).exp_()

    def values(self, hidden_ND: Tensor, target_N: Tensor, *, keep: bool) -> tuple[_Stats, Tensor]:
        """Also returns, if ``keep``, what :meth:`dlogits` starts from."""
        capped = self.rule.softcap is not None
        kept_NV = self.base(hidden_ND)
        peak_N = kept_NV.amax(-1).to(self.rule.wide)
        chosen_N = kept_NV.gather(1, target_N[:, None])[:, 0].to(self.rule.wide)
        exp_NV = self.exp_(kept_NV, peak_N, keep_base=keep and capped)
        if not capped:
            kept_NV = exp_NV
        total_N = exp_NV.sum(-1)
        # entr(e) = -e log e, and 0 at e = 0. All terms are positive: nothing cancels.
        in_place = capped or not keep
        spread_NV = torch.special.entr(exp_NV, out=exp_NV if in_place else None)
        entropy_N = total_N.log() + spread_NV.sum(-1) / total_N
        logprob_N = (chosen_N - peak_N) * self.slope - total_N.log()
        return _Stats(logprob_N, entropy_N, peak_N, total_N), kept_NV

    def kept(self, hidden_ND: Tensor, stats: _Stats) -> Tensor:
        """What :meth:`values` kept, computed again."""
        base_NV = self.base(hidden_ND)
        return base_NV if self.rule.softcap is not None else self.exp_(base_NV, stats.peak_N)

    def dlogits(
        self, kept_NV: Tensor, target_N: Tensor, stats: _Stats, g_N: Tensor, h_N: Tensor | None
    ) -> Tensor:
        """Gradient in the logits, in the product's type; overwrites ``kept_NV``.

        Args:
            g_N: the loss' gradient in each log-probability.
            h_N: in each entropy; None for zeros.
        """
        # dz = g onehot - (c + h (z - largest z)) e / total
        c_N = g_N if h_N is None else g_N + h_N * (stats.entropy_N - stats.total_N.log())
        if self.rule.softcap is None:
            dlogits_NV, chosen_N = self._dlogits_plain(kept_NV, stats, c_N, h_N), g_N * self.slope
        else:
            tanh_N = kept_NV.gather(1, target_N[:, None])[:, 0]
            chosen_N = g_N * (1 - tanh_N.square()) / self.rule.temperature
            dlogits_NV = self._dlogits_capped(kept_NV, stats, c_N, h_N)
        at_N1 = target_N[:, None]
        dlogits_NV.scatter_(1, at_N1, dlogits_NV.gather(1, at_N1) + chosen_N[:, None])
        return dlogits_NV.to(self.weight_VD.dtype)

    def _dlogits_plain(
        self, exp_NV: Tensor, stats: _Stats, c_N: Tensor, h_N: Tensor | None
    ) -> Tensor:
        factor_N = self.slope / stats.total_N
        # e (z - largest z) as -entr(e): a logit of -inf gives 0 and not 0 * inf.
        spread_NV = None if h_N is None else torch.special.entr(exp_NV)
        exp_NV.mul_((-c_N * factor_N)[:, None])
        if spread_NV is not None and h_N is not None:
            exp_NV.addcmul_(spread_NV, (h_N * factor_N)[:, None])
        return exp_NV

    def _dlogits_capped(
        self, tanh_NV: Tensor, stats: _Stats, c_N: Tensor, h_N: Tensor | None
    ) -> Tensor:
        # c + h (z - largest z) = a + b t, times the slope 1 - t^2 of the cap: a + b t - a t^2 -
        # b t^3 by Horner's rule, so that t is free to become e.
        factor_N = -1 / (stats.total_N * self.rule.temperature)
        b_N = torch.zeros_like(c_N) if h_N is None else h_N * self.slope
        a_N1 = ((c_N - b_N * stats.peak_N) * factor_N)[:, None]
        b_N1 = (b_N * factor_N)[:, None]
        sum_NV = (tanh_NV * -b_N1).sub_(a_N1)
        sum_NV.mul_(tanh_NV).add_(b_N1).mul_(tanh_NV).add_(a_N1)
        return self.exp_(tanh_NV, stats.peak_N).mul_(sum_NV)


class _KernelHead(_Head):
    """The same in Triton kernels: what is kept are the logits in the type of the product."""

    def base(self, hidden_ND: Tensor) -> Tensor:
        return F.linear(hidden_ND.to(self.weight_VD.dtype), self.weight_VD)

    def values(self, hidden_ND: Tensor, target_N: Tensor, *, keep: bool) -> tuple[_Stats, Tensor]:
        from foveal.kernels.head_logprob_triton import logit_stats

        logits_NV = self.base(hidden_ND)
        columns = logit_stats(
            logits_NV, target_N, temperature=self.rule.temperature, softcap=self.rule.softcap
        )
        return _Stats(*columns), logits_NV

    def kept(self, hidden_ND: Tensor, stats: _Stats) -> Tensor:
        return self.base(hidden_ND)

    def dlogits(
        self, kept_NV: Tensor, target_N: Tensor, stats: _Stats, g_N: Tensor, h_N: Tensor | None
    ) -> Tensor:
        from foveal.kernels.head_logprob_triton import logits_to_gradient_

        return logits_to_gradient_(
            kept_NV, target_N, (stats.entropy_N, stats.peak_N, stats.total_N), g_N, h_N,
            temperature=self.rule.temperature, softcap=self.rule.softcap,
        )  # fmt: skip


def _head(weight_VD: Tensor, rule: _Rule) -> _Head:
    """The form for a weight in the type of the product."""
    return (_KernelHead if _takes_kernel(weight_VD, weight_VD.dtype) else _Head)(weight_VD, rule)


class _HeadLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, rule: _Rule
    ) -> tuple[Tensor, Tensor]:
        head = _head(weight_VD.to(hidden_ND.dtype), rule)
        stats = _Stats.joined([
            head.values(hidden_ND[at], target_N[at], keep=False)[0]
            for at in rule.pieces(len(hidden_ND))
        ])  # fmt: skip
        ctx.rule = rule
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            hidden_ND, weight_VD, target_N,
            stats.logprob_N, stats.entropy_N, stats.peak_N, stats.total_N,
        )  # fmt: skip
        return stats.logprob_N, stats.entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        g_N, h_N = upstream
        if g_N is None and h_N is None:
            return None, None, None, None
        hidden_ND, weight_VD, target_N, *columns = ctx.saved_tensors
        g_N = torch.zeros_like(columns[0]) if g_N is None else g_N
        rule: _Rule = ctx.rule
        head = _head(weight_VD.to(hidden_ND.dtype), rule)
        dhidden_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        dweight_VD = None
        if ctx.needs_input_grad[1]:
            dweight_VD = torch.zeros_like(
                weight_VD, dtype=torch.promote_types(weight_VD.dtype, torch.float32)
            )
        # Whoever calls backward inside autocast gets the logits of the forward pass all the same.
        with as_typed(hidden_ND):
            for at in rule.pieces(len(hidden_ND)):
                stats = _Stats(*(column[at] for column in columns))
                dlogits_NV = head.dlogits(
                    head.kept(hidden_ND[at], stats), target_N[at], stats, g_N[at],
                    None if h_N is None else h_N[at],
                )  # fmt: skip
                if dhidden_ND is not None:
                    torch.mm(dlogits_NV, head.weight_VD, out=dhidden_ND[at])
                if dweight_VD is not None:
                    dweight_VD += mm_float32(dlogits_NV.T, hidden_ND[at])
                del dlogits_NV  # before the next piece's logits
        if dweight_VD is not None:
            dweight_VD = dweight_VD.to(weight_VD.dtype)
        return dhidden_ND, dweight_VD, None, None
