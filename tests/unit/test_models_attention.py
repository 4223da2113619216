"""One attention call a layer in packed vision towers, against transformers' loop."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F

import foveal.models.attention as attention
from foveal import FastVisionModel
from foveal.kernels import rotate, varlen_attention
from foveal.models.attention import (
    PACKED_ATTENTION,
    fast_vision_attention,
    packed_attention,
    stock_config,
    stock_vision_attention,
)
from foveal.models.family import family_of, vision_modules
from foveal.models.state import state_of
from foveal.testing import save_tiny, tiny
from tests.samples import build, picture, row, stock_inputs

PACKED = ["qwen2_5_vl", "qwen3_vl"]
SIZES = [(70, 90), (100, 60), (64, 64), (200, 130), (64, 64)]


def encode_images(model, images):
    return family_of(model).encode_images(model, images)


def pictures(model, processor):
    """Five pictures of four sizes; those of Qwen2.5-VL end in windows that are cut short."""
    shapes = [picture(i, *size) for i, size in enumerate(SIZES)]
    return build(model, processor, row("Which?", *shapes))[0]


def tower_run(model, prompt):
    """Features of every depth, and the gradient of every parameter of the tower."""
    model.zero_grad()
    features = [f for each in encode_images(model, prompt.images) for f in each]
    sum((f * torch.linspace(-1, 1, f.numel()).view_as(f)).sum() for f in features).backward()
    tower = vision_modules(model)[0]
    gradients = {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}
    return [f.detach() for f in features], gradients


@pytest.fixture
def calls(monkeypatch):
    """The number of segments in each call of the kernel, whose arguments it checks."""
    seen = []

    def spy(query, key, value, offsets, longest, *rest):
        assert longest == offsets.diff().max(), "only the CUDA kernels read it"
        seen.append(len(offsets) - 1)
        return varlen_attention(query, key, value, offsets, longest, *rest)

    monkeypatch.setattr(attention, "varlen_attention", spy)
    return seen


@pytest.mark.parametrize("name", PACKED)
def test_features_and_gradients_equal_the_loops_in_one_call_a_layer(name, calls, monkeypatch):
    rotated = []
    monkeypatch.setattr(attention, "rotate", lambda *x: rotated.append(1) or rotate(*x))
    model, processor = tiny(name)
    prompt = pictures(model, processor)
    expected, expected_gradients = tower_run(model, prompt)
    assert not calls
    layers = fast_vision_attention(model)
    assert layers == model.config.vision_config.depth
    features, gradients = tower_run(model, prompt)

    assert len(calls) == len(rotated) == layers, "one call a layer"
    assert calls.count(len(SIZES)) == (1 if name == "qwen2_5_vl" else layers)
    assert max(calls) > len(SIZES) or name == "qwen3_vl", "windows are smaller than pictures"
    for ours, stock in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    assert len(gradients) == len(list(vision_modules(model)[0].parameters()))
    for key, gradient in expected_gradients.items():
        # Key biases shift every score alike: their gradient is rounding around an exact zero.
        scale = gradient.abs().max().clamp(min=1e-2)
        assert (gradients[key] - gradient).abs().max() / scale < 1e-4, key


@pytest.mark.parametrize("name", PACKED)
def test_the_index_made_on_the_cpu_equals_the_towers_own(name):
    """encode_images hands the tower its index; a stock call lets the tower compute it."""
    model, processor = tiny(name)
    fast_vision_attention(model)
    prompt = pictures(model, processor)
    inputs = stock_inputs(model, prompt, [])
    expected = model.model.get_image_features(
        inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
    )
    for (ours, *_), stock in zip(
        encode_images(model, prompt.images), expected.pooler_output, strict=True
    ):
        assert torch.equal(ours, stock)


@pytest.mark.parametrize("name", PACKED)
def test_switching_is_idempotent_listed_and_reversible(name, calls):
    model, processor = tiny(name)
    layers = fast_vision_attention(model)
    assert fast_vision_attention(model) == layers
    assert [c for c in state_of(model).changes if str(layers) in c and "vision attention" in c]
    assert len(state_of(model).changes) == 1
    # Nothing but the vision config of this instance may say flash.
    assert model.config.vision_config._attn_implementation == PACKED_ATTENTION
    assert {model.config._attn_implementation, model.config.text_config._attn_implementation} == {
        "sdpa"
    }
    assert tiny(name)[0].config.vision_config._attn_implementation == "sdpa"

    assert stock_vision_attention(model) == layers
    assert stock_vision_attention(model) == 0 and state_of(model).changes == []
    assert model.config.vision_config._attn_implementation == "sdpa"
    encode_images(model, pictures(model, processor).images)
    assert not calls and not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("name", PACKED)
def test_a_copy_attends_with_its_own_weights(name, calls):
    model, processor = tiny(name)
    layers, images = fast_vision_attention(model), pictures(model, processor).images
    expected = encode_images(model, images)[0][0]
    twin = copy.deepcopy(model)
    for parameter in vision_modules(model)[0].parameters():
        parameter.data.zero_()
    assert torch.equal(encode_images(twin, images)[0][0], expected)
    assert stock_vision_attention(twin) == layers
    encode_images(model, images)
    assert len(calls) == 3 * layers, "the copy alone was switched back"


def test_an_implementation_that_the_user_chose_stays(tmp_path):
    folder = save_tiny(tmp_path, "qwen2_5_vl")
    model, _ = FastVisionModel.from_pretrained(folder, attn_implementation="eager")
    assert fast_vision_attention(model) == 0
    assert not any(change.startswith("vision attention") for change in state_of(model).changes)
    assert model.config.vision_config._attn_implementation == "eager"


def test_gemmas_tower_is_left_alone():
    model, _ = tiny("gemma3")
    assert not family_of(model).FAMILY.packed_vision
    assert fast_vision_attention(model) == stock_vision_attention(model) == 0
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert state_of(model).changes == []


@pytest.mark.parametrize("name", PACKED)
def test_loaded_models_are_fast_and_what_they_save_is_stock(name, tmp_path):
    model, processor = FastVisionModel.from_pretrained(save_tiny(tmp_path / "base", name))
    assert model.config.vision_config._attn_implementation == PACKED_ATTENTION
    model.save_pretrained(tmp_path / "plain")
    adapted = FastVisionModel.get_peft_model(model, r=2)
    FastVisionModel.save_pretrained_merged(adapted, tmp_path / "merged", processor)
    for folder in ("plain", "merged"):
        saved = (tmp_path / folder / "config.json").read_text()
        assert "flash" not in saved and "attn_implementation" not in saved, json.loads(saved)
        again = type(model).from_pretrained(tmp_path / folder)
        assert again.config.vision_config._attn_implementation == "sdpa"
    type(model)(stock_config(model))


def test_a_tower_without_such_layers_is_an_error():
    model, _ = tiny("qwen2_5_vl")
    for block in model.model.visual.blocks:
        block.attn = torch.nn.Identity()
    with pytest.raises(ValueError, match="no attention layer"):
        fast_vision_attention(model)
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_calls_that_mean_something_else_are_refused():
    x = torch.zeros(1, 2, 4, 8)
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    packed = {"cu_seq_lens_q": offsets, "max_length_q": 4}
    layer = torch.nn.Identity()
    with pytest.raises(ValueError, match="no offsets"):
        packed_attention(layer, x, x, x, None)
    with pytest.raises(ValueError, match=r"dropout=0\.5"):
        packed_attention(layer, x, x, x, None, dropout=0.5, **packed)
    with pytest.raises(ValueError, match="2 rows"):
        packed_attention(layer, *[x.expand(2, -1, -1, -1)] * 3, None, **packed)
    with pytest.raises(ValueError, match="gave a mask"):
        packed_attention(layer, x, x, x, torch.zeros(4, 4), **packed)


@pytest.mark.parametrize("lengths", [[6], [4, 4, 4], [3, 1, 7, 3, 0, 1]])
def test_segments_do_not_see_each_other(lengths):
    query, key, value = torch.randn(3, sum(lengths), 2, 5, dtype=torch.float64).unbind(0)
    offsets = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    output = varlen_attention(query, key, value, offsets, max(lengths), 0.3)
    for q, k, v, out in zip(*(x.split(lengths) for x in (query, key, value, output)), strict=True):
        scores = torch.einsum("ihc,jhc->hij", q, k) * 0.3
        expected = torch.einsum("hij,jhc->ihc", scores.softmax(-1), v)
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("offsets", [[0, 3], [1, 4], [0, 3, 2, 4]])
def test_offsets_that_leave_tokens_out_are_refused(offsets):
    x = torch.zeros(4, 1, 8)
    with pytest.raises(ValueError, match="rise from 0 to 4"):
        varlen_attention(x, x, x, torch.tensor(offsets), 4)
    with pytest.raises(ValueError, match=r"\[3, 1, 8\]"):
        varlen_attention(x, x[:3], x, torch.tensor([0, 4]), 4)
