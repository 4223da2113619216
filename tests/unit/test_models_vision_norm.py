"""Norms of the vision tower by torch's own, against transformers'."""

from __future__ import annotations

import copy

import pytest
import torch

from foveal import FastVisionModel
from foveal.models.family import family_of, vision_modules
from foveal.models.state import state_of
from foveal.models.vision_norm import FusedNorm, fast_vision_norms, stock_vision_norms
from foveal.testing import save_tiny, tiny
from tests.samples import build, picture, row


def norms_of(model):
    tower = vision_modules(model)[0]
    return [m for m in tower.modules() if type(m).__name__.endswith("RMSNorm")]


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_results_are_rounded_where_the_stock_norm_rounds(dtype, autocast):
    model, _ = tiny("qwen2_5_vl")
    assert fast_vision_norms(model)
    norm = norms_of(model)[0].to(dtype)
    generator = torch.Generator().manual_seed(0)
    # Squares of up to 1e6 do not fit float16: the mean must be taken in float32.
    x_ND = (300 * torch.randn(500, 32, generator=generator)).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, stock = norm(x_ND), type(norm).forward(norm, x_ND)
    assert ours.dtype == stock.dtype
    bits = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, stock, rtol=2 * bits, atol=1e-6)
    # A weight that came in before rounding would change a third of all numbers.
    assert dtype == torch.float32 or (ours == stock).double().mean() > 0.99
    parameters = [x_ND, norm.weight]
    upstream = torch.randn(ours.shape, generator=generator).to(ours.dtype)
    pairs = zip(*(torch.autograd.grad(y, parameters, upstream) for y in (ours, stock)), strict=True)
    for gradient, expected in pairs:
        error = (gradient - expected).double().norm() / expected.double().norm()
        assert error < 4 * bits


def test_towers_equal_and_switching_is_listed_copied_and_reversible():
    model, processor = tiny("qwen2_5_vl")
    images = build(model, processor, row("Which?", picture(0, 70, 90)))[0].images
    ((expected,),) = family_of(model).encode_images(model, images)
    count = 2 * model.config.vision_config.depth + 1
    assert fast_vision_norms(model) == fast_vision_norms(model) == count == len(norms_of(model))
    (line,) = state_of(model).changes
    assert line.startswith(f"vision norms: {count} ")
    ((features,),) = family_of(model).encode_images(model, images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)

    twin = copy.deepcopy(model)
    for norm in norms_of(model):
        norm.weight.data.zero_()
    ((features,),) = family_of(twin).encode_images(twin, images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert stock_vision_norms(twin) == count and stock_vision_norms(twin) == 0
    assert state_of(twin).changes == [] and norms_of(model)[0].forward.norm is norms_of(model)[0]


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_towers_of_other_norms_are_left_alone(name):
    model, _ = tiny(name)
    assert fast_vision_norms(model) == stock_vision_norms(model) == 0
    assert state_of(model).changes == []


def test_loaded_models_are_fast_and_the_decoder_is_not_touched(tmp_path):
    model, _ = FastVisionModel.from_pretrained(save_tiny(tmp_path, "qwen2_5_vl"))
    assert all(isinstance(vars(norm)["forward"], FusedNorm) for norm in norms_of(model))
    assert not any("forward" in vars(m) for m in model.model.language_model.modules())
