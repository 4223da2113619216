"""Merged checkpoints: the same policy in one set of weights, under ordinary names."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

from foveal import FastVisionModel
from foveal.models.family import stock_model
from foveal.models.lora import adapted_layers
from foveal.models.merge import merge, merged_state_dict
from foveal.models.state import state_of
from foveal.testing import save_tiny, tiny
from tests.samples import build, picture, row, stock_inputs


@pytest.fixture
def adapted(family, tmp_path):
    """A model with an adapter that says something, its processor and the folder of its base."""
    base = save_tiny(tmp_path / "base", family)
    model, processor = FastVisionModel.from_pretrained(base, device="cpu")
    model = FastVisionModel.get_peft_model(model, r=3, lora_alpha=5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, processor, base


def logits(model, processor):
    prompt = build(stock_model(model), processor, row("How many?", picture(0, 70, 90)))[0]
    with torch.no_grad():
        return model(**stock_inputs(stock_model(model), prompt, [5, 6, 7])).logits.float()


def reload(model, folder, **options):
    return type(stock_model(model)).from_pretrained(folder, **options).eval()


def test_stored_in_float32_the_stock_class_gives_the_adapted_logits(adapted, tmp_path):
    model, processor, _ = adapted
    expected = logits(model, processor)
    model.save_pretrained_merged(tmp_path / "out", processor, dtype=torch.float32)
    merged = reload(model, tmp_path / "out", dtype="auto")
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits(merged, processor), expected, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        assert (logits(model, processor) - expected).abs().max() > 0.1, "the adapter matters"


def test_stored_in_16_bit_by_default_and_only_rounded(adapted, tmp_path):
    model, processor, _ = adapted
    model.save_pretrained_merged(tmp_path / "out", processor)
    merged = reload(model, tmp_path / "out", dtype="auto")
    assert merged.dtype == merged.config.get_text_config().dtype == torch.bfloat16
    for name, exact in merged_state_dict(model, torch.float32).items():
        # Half a step of a bfloat16 with 8 significant bits.
        error = (merged.state_dict()[name].float() - exact).abs()
        assert (error <= exact.abs() * 2**-8).all(), name
    expected = logits(model, processor)
    # Activations of three digits; in the tiny models, whose weights are large, errors add up.
    assert (logits(merged, processor) - expected).abs().max() < 0.1 * expected.abs().max()


def test_weight_names_are_those_of_the_base_checkpoint(adapted, tmp_path):
    """Tied heads stay tied: neither stored twice nor lost."""
    model, processor, base = adapted
    model.save_pretrained_merged(tmp_path / "out", processor)
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    merged, config = reload(model, tmp_path / "out"), stock_model(model).config
    shared = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert shared == config.tie_word_embeddings == (config.model_type != "qwen2_5_vl")


def test_the_folder_is_a_whole_checkpoint(adapted, tmp_path):
    model, processor, _ = adapted
    model.save_pretrained_merged(str(tmp_path / "out"), processor)
    loaded, loaded_processor = FastVisionModel.from_pretrained(tmp_path / "out", device="cpu")
    assert type(loaded_processor) is type(processor)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors"} <= names
    assert "adapter_config.json" not in names and "adapter_model.safetensors" not in names


def test_the_live_model_is_only_read(adapted, tmp_path):
    model, processor, _ = adapted
    stock = stock_model(model)
    config, before = stock.config.to_dict(), {n: p.clone() for n, p in model.named_parameters()}
    expected = logits(model, processor)
    model.save_pretrained_merged(tmp_path / "out", processor)
    assert stock.config.to_dict() == config
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert adapted_layers(model) and torch.equal(logits(model, processor), expected)


def test_the_largest_rounding_is_measured_and_printed(tmp_path, capsys):
    model, _ = tiny("qwen2_5_vl")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
        # Between 256 and 512 a bfloat16 goes in steps of 2: 257 is stored as 256.
        model.lm_head.weight[3, 4] = 257.0
    merged = merge(model, torch.bfloat16)
    assert (merged.largest_difference, merged.largest_name) == (1.0, "lm_head.weight")
    assert merged.tensors["lm_head.weight"][3, 4] == 256
    FastVisionModel.save_pretrained_merged(model, tmp_path)
    line = "merged 0 adapted layers into .*, stored in bfloat16: largest difference from float32 1 "
    assert re.match(line, capsys.readouterr().out)


def test_one_merged_weight_by_hand():
    model, _ = tiny("qwen2_5_vl")
    flags = {"finetune_vision_layers": False, "target_modules": ["q_proj"]}
    adapted = FastVisionModel.get_peft_model(model, r=1, lora_alpha=3, **flags)
    layer = model.get_submodule("model.language_model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.base_layer.weight[0, 0] = 1.0
        layer.lora_A["default"].weight[0, 0] = 2.0
        layer.lora_B["default"].weight[0, 0] = 5.0
    weight = merged_state_dict(adapted, torch.float32)[
        "model.language_model.layers.0.self_attn.q_proj.weight"
    ]
    # 1 + (alpha / r) * B * A = 1 + 3 * 5 * 2
    assert weight[0, 0] == 31 and weight.abs().sum() == 31
    assert "model.language_model.layers.0.self_attn.q_proj.bias" in merged_state_dict(
        adapted, torch.float32
    )


def test_the_sum_is_rounded_once():
    """Steps of bfloat16 above 1 are 2^-7; each of two terms alone is at most half a step."""
    model, _ = tiny("qwen2_5_vl")
    model.to(torch.bfloat16)
    adapted = FastVisionModel.get_peft_model(model, r=2, lora_alpha=2, target_modules=["q_proj"])
    path = "model.language_model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(path)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.base_layer.weight[0, 0] = 1.0
        layer.lora_A["default"].weight[:, 0] = 1.0
        layer.lora_B["default"].weight[0] = torch.tensor([2**-8, 2**-9])
    weight = merged_state_dict(adapted, torch.bfloat16)[f"{path}.weight"]
    # One after the other both would be lost; their sum, three quarters of a step, rounds up.
    assert weight.dtype == torch.bfloat16 and float(weight[0, 0]) == 1 + 2**-7


def test_a_quantised_base_is_read_again_in_16_bit(adapted, tmp_path):
    """Stands in for 4-bit weights on a machine without a GPU: the live base is off by a lot."""
    model, processor, _ = adapted
    expected = {n: t.clone() for n, t in merged_state_dict(model, torch.float32).items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.mul_(1.5)
    state_of(model).quantisation = "4bit"
    actual = merged_state_dict(model, torch.float32)
    assert actual.keys() == expected.keys()
    for name, weight in actual.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-6, msg=name)
    model.save_pretrained_merged(tmp_path / "out", processor)
    assert reload(model, tmp_path / "out").dtype == torch.bfloat16


def test_a_quantised_base_from_nowhere_names_the_remedy():
    model, _ = tiny("qwen2_5_vl")
    state = state_of(model)
    state.quantisation, state.model_name = "4bit", None
    with pytest.raises(ValueError, match=r"set state_of\(model\).model_name to their folder"):
        merge(model, torch.bfloat16)


def test_a_model_of_the_users_own_can_be_saved_too(tmp_path):
    model, processor = tiny("gemma3")
    adapted = FastVisionModel.get_peft_model(model)
    adapted.save_pretrained_merged(tmp_path / "out", processor, dtype=torch.float32)
    merged = reload(model, tmp_path / "out")
    torch.testing.assert_close(logits(merged, processor), logits(adapted, processor))


def test_the_base_is_never_overwritten(adapted):
    model, processor, base = adapted
    with pytest.raises(ValueError, match="holds the base weights; choose another folder"):
        model.save_pretrained_merged(base, processor)


def test_another_method_is_refused(tmp_path):
    model, _ = tiny("qwen2_5_vl")
    with pytest.raises(ValueError, match="save_method is 'lora'; only 'merged_16bit'"):
        FastVisionModel.save_pretrained_merged(model, tmp_path, save_method="lora")


@pytest.mark.gpu
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_packed_base_merges_into_its_16_bit_checkpoint(family, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    base = save_tiny(tmp_path / "base", family)
    model, processor = FastVisionModel.from_pretrained(base, **{f"load_in_{bits}": True})
    adapted = FastVisionModel.get_peft_model(model)
    adapted.save_pretrained_merged(tmp_path / "out", processor)
    merged = reload(model, tmp_path / "out", dtype=torch.float32).state_dict()
    for name, weight in tiny(family)[0].state_dict().items():
        torch.testing.assert_close(merged[name], weight, atol=0, rtol=2**-8, msg=name)


@pytest.mark.gpu
def test_merging_on_a_gpu_equals_merging_on_the_cpu(adapted):
    model, _, _ = adapted
    on_cpu = merged_state_dict(model.cpu(), torch.float32)
    on_gpu = merged_state_dict(model.cuda(), torch.float32)
    for name, weight in on_cpu.items():
        torch.testing.assert_close(on_gpu[name].cpu(), weight, atol=1e-6, rtol=1e-6, msg=name)
