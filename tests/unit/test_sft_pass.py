"""The supervised pass is a plain forward with masked labels, however rows are split and stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveal.models import training_layer
from foveal.models.checkpointing import set_checkpointing
from foveal.rl.stats import stat_values
from foveal.testing import tiny
from foveal.train.sft_data import RowOrder, loader, pack
from foveal.train.sft_pass import Example, learn, total_loss
from tests.parity.our_side import assert_same, gradients, our_model
from tests.samples import build, picture, ragged_prompts, random_completions, row, stock_inputs

LENGTHS = [30, 1, 12]
"""30 leave the window of Gemma's sliding layers; a single token is all end of turn."""


def examples(model: Any, processor: Any) -> list[Example]:
    prompts = ragged_prompts(model, processor)
    found = random_completions(LENGTHS, seed=3)
    return [Example(p, tuple(ids)) for p, ids in zip(prompts, found, strict=True)]


def stock_gradients(model: Any, data: list[Example]) -> tuple[dict[str, torch.Tensor], float]:
    """One row at a time through transformers' own forward, labels -100 everywhere but on the
    completion; no padding, no packing."""
    model.zero_grad()
    tokens = sum(len(one.completion) for one in data)
    total = 0.0
    for one in data:
        inputs = stock_inputs(model, one.prompt, list(one.completion))
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[0, len(one.prompt.ids) :] = torch.tensor(one.completion)
        loss = model(**inputs, labels=labels).loss * len(one.completion) / tokens
        loss.backward()
        total += loss.item()
    return gradients(model), total


def our_gradients(model: Any, data: list[Example], bound: int | None = None) -> Any:
    model.zero_grad()
    tokens = sum(len(one.completion) for one in data)
    calls = []

    def backward(share):
        calls.append(share)
        share.backward()

    loss, stats = learn(model.train(), data, tokens, tokens_at_once=bound, backward=backward)
    return gradients(model), loss.item(), len(calls), stat_values(stats)


@pytest.mark.parametrize("devices", [{"cuda"}, {"cpu"}], ids=["stock layers", "fused layers"])
def test_all_weights_get_the_gradients_of_masked_labels(family, devices, monkeypatch):
    monkeypatch.setattr(training_layer, "FUSED_ON", devices)
    model, processor = tiny(family)
    for name, parameter in model.named_parameters():
        # SigLIP's pooling head is in Gemma's checkpoints, and nothing passes through it; a softmax
        # does not see what is added to all keys, so the gradient of their bias is rounding alone.
        unseen = "vision_tower.head." in name or name.endswith("attn.k_proj.bias")
        parameter.requires_grad_(not unseen or "vision_tower" not in name)
    data = examples(model, processor)
    expected, loss = stock_gradients(model, data)
    tower = [n for n in expected if "visual" in n or "vision_tower" in n or "projector" in n]
    assert tower and all(expected[name].any() for name in tower if name.endswith("weight"))
    first_two = sum(one.num_tokens for one in data[:2])
    for checkpointing, bound, calls in [
        (False, None, 1),
        (True, first_two, 2),
        ("selective", 1, 3),
        ("offload", None, 1),
    ]:
        set_checkpointing(model, checkpointing)
        ours, our_loss, our_calls, _ = our_gradients(model, data, bound)
        assert_same(ours, expected, 1e-5)
        assert our_loss == pytest.approx(loss, rel=1e-5)
        assert our_calls == calls


def test_an_adapter_gets_the_gradients_of_masked_labels(family):
    model, processor = our_model(family)
    data = examples(model, processor)
    expected, loss = stock_gradients(model, data)
    ours, our_loss, _, _ = our_gradients(model, data)
    assert_same(ours, expected, 1e-5)
    assert our_loss == pytest.approx(loss, rel=1e-5)


def test_the_mean_is_over_tokens_and_not_over_pieces_or_rows():
    model, processor = our_model("qwen2_5_vl")
    data = examples(model, processor)
    whole, loss, _, stats = our_gradients(model, data)
    parts, part_loss, calls, part_stats = our_gradients(model, data, 1)
    assert calls == len(data)
    assert_same(parts, whole, 1e-5)
    assert part_loss == pytest.approx(loss, rel=1e-5)
    assert part_stats == pytest.approx(stats, rel=1e-5)
    # Rows of 30, 1 and 12 tokens have clearly different means, so a mean of means would show.
    total, tokens = total_loss(model.eval(), data, tokens_at_once=40)
    assert tokens == sum(LENGTHS) and total / tokens == pytest.approx(loss, rel=1e-5)
    row_means = [total_loss(model, [one], tokens_at_once=None) for one in data]
    mean_of_means = sum(t / n for t, n in row_means) / len(data)
    assert abs(mean_of_means - loss) > 1e-2


def test_a_neighbour_in_the_pack_changes_nothing():
    model, processor = tiny("qwen3_vl")
    data = examples(model, processor)
    alone = [total_loss(model, [one], tokens_at_once=None)[0] for one in data]
    packed, _ = total_loss(model, data, tokens_at_once=None)
    assert packed == pytest.approx(sum(alone), rel=1e-6)


def test_a_batch_brings_back_each_picture_to_its_own_row(family):
    """Pixels travel as one flat tensor; sizes differ, and one row has none."""
    model, processor = tiny(family)
    data = examples(model, processor)
    back = pack(data).examples()
    assert [one.completion for one in back] == [one.completion for one in data]
    for one, other in zip(back, data, strict=True):
        assert one.prompt.ids == other.prompt.ids
        for image, original in zip(one.prompt.images, other.prompt.images, strict=True):
            assert torch.equal(image.pixel_values, original.pixel_values)
            assert image.digest == original.digest
    assert pack(data).completion_tokens == sum(LENGTHS)
    no_picture = pack(data[2:])
    assert no_picture.examples()[0].prompt.images == ()


def test_a_batch_of_a_worker_is_the_batch_of_this_process():
    """A worker writes into memory that is shared; sizes there are in bytes."""
    model, processor = tiny("qwen2_5_vl")
    data: Any = examples(model, processor)
    for dtype in (torch.float32, torch.bfloat16):
        order = RowOrder(len(data), 2, shuffle=False, seed=0)
        ours = list(loader(data, order, dtype=dtype))
        theirs = list(loader(data, order, dtype=dtype, workers=1))
        assert len(ours) == len(theirs) > 1
        for one, other in zip(ours, theirs, strict=True):
            assert one.pixels.dtype == other.pixels.dtype == dtype
            assert torch.equal(one.pixels, other.pixels)
            assert one.shapes == other.shapes


def test_pixels_rounded_on_their_way_give_the_features_of_the_tower_itself():
    """What a bfloat16 tower makes of float32 pixels is what it makes of their bfloat16."""
    model, processor = tiny("qwen2_5_vl")
    model = model.to(torch.bfloat16)
    prompt = build(model, processor, row("?", picture(0, 70, 90)))[0]
    data = [Example(prompt, (5, 6, 7))]
    exact = total_loss(model, data, tokens_at_once=None)
    packed = pack(data, torch.bfloat16)
    assert packed.pixels.dtype == torch.bfloat16
    assert total_loss(model, packed.examples(), tokens_at_once=None) == exact
