"""The head's Triton kernels against its torch path, interpreted.

Run by test_head_logprob.py in a Python of its own, see tests/interpret.py; and by
tests/gpu/test_training_cuda.py on a GPU, with other values of the constants.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from foveal.kernels import head_logprob_triton
from foveal.kernels.head_logprob import (
    _Head,
    _KernelHead,
    _Rule,
    head_logprob,
    head_policy_gradient,
)
from tests.unit.test_head_logprob import MODULE, run, upstream_of

WIDE, HALF = torch.float32, torch.float16
DEVICE = "cpu"
ROUNDING = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Of one gradient, relatively: the last of 16 bits; of 32, those that exp leaves."""


def inputs(rows: int, words: int, dtype: torch.dtype, scale: float = 4.0) -> tuple[Any, Any, Any]:
    """Hidden states and weight of a product that is exact in every type: row n of the logits is
    column n of the weight."""
    generator = torch.Generator().manual_seed(rows + words)
    weight_VN = scale * torch.randn(words, rows, generator=generator)
    target_N = torch.randint(0, words, (rows,), generator=generator).to(DEVICE)
    return torch.eye(rows).to(DEVICE, dtype), weight_VN.to(DEVICE, dtype), target_N


def both(rule: _Rule, inputs: tuple[Any, Any, Any], entropy: bool) -> list[list[torch.Tensor]]:
    """Four numbers a row and the gradient in the logits: of the kernels, of the torch path."""
    hidden, weight, target = inputs
    g_N, h_N = upstream_of(len(target)).to(DEVICE)
    found = []
    for form in (_KernelHead, _Head):
        head = form(weight, rule)
        stats, kept = head.values(hidden, target, keep=True)
        dlogits = head.dlogits(kept, target, stats, g_N, h_N if entropy else None)
        assert dlogits.dtype == weight.dtype
        values = [stats.logprob_N, stats.entropy_N, stats.peak_N, stats.total_N]
        assert all(value.dtype == torch.float32 for value in values)
        found.append([*values, dlogits.float()])
    return found


def assert_near(found: list[list[torch.Tensor]], dtype: torch.dtype, case: Any) -> None:
    for number, (ours, expected) in enumerate(zip(*found, strict=True)):
        # A last bit of the tanh is 1e-6 of z and of exp(z). A gradient of a rare word is small.
        atol, rtol = (1e-6, ROUNDING[dtype]) if number == 4 else (8e-6, 2e-6)
        torch.testing.assert_close(
            ours, expected, atol=atol, rtol=rtol,
            msg=lambda text, number=number: f"{case}, result {number}: {text}",
        )  # fmt: skip


def rows_of_every_kind():
    """Types, caps, temperatures; one row; one block, many, and a last one that is not full."""
    whole = head_logprob_triton.BLOCK_WORDS
    for (rows, words, block), dtype, softcap, temperature, entropy in itertools.product(
        ((5, 300, 64), (1, 300, 64), (3, 256, 64), (2, 23, 64), (2, 20_001, whole)),
        (WIDE, HALF), (None, 5.0), (1.0, 0.6), (False, True),
    ):  # fmt: skip
        case = (rows, words, block, dtype, softcap, temperature, entropy)
        head_logprob_triton.BLOCK_WORDS = block
        found = both(_Rule(temperature, softcap, 8), inputs(rows, words, dtype), entropy)
        assert_near(found, dtype, case)
    head_logprob_triton.BLOCK_WORDS = whole


def logits_of_every_size_below_a_cap():
    """Both halves of tanh, to the last digits: a chosen logit each row."""
    for scale in (0.02, 1.2, 4.0):
        found = both(_Rule(0.6, 5.0, 8), inputs(150, 64, WIDE, scale), False)
        assert_near(found, WIDE, (scale,))


def words_without_probability():
    """Logits of -inf: some, a whole block, the target; and the cap makes them finite again."""
    whole, head_logprob_triton.BLOCK_WORDS = head_logprob_triton.BLOCK_WORDS, 64
    for dtype, softcap in itertools.product((WIDE, HALF), (None, 5.0)):
        hidden, weight, target = inputs(4, 300, dtype)
        target[:3] = 7
        impossible = torch.zeros_like(weight, dtype=torch.bool)
        impossible[64:128] = impossible[10:20] = impossible[290:] = True
        impossible[7, 1] = True

        class Cut(_Head):
            def base(self, hidden_ND, cut=impossible.T):
                cut_NV = self.logits(hidden_ND).masked_fill(cut, -torch.inf)
                if self.rule.softcap is None or isinstance(self, _KernelHead):
                    return cut_NV
                return cut_NV.float().div_(self.rule.softcap).tanh_()

            def logits(self, hidden_ND):
                return hidden_ND @ self.weight_VD.T

        class KernelCut(Cut, _KernelHead):
            values, kept, dlogits = _KernelHead.values, _KernelHead.kept, _KernelHead.dlogits

        g_N, h_N = upstream_of(4).to(DEVICE)
        found = []
        for form in (KernelCut, Cut):
            head = form(weight, _Rule(0.6, softcap, 8))
            stats, kept = head.values(hidden, target, keep=True)
            dlogits = head.dlogits(kept, target, stats, g_N, h_N).float()
            found.append([stats.logprob_N, stats.entropy_N, stats.peak_N, stats.total_N, dlogits])
        assert found[0][0].isneginf().tolist() == [False, softcap is None, False, False]
        assert found[0][4].isfinite().all()
        assert_near(found, dtype, (dtype, softcap))
    head_logprob_triton.BLOCK_WORDS = whole


def logits_that_are_no_number():
    """A NaN shows in its row's values and in no other row."""
    for softcap in (None, 5.0):
        _, weight, target = inputs(3, 300, WIDE)
        logits = weight.T.contiguous()
        logits[1, 200] = torch.nan
        values = head_logprob_triton.logit_stats(logits, target, temperature=1.0, softcap=softcap)
        for value in (values[0], values[1]):
            assert value.isnan().tolist() == [False, True, False]


def whole_functions():
    """Through autograd, in pieces: a frozen head, a trained one, no tokens, and one pass."""
    for dtype, softcap, rows in itertools.product((WIDE, HALF), (None, 5.0), (5, 0)):
        hidden, weight, target = inputs(rows, 300, dtype, scale=1.0)
        upstream = upstream_of(rows).to(DEVICE)
        found = []
        for kernels in (True, False):
            setattr(MODULE, "_takes_kernel", lambda *_, kernels=kernels: kernels)  # noqa: B010
            hidden, weight = (x.detach().requires_grad_() for x in (hidden, weight))
            settings = {"temperature": 0.6, "softcap": softcap, "chunk_tokens": 2}
            results = run(head_logprob, hidden, weight, target, upstream, **settings)
            frozen = run(head_logprob, hidden, weight.detach(), target, upstream, **settings)
            assert all(torch.equal(a, b) for a, b in zip(frozen, results[:3], strict=True))
            once = head_policy_gradient(hidden, weight, target, upstream[0], **settings)
            assert all(torch.equal(a, b) for a, b in zip(once[:2], results[:2], strict=True))
            found.append([*results, once[2]])
        for ours, expected in zip(*found, strict=True):
            assert ours.dtype == expected.dtype
            far = 1e-5 if ours.dtype == WIDE else 2 * ROUNDING[dtype]
            torch.testing.assert_close(ours, expected, atol=far, rtol=far)


CASES = (
    rows_of_every_kind,
    logits_of_every_size_below_a_cap,
    words_without_probability,
    logits_that_are_no_number,
    whole_functions,
)

if __name__ == "__main__":
    for each in CASES:
        each()
