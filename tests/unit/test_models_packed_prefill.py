"""Prompts side by side without padding: the same logits and pages as through the stock modules.

The kernels have tests of their own; here their references stand in, so that everything around
them is checked in float32.
"""

from __future__ import annotations

import torch

from foveal import FastVisionModel
from foveal.kernels.decode_fused import (
    residual_norm_reference,
    rms_norm_reference,
    rotate_reference,
    write_cache,
)
from foveal.kernels.wide_mlp import adapted_gate_reference
from foveal.models import packed_prefill
from foveal.models.decoder import Decoder
from foveal.models.forward import FeatureCache
from foveal.models.packed_lora import PackedLora
from foveal.models.precision import evaluating
from foveal.models.prefill import Fill, prefill
from foveal.types import PAGE
from tests.decoding import arena_for
from tests.samples import ragged_prompts


def use_references(monkeypatch, arena):
    def residual_norm(parts_SBD, residual_BD, before_D, out_BD, *, after_D=None, **options):
        residual, normed = residual_norm_reference(
            parts_SBD, residual_BD, before_D, after_D=after_D, half=torch.float32, **options
        )
        residual_BD.copy_(residual)
        out_BD.copy_(normed)

    def rotary_cache(
        parts, biases, norms, cos_TC, sin_TC, q_BHC, address, offset, stride, rows, base_B,
        *, kv_heads, cache_dtype, eps, add_one,
    ):  # fmt: skip
        assert biases is None, "linear layers have added them"
        heads, width = q_BHC.shape[1:]
        all_heads = parts.sum(0).view(len(q_BHC), -1, width)
        q, k, v = all_heads.split([heads, kv_heads, kv_heads], dim=1)
        if norms is not None:
            q, k = (
                rms_norm_reference(x, weight, eps, add_one, torch.float32)
                for x, weight in zip((q, k), norms, strict=True)
            )
        at_B = (base_B + rows.cached_B).long()
        q, k = (rotate_reference(x, cos_TC[at_B], sin_TC[at_B]) for x in (q, k))
        q_BHC.copy_(q)
        write_cache(arena, offset // arena.stride(1), rows, k, v)

    def adapted_gate_(gate_BN, up_BN, **options):
        gate_BN.copy_(adapted_gate_reference(gate_BN, up_BN, **options))

    monkeypatch.setattr(packed_prefill, "residual_norm", residual_norm)
    monkeypatch.setattr(packed_prefill, "adapted_gate_", adapted_gate_)
    monkeypatch.setattr(packed_prefill, "rotary_cache", rotary_cache)


def test_prompts_of_all_kinds_side_by_side_equal_the_stock_modules(tiny_model, monkeypatch):
    """One picture, two pictures and none; pages in no order; adapters that matter."""
    model, processor = tiny_model
    prompts = ragged_prompts(model, processor)
    model = FastVisionModel.get_peft_model(model, r=4, finetune_vision_layers=False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    free = iter([5, 2, 9, 1, 7, 3, 8, 4, 6])
    fills = [Fill(p, (), [next(free) for _ in range(-(-len(p.ids) // PAGE))], 0) for p in prompts]
    assert any(len(fill.pages) > 1 for fill in fills)
    decoder = Decoder(model)
    arena, expected_arena = arena_for(decoder, 10), arena_for(decoder, 10)
    use_references(monkeypatch, arena)
    with evaluating(model):
        expected_BV = prefill(model, fills, expected_arena, FeatureCache())
        found_BV = packed_prefill.packed_prefill(
            decoder, PackedLora(decoder.products, decoder.dtype), fills, arena,
            torch.tensor([arena.data_ptr()]), FeatureCache(),
        )  # fmt: skip
    scale = expected_BV.abs().max()
    assert (found_BV - expected_BV).abs().max() < 2e-5 * scale
    assert (arena - expected_arena).abs().max() < 2e-5 * expected_arena.abs().max()
