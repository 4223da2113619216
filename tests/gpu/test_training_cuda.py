"""Head and adapted layers on a GPU, whose 16-bit products may return float32."""

from __future__ import annotations

import pytest
import torch

from foveal.kernels import (
    head_logprob,
    head_logprob_reference,
    head_policy_gradient,
    train_fused,
)
from foveal.kernels.arithmetic import mm_float32
from foveal.kernels.train_fused import gated, gated_backward_, gated_backward_reference_
from foveal.models import training_layer
from foveal.rl.stats import Sum
from foveal.train.step_flow import StepFlow
from tests.unit import test_head_logprob, triton_head_cases, triton_train_cases
from tests.unit.test_models_fused_lora import assert_as_near_as_peft
from tests.unit.test_models_training_layer import assert_near_the_truth

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_sums_of_transposed_and_sliced_factors(dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    a_NF = torch.randn(3001, 136, generator=generator, device="cuda").to(dtype)
    b_NR = torch.randn(3001, 20, generator=generator, device="cuda").to(dtype)[:, 4:20]
    found = mm_float32(a_NF.T, b_NR)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), a_NF.T.double() @ b_NR.double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_the_head_in_pieces_equals_full_logits(trained):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(50, 128, generator=generator, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(15_001, 128, generator=generator, device="cuda").bfloat16()
    weight.mul_(0.3).requires_grad_(trained)
    target = torch.randint(0, 15_001, (50,), generator=generator, device="cuda")
    g_N = torch.randn(50, generator=generator, device="cuda")
    wanted = [hidden, weight] if trained else [hidden]
    found = []
    for function, extra in ((head_logprob, {"chunk_tokens": 16}), (head_logprob_reference, {})):
        logprob, entropy = function(hidden, weight, target, temperature=0.8, **extra)
        loss = (g_N * logprob + 0.1 * entropy).sum()
        found.append((logprob, entropy, *torch.autograd.grad(loss, wanted, retain_graph=True)))
        only = torch.autograd.grad((g_N * logprob).sum(), hidden)[0]
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-2, rtol=1e-2)
    once = head_policy_gradient(hidden, weight, target, g_N, temperature=0.8, chunk_tokens=16)
    for ours, reference in zip(once, (*found[1][:2], only), strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", triton_head_cases.CASES, ids=lambda case: case.__name__)
def test_compiled_head_kernels_equal_the_torch_path(case, half, monkeypatch, without_tf32):
    monkeypatch.setattr(triton_head_cases, "DEVICE", "cuda")
    monkeypatch.setattr(triton_head_cases, "HALF", half)
    # The cases set these as they go.
    for module, name in ((test_head_logprob.MODULE, "_takes_kernel"),
                         (triton_head_cases.head_logprob_triton, "BLOCK_WORDS")):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))
    case()


@pytest.mark.parametrize(("words", "softcap"), [(152_064, None), (262_208, 30.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_head_of_a_whole_vocabulary_equals_float64(words, softcap, dtype, without_tf32):
    """Each logit is one element of the weight times 1: both types have the same logits."""
    hidden, weight, target = triton_head_cases.inputs(24, words, dtype)
    hidden, weight = hidden.cuda().requires_grad_(), weight.cuda()
    target = target.cuda()
    # Likely words too, whose own gradient is the larger part.
    target[::2] = weight.argmax(0)[::2]
    upstream = test_head_logprob.upstream_of(24).cuda()
    settings = {"temperature": 0.7, "softcap": softcap}
    exact = hidden.detach().double().requires_grad_(), weight.double()
    truth = test_head_logprob.run(head_logprob_reference, *exact, target, upstream, **settings)
    ours = test_head_logprob.run(head_logprob, hidden, weight, target, upstream, **settings)
    once = head_policy_gradient(hidden, weight, target, upstream[0], **settings)
    for value, again, expected in zip(ours[:2], once[:2], truth[:2], strict=True):
        assert torch.equal(value, again)
        # The last bit of a tanh near 1 is 3e-6 of z.
        far = 1e-5 if softcap is None else 3e-5
        torch.testing.assert_close(value, expected, atol=far, rtol=2e-6)
    upstream[1] = 0
    plain = test_head_logprob.run(head_logprob_reference, *exact, target, upstream, **settings)
    # The logits' gradients are rounded to the product's type, each by itself.
    near = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    for found, expected in ((ours[2], truth[2]), (once[2], plain[2])):
        assert (found.double() - expected).norm() <= near * expected.norm()


def test_kernels_of_the_head_need_their_budget_and_no_more():
    weight = torch.randn(152_064, 64, device="cuda").bfloat16()
    hidden = torch.randn(4096, 64, device="cuda").bfloat16().requires_grad_()
    target = torch.randint(0, len(weight), (4096,), device="cuda")
    for tokens in (1, 4096):  # the first time cuBLAS takes its workspace
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        logprob, entropy = head_logprob(hidden[:tokens], weight, target[:tokens])
        (logprob.sum() + entropy.sum()).backward()
    budget = test_head_logprob.BYTES_PER_CHUNK
    assert 0.9 * budget < torch.cuda.max_memory_allocated() - before < 1.05 * budget


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapted_layers_are_as_near_the_truth_as_pefts(dtype):
    assert_as_near_as_peft(dtype, "cuda", wide=False)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", triton_train_cases.CASES, ids=lambda case: case.__name__)
def test_compiled_kernels_equal_the_references(case, half, monkeypatch, without_tf32):
    monkeypatch.setattr(triton_train_cases, "DEVICE", "cuda")
    monkeypatch.setattr(triton_train_cases, "HALF", half)
    # The cases set these as they go.
    monkeypatch.setattr(train_fused, "_takes_kernel", train_fused._takes_kernel)
    monkeypatch.setattr(training_layer, "FUSED_ON", training_layer.FUSED_ON)
    case()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_fused_layer_is_as_near_the_truth_as_the_stock_modules(family, dtype, without_tf32):
    assert_near_the_truth(family, dtype, "cuda")


def test_a_block_of_more_than_2_to_the_31_elements():
    """Its last rows, whose places no 32-bit number reaches."""
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GB of free GPU memory")
    N, F, last = 2**31 // 18944 + 9, 18944, 8
    generator = torch.Generator("cuda").manual_seed(0)
    gate, up, d = (torch.zeros(N, F, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    for x in (gate, up, d):
        x[-last:].normal_(generator=generator)
    expected = gated_backward_reference_(
        d[-last:].clone(), gate[-last:], up[-last:], "silu", product=True
    )
    assert torch.equal(gated(gate, up, "silu")[-last:], gated(gate[-last:], up[-last:], "silu"))
    found = gated_backward_(d, gate, up, "silu", product=True, overwrite=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours[-last:], theirs, atol=3e-2, rtol=1e-2)


def test_numbers_of_a_step_are_asked_for_without_waiting_for_it():
    """A wait in the middle of a run leaves the GPU idle until the next step is launched."""
    device = torch.device("cuda")
    flow = StepFlow(device)
    x_NN = torch.randn(2048, 2048, device=device)
    told = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        with flow("train"):
            total = (x_NN @ x_NN).sum()
        told += flow.close({"loss": Sum(total), "rows": Sum(torch.full((), 3.0, device=device))})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert told == []
    (metrics,) = flow.finish()
    assert metrics["loss"] == pytest.approx(total.item())
    assert metrics["rows"] == 3
    assert metrics["time/train"] > 0
    assert metrics["memory/train_gib"] > 0
