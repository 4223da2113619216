"""The CUDA kernels of packed vision attention against the reference, and towers on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from foveal.kernels import (
    rotate,
    rotate_reference,
    varlen_attention,
    varlen_attention_reference,
)
from foveal.kernels.varlen_attention import choose_kernel
from foveal.models.attention import fast_vision_attention
from foveal.models.family import family_of, vision_modules
from foveal.models.vision_mlp import PaddedForward, fast_vision_mlp
from foveal.models.vision_norm import fast_vision_norms
from foveal.testing import tiny
from tests.samples import build, picture, row

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("without_tf32")]

BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
LENGTHS = {
    "windows": [64] * 40,
    "cut windows": [64] * 30 + [48, 32, 24, 8] * 3,
    "pictures": [900, 4, 3600, 256],
}


def relative(ours, expected):
    expected = expected.to(ours.device, torch.float64)
    return ((ours.double() - expected).norm() / expected.norm()).item()


def offsets_of(lengths):
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("width", [80, 72, 20], ids="width{}".format)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_outputs_and_gradients_equal_the_reference(dtype, width, lengths):
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(4, sum(lengths), 2, width, generator=generator).to("cuda", dtype)
    # Views into one tensor, as the towers hand them in: tokens lie far apart.
    packed = data[:3].transpose(0, 1).contiguous().requires_grad_()
    query, key, value = packed.unbind(1)
    assert choose_kernel(query) != "reference"
    offsets = offsets_of(lengths).cuda()
    output = varlen_attention(query, key, value, offsets, max(lengths), 0.2)
    output.backward(data[3])

    exact = packed.detach().double().requires_grad_()
    expected = varlen_attention_reference(*exact.unbind(1), offsets, 0.2)
    expected.backward(data[3].double())
    assert output.shape == expected.shape and output.dtype == dtype
    errors = {"output": relative(output, expected)}
    for i, name in enumerate(("query", "key", "value")):
        errors[name] = relative(packed.grad[:, i], exact.grad[:, i])
    assert max(errors.values()) < BOUNDS[dtype], errors


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_rotation_in_one_kernel_equals_the_reference(dtype):
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3600, 3, 16, 80, generator=generator).to("cuda", dtype).requires_grad_()
    angles = torch.randn(2, 3600, 80, generator=generator).cuda()
    upstream = torch.randn(3600, 2, 16, 80, generator=generator).to("cuda", dtype)
    results = []
    for function in (rotate, rotate_reference):
        y_N2HC = function(qkv[:, :2], *angles)
        results.append((y_N2HC, *torch.autograd.grad(y_N2HC, qkv, upstream)))
    assert type(results[0][0].grad_fn).__name__ == "_RotateBackward", "the kernel was used"
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == dtype and relative(ours, expected) < BOUNDS[dtype] / 4


def samples(model, processor):
    shapes = [picture(i, *size) for i, size in enumerate([(70, 90), (200, 130), (64, 64)])]
    return build(model, processor, row("Which?", *shapes))[0].images


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_towers_agree_with_the_stock_loop_and_train(name, dtype):
    def run(model):
        features = [f for each in family_of(model).encode_images(model, images) for f in each]
        weights = [torch.linspace(-1, 1, f.numel(), device=f.device).view_as(f) for f in features]
        sum((f * w).sum() for f, w in zip(features, weights, strict=True)).backward()
        return torch.cat([f.flatten() for f in features]), {
            n: p.grad for n, p in vision_modules(model)[0].named_parameters()
        }

    stock, processor = tiny(name)
    images = samples(stock, processor)
    fast, _ = tiny(name)
    assert fast_vision_attention(fast) == fast.config.vision_config.depth
    assert bool(fast_vision_norms(fast)) == (name == "qwen2_5_vl")
    expected, expected_gradients = run(stock.cuda())
    features, gradients = run(fast.to("cuda", dtype))
    # Rounding of the weights and of each layer comes on top of that of attention.
    bound = 5 * BOUNDS[dtype]
    assert relative(features, expected) < bound, relative(features, expected)
    assert gradients.keys() == expected_gradients.keys()
    for key, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), key
        if dtype == torch.float32:
            # Key biases shift every score alike: their gradient is rounding around zero.
            scale = expected_gradients[key].abs().max().clamp(min=1e-2)
            error = ((gradient - expected_gradients[key]).abs().max() / scale).item()
            assert error < 1e-3, (key, error)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_blocks_filled_up_agree_with_the_stock_ones_on_aligned_rows(dtype, monkeypatch):
    """3,420 wide, as Qwen2.5-VL's, and 3,600 patches of one picture."""
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    model, _ = tiny("qwen2_5_vl")
    block = model.model.visual.blocks[0].mlp
    with torch.random.fork_rng(devices=["cuda"]), torch.device("cuda"):
        torch.manual_seed(0)
        block.gate_proj, block.up_proj = (torch.nn.Linear(1280, 3420) for _ in range(2))
        block.down_proj = torch.nn.Linear(3420, 1280)
        block.to(dtype)
        x_ND = torch.randn(3600, 1280, dtype=dtype, requires_grad=True)
        upstream_ND = torch.randn(3600, 1280, dtype=dtype)
    widths = []
    product = F.linear

    def spy(x, weight, bias=None):
        widths.append(weight.shape)
        assert all(side * weight.element_size() % 16 == 0 for side in weight.shape)
        return product(x, weight, bias)

    expected = type(block).forward(block, x_ND)
    parameters = [x_ND, *block.parameters()]
    expected_gradients = torch.autograd.grad(expected, parameters, upstream_ND)
    assert fast_vision_mlp(model) == 1 and isinstance(block.forward, PaddedForward)
    monkeypatch.setattr(F, "linear", spy)
    output = block(x_ND)
    assert widths == [(6848, 1280), (1280, 3424)]
    gradients = torch.autograd.grad(output, parameters, upstream_ND)
    assert output.dtype == dtype and relative(output, expected) < BOUNDS[dtype]
    for ours, stock in zip(gradients, expected_gradients, strict=True):
        assert relative(ours, stock) < BOUNDS[dtype]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_nothing_in_the_tower_waits_for_the_gpu(name):
    model, processor = tiny(name)
    fast_vision_attention(model.to("cuda", torch.float16))
    images = [
        replace(image, pixel_values=image.pixel_values.cuda())
        for image in samples(model, processor)
    ]
    encode = family_of(model).encode_images
    with torch.no_grad():
        encode(model, images)
        torch.cuda.set_sync_debug_mode("error")
        try:
            encode(model, images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
