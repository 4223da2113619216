"""The chunked head against full logits, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from foveal.kernels import head_logprob, head_logprob_reference


def inputs(tokens=11, width=8, words=37):
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(words, width, generator=generator, dtype=torch.float64)
    target_N = torch.randint(0, words, (tokens,), generator=generator)
    return hidden_ND.requires_grad_(), weight_VD.requires_grad_(), target_N


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["plain", "softcap"])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 100])
def test_pieces_give_the_values_and_gradients_of_full_logits(chunk_tokens, softcap):
    hidden, weight, target = inputs()
    upstream = torch.randn(2, 11, generator=torch.Generator().manual_seed(1))
    results = []
    for function, extra in (
        (head_logprob, {"chunk_tokens": chunk_tokens}),
        (head_logprob_reference, {}),
    ):
        logprob, entropy = function(
            hidden, weight, target, temperature=0.6, softcap=softcap, **extra
        )
        (logprob * upstream[0] + entropy * upstream[1]).sum().backward()
        results.append((logprob, entropy, hidden.grad.clone(), weight.grad.clone()))
        hidden.grad = weight.grad = None
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-5)


def test_full_logits_never_exist():
    """The largest tensor that autograd keeps is a piece, not tokens x words."""
    hidden, weight, target = inputs(tokens=64, words=501)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprob, _ = head_logprob(hidden, weight, target, chunk_tokens=4)
    assert logprob.requires_grad
    assert max(kept, default=0) < 64 * 501 / 2


def test_uniform_logits_give_log_v_by_hand():
    hidden = torch.zeros(2, 3)
    logprob, entropy = head_logprob(hidden, torch.ones(5, 3), torch.tensor([0, 4]))
    assert logprob.tolist() == pytest.approx([-math.log(5)] * 2)
    assert entropy.tolist() == pytest.approx([math.log(5)] * 2)


def test_a_temperature_of_zero_is_refused_with_its_value():
    hidden, weight, target = inputs()
    with pytest.raises(ValueError, match="temperature is 0"):
        head_logprob(hidden, weight, target, temperature=0)
