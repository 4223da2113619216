"""What stands between two products in training: references against stock modules, kernels
against the references."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from foveal.kernels import train_fused
from foveal.kernels.train_fused import (
    ACTIVATIONS,
    add_rms_norm,
    gated,
    gated_backward_,
    rms_norm,
    rotary,
)
from tests.aot import CAPABILITIES, SHARED_BYTES, Recorder
from tests.interpret import run_interpreted


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stock", [Qwen3VLTextRMSNorm, Gemma3RMSNorm])
def test_norm_rounds_where_the_stock_module_rounds(stock, kind):
    torch.manual_seed(0)
    norm = stock(48, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    norm, offset = norm.to(kind), stock is Gemma3RMSNorm
    x_ND, branch_ND = ((3 * torch.randn(64, 48)).to(kind) for _ in range(2))
    assert torch.equal(rms_norm(x_ND, norm.weight, 1e-6, offset=offset), norm(x_ND))
    stream_ND, y_ND = add_rms_norm(x_ND, branch_ND, norm.weight, 1e-6, offset=offset)
    assert torch.equal(stream_ND, x_ND + branch_ND) and torch.equal(y_ND, norm(x_ND + branch_ND))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_gradient_of_the_gate_is_autograds(act):
    torch.manual_seed(0)
    gate, up = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    d = torch.randn(5, 7, dtype=torch.float64)
    stock = torch.nn.SiLU() if act == "silu" else torch.nn.GELU("tanh")
    expected = torch.autograd.grad(stock(gate) * up, (gate, up), d)
    plain = gate.detach(), up.detach()
    *found, product = gated_backward_(d.clone(), *plain, act, product=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert product is not None
    torch.testing.assert_close(product, gated(*plain, act))


def test_shapes_that_do_not_fit_are_refused(monkeypatch):
    x = torch.zeros(4, 2, 6)
    with pytest.raises(ValueError, match=r"\[N, C\] with an even C"):
        rotary(x, x, torch.zeros(4, 5), torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"act is 'relu'; .* silu, gelu_pytorch_tanh"):
        gated(x, x, "relu")
    with pytest.raises(ValueError, match=r"differ: .*4, 2, 5"):
        gated(x, x[..., :5], "silu")
    monkeypatch.setattr(train_fused, "_takes_kernel", lambda *_: True)
    with pytest.raises(ValueError, match=r"the weight \(5,\); .* their width"):
        rms_norm(x, torch.zeros(5), 1e-6, offset=False)


def test_triton_kernels_equal_the_references():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_train_cases")


def meta(*shape: int, dtype: torch.dtype, grad: bool = True) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def launch_all(half: torch.dtype, stream: torch.dtype) -> None:
    """Every branch, with the widths of Qwen2.5-VL-7B and the heads of Gemma 3."""
    N, D = 8192, 3584
    for offset in (False, True):
        weight = meta(D, dtype=half, grad=offset)
        x, branch = meta(N, D, dtype=stream), meta(N, D, dtype=half)
        for part in (None, branch):
            outputs = add_rms_norm(x, part, weight, 1e-6, offset=offset, dtype=half)
            torch.autograd.backward(outputs, [torch.empty_like(y) for y in outputs])
    heads = meta(N, 8, 128, dtype=half)
    y = rms_norm(heads, meta(128, dtype=half, grad=False), 1e-6, offset=False)
    y.backward(torch.empty_like(y))
    for C, angle in ((128, half), (256, torch.float32)):
        q, k = meta(N, 28, C, dtype=half), meta(N, 4, C, dtype=half)
        cos = meta(N, C, dtype=angle, grad=False)
        outputs = rotary(q, k, cos, cos)
        torch.autograd.backward(outputs, [torch.empty_like(y) for y in outputs])
    gate = meta(N, 18944, dtype=half, grad=False)
    for act in ACTIVATIONS:
        gated(gate, gate, act)
        for product in (False, True):
            gated_backward_(gate, gate, gate, act, product=product)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_and_fit_on_every_card(capability, monkeypatch):
    pytest.importorskip("triton")
    from foveal.kernels import train_fused_triton

    names = ("norm_kernel", "norm_backward_kernel", "rotary_kernel", "gated_kernel",
             "gated_backward_kernel")  # fmt: skip
    recorders = [Recorder(getattr(train_fused_triton, name)) for name in names]
    for name, recorder in zip(names, recorders, strict=True):
        monkeypatch.setattr(train_fused_triton, name, recorder)
    monkeypatch.setattr(train_fused, "_takes_kernel", lambda *_: True)
    half = torch.float16 if capability == 75 else torch.bfloat16
    launch_all(half, torch.float32 if capability == 75 else half)
    assert all(recorder.launches for recorder in recorders)
    variants = {launch.variant: launch for r in recorders for launch in r.launches}
    assert len(variants) >= 12
    for launch in variants.values():
        compiled = launch.compile_for(capability)
        assert compiled.metadata.shared <= SHARED_BYTES[capability]
        ptx = compiled.asm["ptx"]
        assert f".target sm_{capability}" in ptx
        # Loads of 16 bytes, as rows of 3584 and heads of 128 allow.
        assert "ld.global.v4" in ptx
