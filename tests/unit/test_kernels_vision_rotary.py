"""Rotation of a vision tower's queries and keys, against transformers' and in the interpreter."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from foveal.kernels import rotate
from tests.aot import CAPABILITIES, SHARED_BYTES, compile_for
from tests.interpret import run_interpreted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotation_equals_that_of_transformers(dtype):
    qkv = torch.randn(7, 3, 4, 20).to(dtype)
    cos_NC, sin_NC = torch.randn(2, 7, 20)
    expected = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], cos_NC, sin_NC)
    ours = rotate(qkv[:, :2], cos_NC, sin_NC)
    assert ours.dtype == dtype
    for rotated, stock in zip(ours.unbind(1), expected, strict=True):
        assert torch.equal(rotated, stock)


def test_shapes_that_do_not_fit_are_refused():
    x = torch.zeros(4, 2, 3, 8)
    with pytest.raises(ValueError, match=r"\[5, 8\]"):
        rotate(x, torch.zeros(5, 8), torch.zeros(5, 8))
    with pytest.raises(ValueError, match=r"\[4, 3, 3, 8\]"):
        rotate(torch.zeros(4, 3, 3, 8), torch.zeros(4, 8), torch.zeros(4, 8))


def test_the_triton_kernel_equals_the_reference():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_rotary_cases")


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_kernel_compiles_on_every_card(capability, back):
    pytest.importorskip("triton")
    from foveal.kernels.vision_rotary_triton import rotate_kernel

    half = "*fp16" if capability == 75 else "*bf16"
    names = ("x_ptr", "out_ptr", "cos_ptr", "sin_ptr", "token_stride", "part_stride")
    types = (half, half, "*fp32", "*fp32", "i32", "i32")
    sizes = {"HEADS": 16, "C": 80, "BLOCK_H": 16, "BLOCK_C": 64, "BACK": back}
    compiled = compile_for(
        rotate_kernel, dict(zip(names, types, strict=True)), sizes, capability, divisible=names
    )
    assert compiled.metadata.shared <= SHARED_BYTES[capability]
    assert f".target sm_{capability}" in compiled.asm["ptx"]
