"""Feed-forward blocks of the vision tower in a width that is filled up, against the stock ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import foveal.models.vision_mlp as vision_mlp
from foveal import FastVisionModel
from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import family_of, vision_modules
from foveal.models.state import state_of
from foveal.models.vision_mlp import (
    PROJECTIONS,
    fast_vision_mlp,
    needs_padding,
    padded_mlp,
    stock_vision_mlp,
)
from foveal.testing import tiny
from tests.samples import build, picture, row

WIDTH = 53
"""Odd: such rows are badly placed in every type, so a CPU fills them up too."""


def blocks_of(model):
    return [m for m in vision_modules(model)[0].modules() if hasattr(m, "down_proj")]


def narrow():
    """A tiny Qwen2.5-VL whose tower is ``WIDTH`` wide, and one prompt's pictures."""
    model, processor = tiny("qwen2_5_vl")
    model.config.vision_config.intermediate_size = WIDTH
    for block in blocks_of(model):
        for name in PROJECTIONS:
            side = 1 if name == "down_proj" else 0
            old = getattr(block, name)
            size = [old.in_features, old.out_features]
            size[1 - side] = WIDTH
            new = nn.Linear(*size)
            new.weight.data.copy_(old.weight.detach().narrow(side, 0, WIDTH))
            new.bias.data.copy_(old.bias.detach()[: size[1]])
            setattr(block, name, new)
    prompt = build(model, processor, row("Which?", picture(0, 70, 90), picture(1, 64, 64)))[0]
    return model, prompt.images


def adapted(seed=0, **kwargs):
    """The same with an adapter in the tower that does something."""
    model, images = narrow()
    model = FastVisionModel.get_peft_model(
        model, r=2, finetune_vision_layers=True, use_gradient_checkpointing=False, **kwargs
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model, images


@pytest.fixture
def calls(monkeypatch):
    """The width of every block that is computed filled up."""
    seen = []

    def spy(x_ND, gate, *rest):
        seen.append(gate.weight.shape[0])
        return padded_mlp(x_ND, gate, *rest)

    monkeypatch.setattr(vision_mlp, "padded_mlp", spy)
    return seen


def run(model, images):
    """Features, and the gradient of all that is trained in the tower."""
    model.zero_grad()
    features = [f for each in family_of(model).encode_images(model, images) for f in each]
    sum((f * torch.linspace(-1, 1, f.numel()).view_as(f)).sum() for f in features).backward()
    named = vision_modules(model)[0].named_parameters()
    return [f.detach() for f in features], {n: p.grad.clone() for n, p in named if p.requires_grad}


def assert_equal(ours, stock):
    for a, b in zip(ours[0], stock[0], strict=True):
        assert a.dtype == torch.float64 and (a - b).abs().max() / b.abs().max() < 1e-6
    assert ours[1].keys() == stock[1].keys() and ours[1]
    for key, gradient in stock[1].items():
        # Key biases shift every score alike: their gradient is rounding around an exact zero.
        scale = gradient.abs().max().clamp(min=1e-1)
        assert (ours[1][key] - gradient).abs().max() / scale < 1e-5, key


@pytest.mark.parametrize("policy", [False, True, "offload"])
@pytest.mark.parametrize("make", [narrow, adapted], ids=["weights", "adapter"])
def test_features_and_every_gradient_equal_the_stock_blocks(make, policy, calls):
    model, images = make()
    set_checkpointing(model, policy)
    # In double precision: the layers of a tiny tower magnify float32's rounding.
    model.double().train()
    expected = run(model, images)
    depth = fast_vision_mlp(model)
    assert depth == len(blocks_of(model)) and not calls
    assert_equal(run(model, images), expected)
    assert calls == [WIDTH] * (depth * (2 if policy else 1)), "none fell back to the stock block"
    assert any("mlp.down_proj" in key for key in expected[1])


def test_one_block_alone_equals_to_six_digits(calls):
    model, _ = narrow()
    block = blocks_of(model)[0]
    x_ND = torch.randn(2, 7, block.gate_proj.in_features)
    expected = block(x_ND)
    fast_vision_mlp(model)
    torch.testing.assert_close(block(x_ND), expected, atol=1e-6, rtol=1e-6)
    assert calls


def test_bfloat16_under_autocast_equals_within_its_rounding(calls):
    model, images = adapted()
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    depth = fast_vision_mlp(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block = blocks_of(model)[0]
        x_ND = torch.randn(40, 32).bfloat16()
        ours, stock = block(x_ND), type(block).forward(block, x_ND)
        assert ours.dtype == stock.dtype == torch.bfloat16
        assert (ours - stock).double().norm() / stock.double().norm() < 1e-2
        family_of(model).encode_images(model, images)
    assert calls == [WIDTH] * (1 + depth)
    # Without autocast PEFT mixes two types in its own way, which is kept.
    assert torch.equal(block(x_ND), type(block).forward(block, x_ND)) and len(calls) == 1 + depth


def test_the_adapter_may_come_later_go_off_and_be_merged(calls):
    model, images = narrow()
    depth = fast_vision_mlp(model.double())
    block = blocks_of(model)[0]
    x_ND = torch.randn(5, 32).double()
    base = block(x_ND)
    adapted = FastVisionModel.get_peft_model(model, r=2, finetune_vision_layers=True)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    adapted.double()
    with_adapter = block(x_ND)
    torch.testing.assert_close(with_adapter, type(block).forward(block, x_ND))
    assert not torch.allclose(with_adapter, base)
    with adapted.disable_adapter():
        torch.testing.assert_close(block(x_ND), base)
    adapted.merge_adapter()
    torch.testing.assert_close(block(x_ND), with_adapter)
    assert len(calls) == 4
    adapted.unmerge_adapter()
    family_of(adapted).encode_images(adapted, images)
    assert len(calls) == 4 + depth


@pytest.mark.parametrize("special", ["hook", "dropout", "quantised"])
def test_a_projection_that_does_more_is_called(special, calls):
    model, _ = adapted()
    fast_vision_mlp(model)
    block, seen = blocks_of(model)[0], []
    if special == "hook":
        block.up_proj.register_forward_hook(lambda *_: seen.append(1))
    elif special == "dropout":
        block.down_proj.lora_dropout["default"] = nn.Dropout(0.5)
        block.train()
    else:

        class Packed(nn.Linear):
            def forward(self, x):
                seen.append(1)
                return super().forward(x)

        block.gate_proj = Packed(32, WIDTH)
    block(torch.randn(3, 32))
    assert not calls and (seen or special == "dropout")


def test_switching_is_idempotent_listed_and_reversible(calls):
    model, images = narrow()
    keys = list(model.state_dict())
    depth = fast_vision_mlp(model)
    assert fast_vision_mlp(model) == depth == len(blocks_of(model))
    assert [c for c in state_of(model).changes if "vision mlp" in c and str(depth) in c]
    assert len(state_of(model).changes) == 1 and list(model.state_dict()) == keys
    assert stock_vision_mlp(model) == depth and stock_vision_mlp(model) == 0
    assert state_of(model).changes == []
    run(model, images)
    assert not calls and all("forward" not in vars(block) for block in blocks_of(model))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_computes_with_its_own_weights(duplicate, calls):
    model, _ = narrow()
    fast_vision_mlp(model)
    block = blocks_of(model)[0]
    x_ND = torch.randn(3, 32)
    expected = block(x_ND)
    twin = duplicate(block)
    nn.init.zeros_(block.down_proj.weight)
    nn.init.zeros_(block.down_proj.bias)
    assert not block(x_ND).any()
    torch.testing.assert_close(twin(x_ND), expected)
    assert len(calls) == 3


def test_a_forward_that_somebody_else_put_there_stays():
    model, _ = narrow()
    first, *others = blocks_of(model)
    first.forward = theirs = lambda x: x
    assert fast_vision_mlp(model) == stock_vision_mlp(model) == len(others)
    assert first.forward is theirs


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_towers_of_a_good_width_are_left_alone(name):
    model, _ = tiny(name)
    assert fast_vision_mlp(model) == stock_vision_mlp(model) == 0
    assert state_of(model).changes == []


def test_a_tower_without_such_blocks_is_an_error():
    model, _ = tiny("qwen2_5_vl")
    for block in model.model.visual.blocks:
        block.mlp = nn.Identity()
    with pytest.raises(ValueError, match="no block with gate_proj, up_proj, down_proj"):
        fast_vision_mlp(model)


def test_loaded_models_are_fast_and_what_they_save_is_stock(tmp_path, calls):
    model, images = narrow()
    model.save_pretrained(tmp_path / "base")
    tiny("qwen2_5_vl")[1].save_pretrained(tmp_path / "base")
    loaded, _ = FastVisionModel.from_pretrained(tmp_path / "base")
    features = family_of(loaded).encode_images(loaded, images)
    assert len(calls) == len(blocks_of(loaded))
    loaded.save_pretrained(tmp_path / "again")
    again = type(loaded).from_pretrained(tmp_path / "again")
    for (ours,), (stock,) in zip(
        features, family_of(again).encode_images(again, images), strict=True
    ):
        torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("width", "dtype", "expected"),
    [
        (3420, torch.bfloat16, True),
        (3420, torch.float16, True),
        (3420, torch.float32, False),
        (3424, torch.bfloat16, False),
        (4304, torch.bfloat16, False),
    ],
)
def test_only_rows_that_are_loaded_slowly_are_filled_up(width, dtype, expected):
    assert needs_padding(width, dtype) is expected
