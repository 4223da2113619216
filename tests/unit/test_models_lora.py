"""Adapters: which layers are trained, from which start, and which layers a backward pass visits."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import torch

from foveal import FastVisionModel
from foveal.models import checkpointing
from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import family_of, language_model, stock_model, vision_modules
from foveal.models.forward import completion_logprobs
from foveal.models.lora import adapted_layers
from foveal.testing import TINY_FAMILIES, save_tiny, tiny
from tests.samples import build, picture, ragged_prompts, random_completions, row, stock_inputs

adapt = FastVisionModel.get_peft_model
load = partial(FastVisionModel.from_pretrained, device="cpu")

# Written out by hand, layer by layer: what the flags should reach in each tiny model.
DECODER_ATTENTION = {
    f"model.language_model.layers.{i}.self_attn.{name}_proj" for i in range(3) for name in "qkvo"
}
DECODER_MLP = {
    f"model.language_model.layers.{i}.mlp.{name}_proj"
    for i in range(3)
    for name in ("gate", "up", "down")
}
SIGLIP = "model.vision_tower.encoder.layers"
DEEPSTACK = [f"deepstack_merger_list.{i}" for i in range(2)]
VISION_ATTENTION = {
    "qwen2_5_vl": {f"model.visual.blocks.{i}.attn.{n}" for i in range(2) for n in ("qkv", "proj")},
    "qwen3_vl": {f"model.visual.blocks.{i}.attn.{n}" for i in range(3) for n in ("qkv", "proj")},
    "gemma3": {
        f"{SIGLIP}.{i}.self_attn.{n}_proj" for i in range(2) for n in ("q", "k", "v", "out")
    },
}
VISION_MLP = {
    "qwen2_5_vl": {
        *(
            f"model.visual.blocks.{i}.mlp.{n}_proj"
            for i in range(2)
            for n in ("gate", "up", "down")
        ),
        "model.visual.merger.mlp.0",
        "model.visual.merger.mlp.2",
    },
    "qwen3_vl": {
        f"model.visual.{part}.linear_fc{n}"
        for part in [*(f"blocks.{i}.mlp" for i in range(3)), "merger", *DEEPSTACK]
        for n in (1, 2)
    },
    "gemma3": {f"{SIGLIP}.{i}.mlp.fc{n}" for i in range(2) for n in (1, 2)},
}


def values(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


def spread(model, seed=0):
    """Give the adapter values other than its start, at which it adds nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def logprobs(model, processor):
    prompts = ragged_prompts(stock_model(model), processor)
    return completion_logprobs(model, prompts, random_completions([5, 1, 9]), temperature=0.8)


# which layers


@pytest.mark.parametrize("off", ["vision_layers", "language_layers", "attention_modules", "mlp"])
def test_each_flag_takes_out_its_layers_and_no_others(tiny_model, off):
    model, _ = tiny_model
    kind = model.config.model_type
    flag = f"finetune_{off}" + ("_modules" if off == "mlp" else "")
    expected = DECODER_ATTENTION | DECODER_MLP | VISION_ATTENTION[kind] | VISION_MLP[kind]
    expected -= {
        "vision_layers": VISION_ATTENTION[kind] | VISION_MLP[kind],
        "language_layers": DECODER_ATTENTION | DECODER_MLP,
        "attention_modules": DECODER_ATTENTION | VISION_ATTENTION[kind],
        "mlp": DECODER_MLP | VISION_MLP[kind],
    }[off]
    adapted = adapt(model, r=2, **{flag: False})
    assert set(adapted_layers(adapted)) == expected
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {
        f"base_model.model.{path}.lora_{side}.default.weight" for path in expected for side in "AB"
    }


def test_all_flags_are_on_by_default_and_the_counts_are_printed(tiny_model, capsys):
    model, _ = tiny_model
    kind = model.config.model_type
    vision = len(VISION_ATTENTION[kind] | VISION_MLP[kind])
    adapted = adapt(model)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    line = capsys.readouterr().out
    assert f"LoRA r=16 trains {trained:,} parameters of " in line
    assert f"in {21 + vision} linear layers: language 21, vision {vision}" in line
    assert any(line.strip() in change for change in adapted.foveal.changes)


def test_every_adapter_gets_a_gradient_in_float32(tiny_model):
    """An adapter on a layer that the forward pass never runs would stay as it is for ever."""
    model, processor = tiny_model
    adapted = spread(adapt(model.to(torch.bfloat16), r=2))
    logprobs(adapted, processor).logprob_BT.sum().backward()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, name
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_named_layers_replace_two_of_the_flags(tiny_model):
    model, _ = tiny_model
    adapted = adapt(model, target_modules=["q_proj", "v_proj"], finetune_vision_layers=False)
    assert set(adapted_layers(adapted)) == {
        f"model.language_model.layers.{i}.self_attn.{n}_proj" for i in range(3) for n in "qv"
    }


def test_a_regular_expression_replaces_all_flags():
    model, _ = tiny("qwen2_5_vl")
    adapted = adapt(model, target_modules=r"model\.visual\..*\.qkv", finetune_vision_layers=False)
    assert adapted_layers(adapted) == [f"model.visual.blocks.{i}.attn.qkv" for i in range(2)]


def test_all_linear_leaves_it_to_the_flags():
    model, _ = tiny("qwen2_5_vl")
    flags = {"finetune_vision_layers": False, "finetune_mlp_modules": False}
    adapted = adapt(model, target_modules="all-linear", **flags)
    assert set(adapted_layers(adapted)) == DECODER_ATTENTION


# where it starts


def test_the_start_is_the_seeds_and_leaves_the_global_random_state_alone():
    starts = []
    for seed, before in ((1, 5), (1, 6), (2, 5)):
        model, _ = tiny("qwen2_5_vl")
        torch.manual_seed(before)
        expected_next = torch.rand(1)
        torch.manual_seed(before)
        starts.append(values(adapt(model, random_state=seed)))
        assert torch.equal(torch.rand(1), expected_next)
    for name, value in starts[0].items():
        assert torch.equal(value, starts[1][name]), name
        if "lora_A" in name:
            assert not torch.equal(value, starts[2][name]), name


def test_a_fresh_adapter_adds_nothing(tiny_model):
    model, processor = tiny_model
    before = logprobs(model, processor).logprob_BT
    after = logprobs(adapt(model), processor).logprob_BT
    assert torch.equal(before, after)


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_rank_alpha_and_rslora_set_the_scale(use_rslora, scale):
    model, _ = tiny("qwen2_5_vl")
    adapted = adapt(model, r=4, lora_alpha=8, use_rslora=use_rslora, max_seq_length=77)
    layer = stock_model(adapted).get_submodule(adapted_layers(adapted)[0])
    assert layer.scaling["default"] == scale
    assert layer.lora_A["default"].weight.shape[0] == 4
    assert adapted.foveal.max_seq_length == 77


# refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"finetune_vision_layers": False, "finetune_language_layers": False},
            ValueError,
            "finetune_vision_layers and finetune_language_layers are both False",
        ),
        (
            {"finetune_attention_modules": False, "finetune_mlp_modules": False},
            ValueError,
            "finetune_attention_modules and finetune_mlp_modules are both False",
        ),
        (
            {"target_modules": ["q_proj", "w_qkv"]},
            ValueError,
            "target_modules has 'w_qkv', which matches no linear layer in model.visual, model.lang"
            "uage_model; there are 0, 2, down_proj, gate_proj, k_proj",
        ),
        ({"target_modules": ["lm_head"]}, ValueError, "'lm_head', which matches no linear layer"),
        ({"target_modules": []}, ValueError, "target_modules is empty"),
        ({"target_modules": "q_proj"}, ValueError, "'q_proj' matches nothing; a regular expressi"),
        ({"target_modules": ".*embed_tokens"}, ValueError, "embed_tokens', which has none"),
        ({"target_modules": ".*patch_embed.proj"}, ValueError, "patch_embed.proj', which has none"),
        ({"lora_dropout": 0.1}, ValueError, "lora_dropout is 0.1; it must be 0: the completions"),
        ({"bias": "all"}, ValueError, "bias is 'all'; it must be 'none'"),
        ({"loftq_config": {"bits": 4}}, ValueError, "LoftQ changes the base weights"),
        ({"modules_to_save": ["lm_head"]}, ValueError, r"modules_to_save is \['lm_head'\]"),
        ({"r": 0}, ValueError, "r is 0; the rank of an adapter is at least 1"),
        ({"use_gradient_checkpointing": "full"}, ValueError, "is 'full'; it must be True, False"),
        ({"lora_aplha": 3}, TypeError, "no argument 'lora_aplha'; did you mean 'lora_alpha'?"),
    ],
)
def test_bad_arguments_are_named_and_leave_the_model_as_it_was(arguments, error, message):
    model, _ = tiny("qwen2_5_vl")
    with pytest.raises(error, match=message):
        adapt(model, **arguments)
    assert not adapted_layers(model) and all(p.requires_grad for p in model.parameters())


def test_a_second_adapter_is_refused():
    model, _ = tiny("qwen2_5_vl")
    with pytest.raises(ValueError, match="the model has an adapter already"):
        adapt(adapt(model))


# saved adapters


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """For each family: a base, an adapter trained on it, and what the two say."""
    folder = tmp_path_factory.mktemp("saved")
    outputs = {}
    for family in TINY_FAMILIES:
        base = save_tiny(folder / family, family)
        model, processor = load(base)
        adapted = spread(adapt(model, r=3, lora_alpha=5))
        adapted.save_pretrained(folder / f"{family}-adapter")
        outputs[family] = (values(adapted), logprobs(adapted, processor).logprob_BT.detach())
    return folder, outputs


def assert_same_adapter(model, processor, expected):
    expected_values, expected_logprob_BT = expected
    assert values(model).keys() == expected_values.keys()
    for name, value in values(model).items():
        assert torch.equal(value, expected_values[name]), name
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)
    output = logprobs(model, processor)
    assert torch.equal(output.logprob_BT, expected_logprob_BT)
    output.logprob_BT.sum().backward()
    assert any(p.grad is not None for n, p in model.named_parameters() if "lora_A" in n)


def test_an_adapter_folder_loads_base_and_adapter_trainable(saved, family, capsys):
    folder, outputs = saved
    model, processor = load(folder / f"{family}-adapter")
    assert_same_adapter(model, processor, outputs[family])
    assert model.foveal.model_name == str(folder / family)
    assert "LoRA r=3 trains" in capsys.readouterr().out


def test_an_adapter_is_put_on_a_stock_model(saved, family):
    folder, outputs = saved
    model, processor = load(folder / family, use_gradient_checkpointing=True)
    set_checkpointing(model, True)
    adapted = FastVisionModel.load_adapter(model, folder / f"{family}-adapter")
    assert_same_adapter(adapted, processor, outputs[family])
    assert stock_model(adapted) is model and model.foveal.checkpointing is True
    assert not model.get_input_embeddings()._forward_hooks, "no hook that runs the tower backwards"


def test_an_adapted_model_takes_the_saved_values(saved, family):
    folder, outputs = saved
    model, processor = load(folder / family)
    adapted = spread(adapt(model, r=3, lora_alpha=5), seed=9)
    assert FastVisionModel.load_adapter(adapted, folder / f"{family}-adapter") is adapted
    assert_same_adapter(adapted, processor, outputs[family])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r": 4, "lora_alpha": 5}, "has r=3, the model's has r=4"),
        ({"r": 3, "lora_alpha": 6}, "has lora_alpha=5, the model's has lora_alpha=6"),
        (
            {"r": 3, "lora_alpha": 5, "finetune_vision_layers": False},
            "adapt different layers: 24 tensors do not match, 'base_model.model.model.visual",
        ),
    ],
)
def test_an_adapter_of_another_kind_is_not_taken(saved, arguments, message):
    folder, _ = saved
    model = spread(adapt(tiny("qwen2_5_vl")[0], **arguments))
    before = values(model)
    with pytest.raises(ValueError, match=message):
        FastVisionModel.load_adapter(model, folder / "qwen2_5_vl-adapter")
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())


def test_an_adapter_of_another_family_is_not_put_on(saved):
    folder, _ = saved
    model, _ = tiny("gemma3")
    set_checkpointing(model, "offload")
    with pytest.raises(ValueError, match=r"does not fit: .* load it on the model it was trai"):
        FastVisionModel.load_adapter(model, folder / "qwen2_5_vl-adapter")
    assert not adapted_layers(model)
    assert model.foveal.checkpointing == "offload" and len(model.foveal.changes) == 1


def test_an_adapter_of_another_width_is_not_put_on(saved):
    folder, _ = saved
    model, _ = tiny("qwen2_5_vl")
    path = "model.language_model.layers.0.mlp.up_proj"
    model.set_submodule(path, torch.nn.Linear(40, 80, bias=False))
    with pytest.raises(ValueError, match=f"at '{path}' it is 96 wide where this model has 40"):
        FastVisionModel.load_adapter(model, folder / "qwen2_5_vl-adapter")


def copy_adapter(folder, target, **changes):
    target.mkdir()
    for file in (folder / "qwen2_5_vl-adapter").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_a_saved_dropout_is_set_to_zero_and_said_so(saved, tmp_path, capsys):
    folder, outputs = saved
    adapter = copy_adapter(folder, tmp_path / "a", lora_dropout=0.3)
    model, processor = load(adapter)
    model.train()
    assert_same_adapter(model, processor, outputs["qwen2_5_vl"])
    assert f"lora_dropout 0.3 of {adapter} is set to 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "it has use_dora=True; train a plain LoRA adapter"),
        ({"bias": "all"}, "it has bias='all'"),
        ({"modules_to_save": ["lm_head"]}, r"it has modules_to_save=\['lm_head'\]"),
    ],
)
def test_a_saved_adapter_of_an_unsupported_kind_is_refused(saved, tmp_path, changes, message):
    adapter = copy_adapter(saved[0], tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=message):
        FastVisionModel.load_adapter(tiny("qwen2_5_vl")[0], adapter)


def test_a_folder_without_an_adapter_is_named(saved):
    base = saved[0] / "qwen2_5_vl"
    with pytest.raises(ValueError, match=re.escape(f"no adapter_config.json in {str(base)!r}")):
        FastVisionModel.load_adapter(tiny("qwen2_5_vl")[0], base)


def test_an_adapter_whose_base_has_moved_says_where_to_correct_it(saved, tmp_path):
    adapter = copy_adapter(saved[0], tmp_path / "a", base_model_name_or_path="/moved/away")
    with pytest.raises(ValueError, match=r"whose base '/moved/away' .* correct base_model_name_or"):
        load(adapter)


# checkpointing


def gradients(model, processor, policy):
    set_checkpointing(model, policy)
    model.train()
    model.zero_grad()
    output = logprobs(model, processor)
    (output.logprob_BT * torch.linspace(0.1, 1, output.logprob_BT.shape[1])).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("vision", [False, True], ids=["language", "language+vision"])
@pytest.mark.parametrize("policy", [True, "selective", "offload"])
def test_checkpointing_changes_no_gradient(tiny_model, policy, vision):
    model, processor = tiny_model
    adapted = spread(adapt(model, r=2, finetune_vision_layers=vision))
    plain = gradients(adapted, processor, False)
    checkpointed = gradients(adapted, processor, policy)
    assert (
        plain.keys()
        == checkpointed.keys()
        == {n for n, p in adapted.named_parameters() if p.requires_grad}
    )
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def count_layer_runs(model, runs):
    for module in (language_model(model), *vision_modules(model)):
        for layer in checkpointing._layers(module):
            # The attention, since the layer's own hooks lie outside the recomputation or inside
            # it, depending on the version of transformers.
            inner = next(m for n, m in layer.named_children() if "attn" in n)
            path = next(n for n, m in stock_model(model).named_modules() if m is inner)
            inner.register_forward_hook(lambda *_, path=path: runs.append(path))


@pytest.mark.parametrize("vision", [False, True], ids=["language", "language+vision"])
def test_every_trained_layer_runs_twice_and_a_frozen_one_once(tiny_model, vision):
    model, processor = tiny_model
    adapted = spread(adapt(model, r=2, finetune_vision_layers=vision))
    runs = []
    count_layer_runs(adapted, runs)
    gradients(adapted, processor, True)
    tower = tuple(family_of(adapted).FAMILY.vision_paths)
    assert {runs.count(path) for path in runs if path.startswith(tower)} == {2 if vision else 1}
    assert {runs.count(path) for path in runs if not path.startswith(tower)} == {2}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("policy", [False, True, "offload"])
@pytest.mark.parametrize("vision", [False, True], ids=["frozen", "trained"])
def test_a_frozen_tower_is_never_run_backwards(tiny_model, policy, vision):
    model, processor = tiny_model
    adapted = spread(
        adapt(model, r=2, finetune_vision_layers=vision, use_gradient_checkpointing=policy)
    )
    tower, backwards = tuple(family_of(adapted).FAMILY.vision_paths), []
    for path, part in stock_model(adapted).named_modules():
        if path.startswith(tower) and isinstance(part, torch.nn.Linear):
            part.register_full_backward_hook(lambda *_: backwards.append(1))
    FastVisionModel.for_training(adapted)
    # The stock forward, which computes features with a graph; ours would hide a hooked tower.
    prompt = build(model, processor, row("How many?", picture(0, 70, 90)))[0]
    output = adapted(**stock_inputs(model, prompt, [1, 2, 3]), use_cache=False)
    output.logits.sum().backward()
    assert bool(backwards) == vision


def test_offload_keeps_the_input_of_each_layer_and_nothing_else(monkeypatch):
    model, processor = tiny("qwen2_5_vl")
    adapted = spread(adapt(model, r=2, finetune_vision_layers=False))
    out, back = [], []
    to_host, to_device = checkpointing._to_host, checkpointing._to_device

    # Older versions of torch save an empty tensor beside the inputs.
    def spy_out(tensor):
        out.extend([tuple(tensor.shape)] if tensor.numel() else [])
        return to_host(tensor)

    def spy_back(packed):
        back.extend([tuple(packed[1].shape)] if packed[1].numel() else [])
        return to_device(packed)

    monkeypatch.setattr(checkpointing, "_to_host", spy_out)
    monkeypatch.setattr(checkpointing, "_to_device", spy_back)
    prompt = build(model, processor, row("How many?", picture(0, 70, 90)))
    set_checkpointing(adapted, "offload")
    adapted.train()
    output = completion_logprobs(adapted, prompt, [[1, 2, 3]], temperature=1.0)
    assert out == [(1, len(prompt[0].ids) + 3, 96)] * 3 and back == []
    output.logprob_BT.sum().backward()
    assert back == out


def test_checkpointing_is_taken_back_whole(tiny_model):
    model, _ = tiny_model
    before = [dict(vars(module)) for module in model.modules()]
    layers = set_checkpointing(model, True)
    tower = [layer for module in vision_modules(model) for layer in checkpointing._layers(module)]
    assert layers == 3 + len(tower) and len(tower) >= 2, "all is trained, so all is checkpointed"
    assert set_checkpointing(model, "offload") == layers
    assert [c for c in model.foveal.changes if c.startswith("checkpointing: ")] == [
        f"checkpointing: {layers} layers are computed twice, inputs in host memory"
    ]
    assert set_checkpointing(model, False) == 0
    assert model.foveal.changes == [] and model.foveal.checkpointing is False
    del model.foveal
    assert [dict(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("value", [None, "True", 1, "cpu"])
def test_an_unknown_checkpointing_policy_is_refused(value):
    model, _ = tiny("qwen2_5_vl")
    with pytest.raises(ValueError, match=f"is {value!r}; it must be True, False, 'selective'"):
        set_checkpointing(model, value)


@pytest.mark.gpu
@pytest.mark.parametrize("vision", [False, True], ids=["language", "language+vision"])
def test_offloaded_gradients_on_a_gpu(tiny_model, vision):
    model, processor = tiny_model
    adapted = spread(adapt(model.cuda(), r=2, finetune_vision_layers=vision))

    def run(policy):
        set_checkpointing(adapted, policy)
        adapted.train()
        adapted.zero_grad()
        logprobs(adapted, processor).logprob_BT.sum().backward()
        return {n: p.grad.clone() for n, p in adapted.named_parameters() if p.requires_grad}

    plain = run(False)
    for policy in (True, "offload"):
        for name, gradient in run(policy).items():
            torch.testing.assert_close(gradient, plain[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.gpu
def test_offload_frees_the_gpu_of_layer_inputs():
    layers = [torch.nn.Linear(1024, 1024, device="cuda") for _ in range(8)]

    def held(run):
        hidden = torch.randn(8192, 1024, device="cuda")
        before = torch.cuda.memory_allocated()
        output = hidden
        for layer in layers:
            output = run(layer, output)
        after = torch.cuda.memory_allocated() - before
        output.sum().backward()
        return after

    one_input = 8192 * 1024 * 4
    assert held(checkpointing._recompute) >= 8 * one_input
    assert held(checkpointing.checkpoint_function("offload")) < 2 * one_input
