"""Attention to a shared prompt: two calls joined, their windows, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from foveal.kernels import prefix_attention, prefix_attention_reference
from foveal.kernels.part_kernels import Spans
from foveal.kernels.prefix_attention import join_fused, joined_attention
from tests.aot import SHARED_BYTES, Recorder
from tests.interpret import run_interpreted

HEADS, KV_HEADS, WIDTH, PROMPT = 6, 2, 8, 11
LENGTHS = [5, 1, 9]


class TorchKernel:
    """A part kernel in plain torch, which computes in float64: what the join is tested by."""

    square_windows = False

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        score_HNS, v = self._scores(q, k, spans, scale), expand(v, q.shape[1])
        lse_HN = score_HNS.logsumexp(-1)
        weight_HNS = (score_HNS - lse_HN[..., None]).exp()
        return torch.einsum("hns,shc->nhc", weight_HNS, v), lse_HN, ()

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        kept: tuple[Tensor, ...], spans: Spans, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        heads, kv_heads = q.shape[1], k.shape[1]
        weight_HNS = (self._scores(q, k, spans, scale) - lse[..., None]).exp()
        k, v = expand(k, heads), expand(v, heads)
        d_weight_HNS = torch.einsum("nhc,shc->hns", grad, v)
        d_score_HNS = weight_HNS * (d_weight_HNS - (grad * out).sum(-1).T[..., None]) * scale
        dk = torch.einsum("hns,nhc->shc", d_score_HNS, q).unflatten(1, (kv_heads, -1)).sum(2)
        dv = torch.einsum("hns,nhc->shc", weight_HNS, grad).unflatten(1, (kv_heads, -1)).sum(2)
        return torch.einsum("hns,shc->nhc", d_score_HNS, k), dk, dv

    def _scores(self, q: Tensor, k: Tensor, spans: Spans, scale: float) -> Tensor:
        """``[H, N, S]``, -inf where a query does not see a key."""
        if self.square_windows and spans.window:
            assert spans.queries == spans.keys
        score_HNS = torch.einsum("nhc,shc->hns", q, expand(k, q.shape[1])) * scale
        blocks = []
        for rows, columns in zip(spans.queries, spans.keys, strict=True):
            distance = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)
            seen = (distance >= 0) | (not spans.causal)
            blocks.append(seen & (distance < spans.window) if spans.window else seen)
        seen_NS = torch.block_diag(*blocks).bool().to(q.device)
        return score_HNS.masked_fill(~seen_NS, -torch.inf)


def expand(x_SKC, heads):
    return x_SKC.repeat_interleave(heads // x_SKC.shape[1], dim=1)


def tensors(lengths=LENGTHS, prompt=PROMPT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(sum(lengths), HEADS)] + [(n, KV_HEADS) for n in (sum(lengths), prompt) for _ in "kv"]
    return [
        torch.randn(*size, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
        for size in sizes
    ]


def with_gradients(function, lengths=LENGTHS, **options):
    inputs = tensors(lengths)
    out = function(*inputs, lengths, scale=0.3, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def separately(q, own_k, own_v, prefix_k, prefix_v, lengths, *, scale, window=0, softcap=0.0):
    """One completion after another as an ordinary causal row that begins with the prompt."""
    outs = []
    for piece_q, piece_k, piece_v in zip(
        *(x.split(lengths) for x in (q, own_k, own_v)), strict=True
    ):
        k, v = (
            expand(torch.cat(pair), HEADS) for pair in ((prefix_k, piece_k), (prefix_v, piece_v))
        )
        score = torch.einsum("nhc,shc->hns", piece_q, k) * scale
        if softcap:
            score = softcap * torch.tanh(score / softcap)
        at = torch.arange(len(prefix_k), len(k))[:, None]
        hidden = torch.arange(len(k)) > at
        if window:
            hidden |= torch.arange(len(k)) <= at - window
        weight = score.masked_fill(hidden, -torch.inf).softmax(-1)
        outs.append(torch.einsum("hns,shc->nhc", weight, v))
    return torch.cat(outs)


# Wider than all, as wide as the longest row, one less; within the prompt; within a completion.
WINDOWS = [0, 40, PROMPT + 9, PROMPT + 8, 7, 3, 1]


@pytest.mark.parametrize("window", WINDOWS)
def test_the_reference_gives_what_each_completion_gives_as_a_row_of_its_own(window):
    expected = with_gradients(separately, window=window)
    for ours, value in zip(
        with_gradients(prefix_attention_reference, window=window), expected, strict=True
    ):
        torch.testing.assert_close(ours, value, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("square", [False, True], ids=["", "square"])
@pytest.mark.parametrize("window", WINDOWS)
def test_two_calls_joined_give_the_output_and_all_five_gradients(window, square):
    kernel = TorchKernel()
    kernel.square_windows = square

    def joined(*args, **options):
        return joined_attention(kernel, *args, **options)

    expected = with_gradients(prefix_attention_reference, window=window)
    for ours, value in zip(with_gradients(joined, window=window), expected, strict=True):
        torch.testing.assert_close(ours, value, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("square", [False, True], ids=["", "square"])
@pytest.mark.parametrize("window", [0, 40, 16, 7, 1])
def test_a_completion_sees_its_own_prompt_and_no_other(window, square):
    """Prompts of 4 and 7 tokens side by side, with 2 and 1 completions."""
    kernel, groups = TorchKernel(), [(4, 2), (7, 1)]
    kernel.square_windows = square

    def one_by_one(q, own_k, own_v, prefix_k, prefix_v, lengths, **options):
        of_first = [q[:6], own_k[:6], own_v[:6], prefix_k[:4], prefix_v[:4]]
        of_second = [q[6:], own_k[6:], own_v[6:], prefix_k[4:], prefix_v[4:]]
        return torch.cat([separately(*of_first, lengths[:2], **options),
                          separately(*of_second, lengths[2:], **options)])  # fmt: skip

    expected = with_gradients(one_by_one, window=window)
    for form in (prefix_attention_reference, partial(joined_attention, kernel)):
        found = with_gradients(partial(form, groups=groups), window=window)
        for ours, value in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, value, atol=1e-10, rtol=1e-10)


def test_capped_scores_are_capped_before_the_softmax():
    capped = with_gradients(prefix_attention, softcap=0.5)
    for ours, value in zip(capped, with_gradients(separately, softcap=0.5), strict=True):
        torch.testing.assert_close(ours, value, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(capped[0], with_gradients(prefix_attention)[0], atol=1e-3)


def test_lengths_and_shapes_that_do_not_fit_are_refused():
    q, own_k, own_v, prefix_k, prefix_v = tensors()
    for lengths, message in (([5, 1, 8], "sum to the tokens"), ([5, 0, 10], "at least 1")):
        with pytest.raises(ValueError, match=message):
            prefix_attention(q, own_k, own_v, prefix_k, prefix_v, lengths, scale=1.0)
    for groups in ([(PROMPT, 2)], [(PROMPT - 1, 3)], [(PROMPT, 3), (0, 0)]):
        with pytest.raises(ValueError, match="11 prompt tokens and 3 completions"):
            prefix_attention(q, own_k, own_v, prefix_k, prefix_v, LENGTHS, groups, scale=1.0)
    with pytest.raises(ValueError, match="H a multiple of K"):
        prefix_attention(q[:, :5], own_k, own_v, prefix_k, prefix_v, LENGTHS, scale=1.0)


def test_the_triton_join_equals_the_reference():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_join_cases")


@pytest.mark.parametrize("capability", [75, 80, 89, 90])
def test_the_join_compiles_on_every_card(monkeypatch, capability):
    pytest.importorskip("triton")
    from foveal.kernels import prefix_attention_triton as kernels

    recorder = Recorder(kernels.join_parts_kernel)
    monkeypatch.setattr(kernels, "join_parts_kernel", recorder)
    half = torch.float16 if capability == 75 else torch.bfloat16
    with torch.device("meta"):
        out, lse = torch.empty(9, 28, 128, dtype=half), torch.empty(28, 9)
        join_fused(out, lse, out, lse)
    (launch,) = recorder.launches
    compiled = launch.compile_for(capability)
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= SHARED_BYTES[capability]
