"""Draw one token a row from logits, and its log-probability under the trainer's definition.

``draw_reference`` is the specification; ``draw`` chooses. Nothing here waits for the device, so
steps may be enqueued far ahead or recorded in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw(
    logits_BV: Tensor,
    uniform_B: Tensor | None,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seen_BV: Tensor | None = None,
    suppress_V: Tensor | None = None,
    out_token_B: Tensor | None = None,
    out_logprob_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a token a row with one uniform number each.

    On CUDA two Triton kernels read the logits once; truncation and repetition penalty, which
    need a sort or another mask, take the torch path there too.

    Args:
        logits_BV: final logits (soft-capped already), ``[B, V]``, floating point.
        uniform_B: float32 ``[B]`` in [0, 1), see ``philox_uniform``; None if greedy.
        temperature: logits are divided by it; 0 takes the most likely token, the first of equals.
        top_k, top_p, min_p: truncations of the distribution, as transformers applies them;
            0, 1.0 and 0.0 keep all. Without effect at temperature 0.
        repetition_penalty: logits of seen tokens are divided (above 0) or multiplied (below 0).
        seen_BV: bool ``[B, V]``, needed for a penalty other than 1.
        suppress_V: bool ``[V]``, True for tokens that are never drawn.
        out_token_B, out_logprob_B: int64 and float32 ``[B]`` of any stride to write into.

    Returns:
        ``(token_B, logprob_B)``: int64 and float32 ``[B]``. The log-probability is that of
        ``log_softmax(logits / temperature)`` over the whole vocabulary, before suppression,
        penalty and truncation; at temperature 0 it is that at temperature 1. A token of
        probability zero is never drawn. A row with nothing to draw (all suppressed or -inf, or
        NaN) has no meaningful result, but its token is an index below V.

    Raises:
        ValueError: for settings out of range, and for shapes or types that do not fit.
    """
    _check(logits_BV, uniform_B, temperature, repetition_penalty, seen_BV, suppress_V)
    truncated = temperature > 0 and (top_k > 0 or top_p < 1.0 or min_p > 0.0)
    if logits_BV.is_cuda and not truncated and repetition_penalty == 1.0:
        from foveal.kernels.draw_triton import draw_triton

        return draw_triton(
            logits_BV,
            uniform_B,
            temperature=temperature,
            suppress_V=suppress_V,
            out_token_B=out_token_B,
            out_logprob_B=out_logprob_B,
        )
    token_B, logprob_B = draw_reference(
        logits_BV,
        uniform_B,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seen_BV=seen_BV,
        suppress_V=suppress_V,
    )
    return _written(token_B, out_token_B), _written(logprob_B, out_logprob_B)


def draw_reference(
    logits_BV: Tensor,
    uniform_B: Tensor | None,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seen_BV: Tensor | None = None,
    suppress_V: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of :func:`draw`, which says what the arguments are."""
    raw_BV = logits_BV.float()
    processed_BV = processed_logits(
        raw_BV,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seen_BV=seen_BV,
        suppress_V=suppress_V,
    )
    if temperature == 0:
        token_B = processed_BV.argmax(-1)
    else:
        assert uniform_B is not None
        token_B = _inverse_cdf(processed_BV, uniform_B)
    logprob_BV = torch.log_softmax(raw_BV / (temperature or 1.0), dim=-1)
    return token_B, logprob_BV.gather(-1, token_B[:, None])[:, 0]


def processed_logits(
    logits_BV: Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seen_BV: Tensor | None = None,
    suppress_V: Tensor | None = None,
) -> Tensor:
    """Logits whose softmax a token is drawn from: float32 ``[B, V]``, -inf where never.

    Steps and their order are those of transformers' ``generate`` (logits_process.py), tied
    logits included. Temperature 0 stops before the temperature, as greedy search does.
    """
    x_BV = logits_BV.float()
    if suppress_V is not None:
        x_BV = x_BV.masked_fill(suppress_V, -torch.inf)
    if repetition_penalty != 1.0:
        assert seen_BV is not None
        penalised_BV = torch.where(x_BV < 0, x_BV * repetition_penalty, x_BV / repetition_penalty)
        x_BV = torch.where(seen_BV, penalised_BV, x_BV)
    if temperature == 0:
        return x_BV
    x_BV = x_BV / temperature
    if top_k > 0:
        kth_B1 = torch.topk(x_BV, min(top_k, x_BV.shape[-1])).values[:, -1:]
        x_BV = x_BV.masked_fill(x_BV < kth_B1, -torch.inf)
    if top_p < 1.0:
        x_BV = _top_p(x_BV, top_p)
    if min_p > 0.0:
        prob_BV = x_BV.softmax(-1)
        x_BV = x_BV.masked_fill(prob_BV < min_p * prob_BV.amax(-1, keepdim=True), -torch.inf)
    return x_BV


def _top_p(x_BV: Tensor, top_p: float) -> Tensor:
    """Cut the tail of mass ``1 - top_p``; the most likely word stays."""
    ascending_BV, word_BV = torch.sort(x_BV, descending=False)
    cut_BV = ascending_BV.softmax(-1).cumsum(-1) <= 1 - top_p
    cut_BV[:, -1].fill_(False)
    return x_BV.masked_fill(cut_BV.scatter(1, word_BV, cut_BV), -torch.inf)


def _inverse_cdf(x_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """First word in vocabulary order at which the running sum of softmax exceeds ``u * total``.

    Sums are in double precision: a parallel scan in float32 is not monotone, and its last entry
    may lie below ``u * total``. Beyond that, only words of positive weight are looked at, and the
    last of them is taken if the sum is never exceeded.
    """
    weight_BV = (x_BV - x_BV.amax(-1, keepdim=True)).exp()
    running_BV = weight_BV.cumsum(-1, dtype=torch.float64)
    target_B1 = uniform_B.double()[:, None] * running_BV[:, -1:]
    words = x_BV.shape[-1]
    if not x_BV.is_cuda:
        # Summed one after the other, so never falling: what is found has a positive weight.
        return torch.searchsorted(running_BV, target_B1, right=True)[:, 0].clamp_(max=words - 1)
    positive_BV = weight_BV > 0
    word_BV = torch.arange(words, device=x_BV.device).expand_as(x_BV)
    above_BV = positive_BV & (running_BV > target_B1)
    first_B = word_BV.masked_fill(~above_BV, words).amin(-1)
    last_B = word_BV.masked_fill(~positive_BV, 0).amax(-1)
    return torch.minimum(first_B, last_B)


def _check(
    logits_BV: Tensor,
    uniform_B: Tensor | None,
    temperature: float,
    repetition_penalty: float,
    seen_BV: Tensor | None,
    suppress_V: Tensor | None,
) -> None:
    shape = list(logits_BV.shape)
    if logits_BV.ndim != 2 or not logits_BV.is_floating_point():
        raise ValueError(f"logits_BV is {logits_BV.dtype} {shape}; it must be floats of [B, V]")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; 0 is greedy, above 0 samples")
    if temperature > 0 and uniform_B is None:
        raise ValueError(f"uniform_B is None at temperature {temperature}; only greedy needs none")
    if repetition_penalty != 1.0 and seen_BV is None:
        raise ValueError(f"repetition_penalty is {repetition_penalty}; it needs seen_BV")
    for name, value, wanted in (
        ("uniform_B", uniform_B, shape[:1]),
        ("seen_BV", seen_BV, shape),
        ("suppress_V", suppress_V, shape[1:]),
    ):
        if value is not None and list(value.shape) != wanted:
            raise ValueError(
                f"{name} has shape {list(value.shape)}; logits of {shape} need {wanted}"
            )


def _written(value_B: Tensor, out_B: Tensor | None) -> Tensor:
    return value_B if out_B is None else out_B.copy_(value_B)
