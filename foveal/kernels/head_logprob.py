"""Log-probability and entropy of chosen tokens from hidden states, without the full logits.

The full logits of one group are gigabytes (4,096 tokens x 152k words in float32: 2.5 GB). Here the
head is applied to a few tokens at a time and each piece is computed again in the backward pass,
so that at most one piece of logits exists at any moment.

``head_logprob_reference`` is the specification: the textbook formula on full logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_PER_CHUNK = 1 << 26
"""Logits that exist at once: 64 Mi values, 256 MiB in float32."""


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
        weight_VD: output embedding, ``[V, D]``.
        target_N: token ids, ``[N]``.
        temperature: logits are divided by it; must be above 0.
        softcap: Gemma's ``softcap * tanh(logits / softcap)``, before the temperature.
        chunk_tokens: tokens a piece; by default ``LOGITS_PER_CHUNK / V``.

    Returns:
        ``(logprob_N, entropy_N)``, both float32 and differentiable in hidden states and weight.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
    chunk = chunk_tokens or max(1, LOGITS_PER_CHUNK // weight_VD.shape[0])

    def piece(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return head_logprob_reference(
            hidden, weight, target, temperature=temperature, softcap=softcap
        )

    recompute = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    pieces = []
    for hidden, target in zip(hidden_ND.split(chunk), target_N.split(chunk), strict=True):
        if recompute:
            pieces.append(checkpoint(piece, hidden, weight_VD, target, use_reentrant=False))
        else:
            pieces.append(piece(hidden, weight_VD, target))
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
