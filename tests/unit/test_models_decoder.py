"""One token a row through the decoder: against whole rows, stock layers and PEFT."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from foveal import FastVisionModel
from foveal.models.decoder import Decoder, plain_step
from foveal.models.family import family_of, stock_model
from foveal.models.forward import FeatureCache, hidden_states
from foveal.models.fused_decoder import FusedStep, Workspace, why_not_fused
from foveal.models.packed_lora import PackedLora, lora_of
from foveal.models.precision import evaluating
from foveal.models.prefill import Fill, head_logits, prefill
from foveal.models.rows import make_rows
from foveal.rollout.capture import Capture
from foveal.rollout.tables import BatchTables
from foveal.testing import tiny
from foveal.types import PAGE
from tests.aot import Recorder
from tests.decoding import arena_for, attend_in_torch, request, sequence
from tests.interpret import run_interpreted
from tests.samples import ragged_prompts, random_completions

TOKENS = 70
"""Decoded by each row: more than a page."""


def adapted(model: Any, std: float = 0.3) -> Any:
    """With an adapter that matters."""
    torch.manual_seed(0)
    model = FastVisionModel.get_peft_model(model, r=4, finetune_vision_layers=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=std)
    return model


def whole_rows(model, prompts, completions):
    """Logits ``[B, L, V]`` of a plain forward over prompts and completions together."""
    stock = stock_model(model)
    batch = make_rows(
        family_of(model), stock.config, prompts, completions,
        image_token_id=stock.config.image_token_id,
    )  # fmt: skip
    features = FeatureCache().get(model, batch.images)
    return head_logits(model, hidden_states(model, batch, features))


def assert_close(found, expected):
    """Within 1e-4 of the largest logit."""
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-4


def prompt_request(model, prompt, pages):
    """A request whose first own position is read off the stock positions of a longer row."""
    length = len(prompt.ids)
    config = stock_model(model).config
    positions_AL = family_of(model).row_positions(config, prompt, length + 1)
    return request(length, pages, int(positions_AL[0, length]))


def test_decoding_token_by_token_equals_a_forward_of_whole_rows(family):
    model, processor = tiny(family)
    model = adapted(model, std=0.1)
    decoder, pages = Decoder(model), iter(range(1, 40))
    prompts = ragged_prompts(model, processor)
    # Two completions of the first prompt, one of each of the others.
    of = [prompts[0], prompts[0], prompts[1], prompts[2]]
    completions = random_completions([TOKENS] * 4)
    arena = arena_for(decoder, 40)
    tables = BatchTables(
        4, 8, decoder.heads // decoder.kv_heads, decoder.width, torch.device("cpu")
    )
    rotary = decoder.rotary_tables(1000)
    with evaluating(model):
        expected_BLV = whole_rows(model, of, completions)
        requests = {
            id(p): prompt_request(model, p, [next(pages) for _ in range(-(-len(p.ids) // PAGE))])
            for p in prompts
        }
        fills = [Fill(p, (), requests[id(p)].prefix_pages, 0) for p in prompts]
        first = prefill(model, fills, arena, FeatureCache())
        for row, logits_V in zip((0, 2, 3), first, strict=True):
            assert_close(logits_V, expected_BLV[row, len(of[row].ids) - 1])
        own = [[next(pages), next(pages)] for _ in of]
        for at in range(TOKENS):
            rows = [
                sequence(requests[id(p)], at, own[r], completions[r][at]) for r, p in enumerate(of)
            ]
            tables.fill(rows, 4)
            batch = tables.rows(4)
            position_B = tables.on_device["base_position"] + batch.cached_B
            attend = attend_in_torch(decoder, batch, arena)
            token_B = tables.on_device["token"]
            hidden_BD = plain_step(decoder, token_B, rotary, position_B, attend)
            found_BV = head_logits(model, hidden_BD)
            for row, prompt in enumerate(of):
                assert_close(found_BV[row], expected_BLV[row, len(prompt.ids) + at])
        # Recomputed after a step back, the rows' own pages hold what decoding wrote.
        before = arena.clone()
        arena[[page for pair in own for page in pair]] = 0
        fills = [
            Fill(p, c, pair, len(p.ids)) for p, c, pair in zip(of, completions, own, strict=True)
        ]
        prefill(model, fills, arena, FeatureCache())
        assert_close(arena, before)


def test_fused_step_equals_the_plain_one():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_step_cases")


KERNELS = {
    "decode_attention_triton": ("parts_kernel", "join_kernel"),
    "decode_fused_triton": ("residual_norm_kernel", "rotary_cache_kernel"),
    "skinny_linear_triton": ("linear_kernel", "gated_kernel"),
    "wide_mlp_triton": ("adapted_gate_kernel", "add_adapter_kernel"),
}


@pytest.mark.parametrize("keeping", [False, True])
@pytest.mark.parametrize("rows", [1, 40])
def test_warming_compiles_every_kernel_of_the_step(family, rows, keeping, monkeypatch):
    """What is missed compiles during the capture of a graph, which fails."""
    pytest.importorskip("triton")
    import importlib

    recorders = []
    for module_name, names in KERNELS.items():
        module = importlib.import_module(f"foveal.kernels.{module_name}")
        for name in names:
            recorders.append(Recorder(getattr(module, name)))
            monkeypatch.setattr(module, name, recorders[-1])

    def variants():
        found = {launch.variant for recorder in recorders for launch in recorder.launches}
        for recorder in recorders:
            recorder.launches.clear()
        return found

    decoder = Decoder(adapted(tiny(family)[0]).half())
    groups = (group for layer in decoder.layers for group in layer.products)
    tables = BatchTables(rows, 4, decoder.heads // decoder.kv_heads, decoder.width,
                         torch.device("cpu"))  # fmt: skip
    t = tables.on_device
    tables.fill([], rows)
    step = FusedStep(decoder, PackedLora(groups, decoder.dtype), rows, decoder.dtype,
                     Workspace(decoder, rows))  # fmt: skip
    inputs = (
        t["token"], decoder.rotary_tables(9), t["base_position"], torch.zeros(1, dtype=torch.long),
        tables.rows(rows), torch.zeros(rows, decoder.vocabulary, dtype=decoder.dtype),
    )  # fmt: skip
    kept = Capture(decoder, t["cached"]).rows if keeping else None
    for task in step.warm_tasks(*inputs, kept=kept):
        task()
    warmed = variants()
    with torch.no_grad():
        step(*inputs, kept)
    launched = variants()
    assert launched and launched <= warmed, sorted(v[0] for v in launched - warmed)


# ---------------------------------------------------------------------------- why not the fused


class QuantisedLinear(nn.Linear):
    """Stands for bitsandbytes' layers, which are also subclasses of a linear layer."""


def biased(linear: nn.Linear) -> nn.Linear:
    made = nn.Linear(linear.in_features, linear.out_features, dtype=linear.weight.dtype)
    return made


def test_a_model_that_the_fused_step_would_get_wrong_is_refused(family):
    model = tiny(family)[0].half()
    assert why_not_fused(Decoder(model), interpreted=True) is None
    assert why_not_fused(Decoder(model)) == "the model is on cpu"
    assert why_not_fused(Decoder(tiny(family)[0]), interpreted=True) == "its weights are float32"

    def reason(change):
        changed = copy.deepcopy(model)
        change(changed, changed.model.language_model.layers[1])
        return why_not_fused(Decoder(changed), interpreted=True)

    def quantise(_, layer):
        layer.mlp.up_proj = QuantisedLinear(48, 80)

    def bias_of(part, name):
        return lambda _, layer: setattr(
            getattr(layer, part), name, biased(getattr(getattr(layer, part), name))
        )

    def one_bias_of_three(_, layer):
        has = layer.self_attn.k_proj.bias is not None
        bias = None if has else nn.Parameter(torch.zeros(32, dtype=torch.float16))
        layer.self_attn.k_proj.bias = bias

    def bias_head(model, _):
        model.lm_head = biased(model.lm_head)

    assert reason(quantise) == "a QuantisedLinear layer has to be called as it is"
    for part, name in (("self_attn", "o_proj"), ("mlp", "gate_proj"), ("mlp", "up_proj"),
                       ("mlp", "down_proj")):  # fmt: skip
        assert reason(bias_of(part, name)) == "a layer other than q, k and v has a bias"
    assert reason(one_bias_of_three) == "of q, k and v some have a bias and some not"
    assert reason(bias_head) == "its head is no plain linear layer without a bias"


def test_a_weight_decomposed_adapter_is_refused():
    from peft import LoraConfig, get_peft_model

    model = tiny("qwen3_vl")[0].half()
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.q_proj", use_dora=True)
    with evaluating(model):
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    reason = why_not_fused(Decoder(model), interpreted=True)
    assert reason is not None and "has to be called as it is" in reason


# ------------------------------------------------------------------------------ packed adapters


@pytest.fixture
def layers() -> Any:
    """A PEFT model: q, k, v with adapters of rank 4 on q and v and of rank 16 on q."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    sizes = {"q": 24, "k": 8, "v": 8, "plain": 8}
    base = nn.ModuleDict({n: nn.Linear(20, size, bias=False) for n, size in sizes.items()})
    small = LoraConfig(r=4, lora_alpha=12, target_modules=["q", "v"], init_lora_weights=False)
    large = LoraConfig(r=16, lora_alpha=8, target_modules=["q"], init_lora_weights=False,
                       use_rslora=True)  # fmt: skip
    model = get_peft_model(base, small)  # pyright: ignore[reportArgumentType]
    model.add_adapter("large", large)
    model.base_model.set_adapter(["default", "large"])
    modules = dict(model.base_model.model.items())  # pyright: ignore
    return SimpleNamespace(model=model, **modules)


def packed_of(layers: Any) -> PackedLora:
    return PackedLora([[layers.q, layers.k, layers.v], [layers.plain]], torch.float32)


def assert_acts_as_peft(packed: PackedLora, *modules: Any) -> None:
    x_BK = torch.randn(5, 20)
    for module in modules:
        factors, found = packed.factors(module), lora_of(module)
        assert factors is not None and found is not None
        added_BN = x_BK @ factors.a_RK.T @ factors.b_NR.T
        torch.testing.assert_close(found[0](x_BK) + added_BN, module(x_BK))


def test_packed_adapters_act_as_peft_does(layers):
    packed = packed_of(layers)
    assert packed.rank == 32, "4 and 16 together, filled up to a power of two"
    assert_acts_as_peft(packed, layers.q, layers.k, layers.v)
    k = packed.factors(layers.k)
    assert k is not None and not k.b_NR.any(), "k has none, but stands beside those that have"
    assert packed.factors(layers.plain) is None
    assert PackedLora([[layers.plain]], torch.float32).rank == 0


def test_a_change_of_the_adapters_acts_after_a_refresh(layers):
    packed = packed_of(layers)
    factors = packed.factors(layers.q)
    assert factors is not None
    address = factors.b_NR.data_ptr()
    with torch.no_grad():
        for parameter in layers.model.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.requires_grad)
    with pytest.raises(AssertionError):
        assert_acts_as_peft(packed, layers.q)
    packed.refresh()
    assert_acts_as_peft(packed, layers.q, layers.v)
    layers.q.scale_layer(0.5)
    packed.refresh()
    assert_acts_as_peft(packed, layers.q)
    # One of two off, both off, and on again: nothing of what was there is left.
    layers.model.base_model.set_adapter(["large"])
    packed.refresh()
    assert_acts_as_peft(packed, layers.q, layers.v)
    with layers.model.disable_adapter():
        packed.refresh()
        assert not factors.b_NR.any()
        assert_acts_as_peft(packed, layers.q, layers.v)
    layers.model.base_model.set_adapter(["default", "large"])
    packed.refresh()
    assert_acts_as_peft(packed, layers.q, layers.v)
    assert packed.factors(layers.q) is factors and factors.b_NR.data_ptr() == address


def test_adapters_that_were_off_when_they_were_packed_act_once_they_are_on(layers):
    with layers.model.disable_adapter():
        packed = packed_of(layers)
        factors = packed.factors(layers.q)
        assert factors is not None and not factors.b_NR.any()
    packed.refresh()
    assert_acts_as_peft(packed, layers.q, layers.v)


def test_an_adapter_that_finds_no_room_is_not_left_out_in_silence(layers):
    layers.model.base_model.set_adapter(["large"])
    packed = packed_of(layers)
    layers.model.base_model.set_adapter(["default", "large"])
    with pytest.raises(RuntimeError, match="rank 20"):
        packed.refresh()


def test_layers_with_adapters_that_cannot_be_packed_are_named(layers):
    assert lora_of(QuantisedLinear(4, 4)) is None
    found = lora_of(layers.plain)
    assert found is not None and found == (layers.plain, [])
    layers.q.lora_B["default"].bias = nn.Parameter(torch.zeros(24))
    assert lora_of(layers.q) is None
    with layers.model.disable_adapter():
        assert lora_of(layers.q) is None, "it would have to be called as soon as it is on again"
