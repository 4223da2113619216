"""Loading: what is read, in which number format, what the user is told, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from foveal import FastVisionModel
from foveal.models import quantize
from foveal.models.family import family_module, language_model, stock_model
from foveal.models.forward import completion_logprobs
from foveal.models.load import dtype_for_capability
from foveal.models.precision import autocast
from foveal.models.state import quiet, state_of
from foveal.testing import TINY_FAMILIES, save_tiny, tiny
from tests.samples import build, picture, ragged_prompts, random_completions, row, stock_inputs


def load(name, device="cpu", **options):
    return FastVisionModel.from_pretrained(name, device=device, **options)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in TINY_FAMILIES:
        save_tiny(folder / family, family)
    return folder


@pytest.fixture
def qwen(checkpoints, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoints / "qwen2_5_vl", tmp_path / "qwen"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_logits_and_processor_are_those_of_the_stock_checkpoint(checkpoints, family):
    model, processor = load(checkpoints / family)
    stock, stock_processor = tiny(family)
    assert type(model) is type(stock) and type(processor) is type(stock_processor)
    assert not model.training
    prompt = build(stock, stock_processor, row("How many?", picture(0, 70, 90)))[0]
    assert build(model, processor, row("How many?", picture(0, 70, 90)))[0].ids == prompt.ids
    inputs = stock_inputs(stock, prompt, [1, 2, 3])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits, atol=0, rtol=0)


def test_the_number_format_is_printed_with_its_reason(checkpoints, capsys):
    model, _ = load(checkpoints / "qwen2_5_vl")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    line = f"qwen2_5_vl from {checkpoints / 'qwen2_5_vl'} in float32: no CUDA device"
    assert capsys.readouterr().out.startswith(line)


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [
        ("Tesla T4", (7, 5), torch.float16),
        ("Tesla V100", (7, 0), torch.float16),
        ("A100", (8, 0), torch.bfloat16),
        ("L4", (8, 9), torch.bfloat16),
        ("B200", (10, 0), torch.bfloat16),
    ],
)
def test_bfloat16_is_chosen_only_where_the_gpu_computes_in_it(name, capability, dtype):
    chosen, reason = dtype_for_capability(name, capability)
    assert chosen == dtype
    assert f"{name} (compute capability {capability[0]}.{capability[1]})" in reason


def test_a_number_format_may_be_given_as_a_name(checkpoints, capsys):
    model, _ = load(checkpoints / "qwen3_vl", dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and state_of(model).dtype == torch.bfloat16
    assert "in bfloat16: as asked for" in capsys.readouterr().out


def test_the_state_holds_what_was_asked_for(checkpoints):
    model, _ = load(
        checkpoints / "gemma3",
        max_seq_length=2048,
        gpu_memory_utilization=0.8,
        use_gradient_checkpointing="unsloth",
    )
    state = model.foveal
    assert (state.family, state.model_name) == ("gemma3", str(checkpoints / "gemma3"))
    assert (state.max_seq_length, state.gpu_memory_utilization) == (2048, 0.8)
    assert (state.checkpointing, state.quantisation, state.changes) == ("offload", None, [])
    adapted = FastVisionModel.get_peft_model(model)
    assert adapted.foveal is state and state.checkpointing == "offload"


def test_a_stock_model_is_given_a_state_of_its_own():
    model, _ = tiny("qwen3_vl")
    state = state_of(model)
    assert (state.family, state.dtype, state.checkpointing) == ("qwen3_vl", torch.float32, None)
    assert state_of(model) is state


def test_the_tokenizer_pads_on_the_left_with_a_token_it_has(qwen):
    edit_json(qwen / "tokenizer_config.json", pad_token=None, padding_side="right")
    _, processor = load(qwen)
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token


@pytest.mark.parametrize(("bits", "said"), [("load_in_4bit", "4-bit"), ("load_in_8bit", "8-bit")])
def test_without_a_gpu_quantisation_is_left_out_and_said_so(checkpoints, capsys, bits, said):
    model, _ = load(checkpoints / "qwen2_5_vl", **{bits: True})
    assert model.dtype == torch.float32 and state_of(model).quantisation is None
    assert f"no CUDA device: loading in float32 instead of {said}" in capsys.readouterr().out


def test_quantisation_without_bitsandbytes_names_the_extra(monkeypatch):
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'4-bit .* pip install "foveal\[quant\]"'):
        quantize.choose_quantisation(
            torch.device("cuda"), torch.float16, load_in_4bit=True, load_in_8bit=False
        )


def test_only_the_decoders_linear_layers_may_be_quantised(tiny_model):
    """By transformers' rule: a module is skipped if its path starts with a name in the list."""
    model, _ = tiny_model
    family = family_module(model.config.model_type).FAMILY
    skipped = tuple(quantize.unquantised_modules(family))
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    kept = {name for name in linear if not name.startswith(skipped)}
    assert kept == {name for name in linear if ".layers." in name and "language_model" in name}


def test_vllm_is_said_to_be_missing_and_standby_is_accepted(checkpoints, capsys, monkeypatch):
    monkeypatch.setenv("UNSLOTH_VLLM_STANDBY", "1")
    model, _ = load(checkpoints / "qwen2_5_vl", fast_inference=True)
    assert model.foveal.fast_inference
    assert "rollouts use the built-in engine" in capsys.readouterr().out


def test_training_and_inference_modes(checkpoints):
    model, _ = load(checkpoints / "qwen2_5_vl")
    assert FastVisionModel.for_training(model).training
    assert not FastVisionModel.for_inference(model).training


def test_transformers_log_and_bars_are_quiet_inside_and_as_before_after():
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), quiet():
        inside = logging.get_verbosity(), logging.is_progress_bar_enabled()
        raise KeyError
    assert inside == (logging.ERROR, False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# float16 with a float32 residual stream


@pytest.fixture
def gemma_fp16(checkpoints):
    return load(checkpoints / "gemma3", dtype="float16")


def test_gemma_in_float16_carries_its_residual_in_float32(gemma_fp16):
    model, processor = gemma_fp16
    seen = []
    for layer in language_model(model).layers:
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    prompt = build(model, processor, row("How many?", picture(0, 70, 90)))[0]
    with autocast(model), torch.no_grad():
        output = model.generate(
            **stock_inputs(model, prompt, []), max_new_tokens=2, min_new_tokens=2
        )
    assert output.shape[1] == len(prompt.ids) + 2
    assert seen == [torch.float32] * (3 * 2), "three layers, two tokens"
    assert model.foveal.changes == ["residual: the input embeddings' output is cast to float32"]


def test_gemma_in_float16_agrees_with_float32(gemma_fp16):
    model, processor = gemma_fp16
    stock, _ = tiny("gemma3")
    prompts, completions = ragged_prompts(stock, processor), random_completions([5, 1, 9])
    with torch.no_grad():
        half = completion_logprobs(model, prompts, completions, temperature=1.0)
        full = completion_logprobs(stock, prompts, completions, temperature=1.0)
    assert (half.logprob_BT - full.logprob_BT).abs().max() < 0.1


def test_gemma_in_float16_outside_autocast_names_the_remedy(gemma_fp16):
    model, _ = gemma_fp16
    with pytest.raises(ValueError, match=r"run it inside torch.autocast\('cpu', dtype=torch.float"):
        model(input_ids=torch.tensor([[1, 2]]))


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_nothing_is_hooked_where_the_residual_fits(checkpoints, name):
    dtype = "bfloat16" if name == "gemma3" else "float16"
    model, _ = load(checkpoints / name, dtype=dtype)
    assert not stock_model(model).get_input_embeddings()._forward_hooks
    assert not any(change.startswith("residual: ") for change in model.foveal.changes)


# refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"load_in_4bits": True}, TypeError, "no argument 'load_in_4bits'; did you mean 'load_in_"),
        ({"max_seq_len": 10}, TypeError, "did you mean 'max_seq_length'"),
        ({"zzz": 1}, TypeError, "no argument 'zzz'; it takes model_name, max_seq_length, dtype"),
        ({"load_in_4bit": True, "load_in_8bit": True}, ValueError, "both True; choose one"),
        ({"gpu_memory_utilization": 0}, ValueError, r"utilization is 0; it must lie in \(0, 1\]"),
        ({"gpu_memory_utilization": 1.1}, ValueError, r"is 1.1; it must lie in \(0, 1\]"),
        ({"max_seq_length": 0}, ValueError, "max_seq_length is 0; it must be at least 1"),
        ({"dtype": "int8"}, ValueError, "dtype is 'int8'; it must be one of bfloat16, float16"),
        ({"dtype": torch.int8}, ValueError, "dtype is torch.int8; it must be one of bfloat16"),
        (
            {"use_gradient_checkpointing": "yes"},
            ValueError,
            "is 'yes'; it must be True, False, 'selective' \\(.*\\), 'offload' \\(.*\\) or 'auto'",
        ),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(checkpoints, arguments, error, message):
    with pytest.raises(error, match=message):
        load(checkpoints / "qwen2_5_vl", **arguments)


@pytest.mark.parametrize("name", ["./not/here", "/not/here", "a/b/c", "~/not-here"])
def test_a_missing_folder_is_no_hub_id(name):
    with pytest.raises(ValueError, match=f"there is no folder '{name}'; give a checkpoint folder"):
        load(name)


def test_an_unreachable_hub_id_gets_one_message(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="'no-one/nothing' is no folder here") as caught:
        load("no-one/nothing")
    assert "check the spelling and the network" in str(caught.value)
    assert caught.value.__suppress_context__ and "\n" not in str(caught.value)


def test_a_name_the_hub_could_not_have_gets_the_same_message():
    with pytest.raises(ValueError, match="'two words' is no folder here and cannot be read"):
        load("two words")


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"has neither a config.json nor an adapter_config.json"):
        load(tmp_path)


def test_an_unknown_model_type_lists_the_supported_ones(qwen):
    edit_json(qwen / "config.json", model_type="llava")
    with pytest.raises(ValueError, match="'llava' is not supported; supported are gemma3, qwen2_5"):
        load(qwen)


def test_a_broken_config_is_named(qwen):
    (qwen / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no valid json .*; download or save it"):
        load(qwen)


def test_cut_off_weights_are_an_error(qwen):
    weights = qwen / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"the weights of .* cannot be read .*; download or save"):
        load(qwen)


def test_absent_weights_are_an_error(qwen):
    (qwen / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the weights of .* cannot be read .*; download or save"):
        load(qwen)


def test_a_missing_weight_is_not_made_up(qwen):
    """Transformers would draw it at random and only log so."""
    weights = load_file(qwen / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))]
    save_file(weights, qwen / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights .*layers.1.mlp.up_proj.weight' first"):
        load(qwen)


def test_a_checkpoint_that_is_quantised_already_is_refused(qwen):
    edit_json(qwen / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ValueError, match="is quantised already; give the 16-bit checkpoint"):
        load(qwen)


def test_a_checkpoint_without_a_processor_is_refused(qwen):
    for file in [*qwen.glob("*processor*"), *qwen.glob("token*")]:
        file.unlink()
    with pytest.raises(ValueError, match=r"no processor that can be read .*; save it there with"):
        load(qwen)


# on a GPU


@pytest.mark.gpu
def test_weights_go_to_the_gpu_in_its_own_format(checkpoints, family, capsys):
    model, _ = load(checkpoints / family, device=None)
    capable = torch.cuda.get_device_capability() >= (8, 0)
    assert model.device.type == "cuda"
    assert model.dtype == (torch.bfloat16 if capable else torch.float16)
    assert torch.cuda.get_device_name() in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_exactly_the_decoder_is_packed(checkpoints, family, bits):
    pytest.importorskip("bitsandbytes")
    model, processor = load(checkpoints / family, device=None, **{f"load_in_{bits}": True})
    assert model.foveal.quantisation == bits
    kind = "Linear4bit" if bits == "4bit" else "Linear8bitLt"
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            decoder = "language_model" in name
            assert type(module).__name__ == (kind if decoder else type(module).__name__), name
            assert decoder or module.weight.is_floating_point(), name
    adapted = FastVisionModel.get_peft_model(model)
    prompts = ragged_prompts(model, processor)
    output = completion_logprobs(adapted, prompts, random_completions([5, 1, 9]), temperature=1.0)
    output.logprob_BT.sum().backward()
    gradients = [p.grad for n, p in adapted.named_parameters() if "lora_B" in n]
    assert all(g is not None and g.isfinite().all() for g in gradients)
