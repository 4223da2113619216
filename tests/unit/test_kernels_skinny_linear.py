"""Products of few rows: the reference against PEFT, tiles that fit, kernels that compile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveal.kernels import skinny_linear
from foveal.kernels.skinny_linear import (
    Factors,
    GatedLinear,
    SkinnyLinear,
    choose_tiles,
    gated_reference,
    skinny_linear_reference,
)
from tests.aot import SHARED_BYTES, Launch, Recorder
from tests.interpret import run_interpreted

HIDDEN_INNER_WORDS_QKV = {
    "Qwen2.5-VL-7B": (3584, 18944, 152064, (3584, 512, 512)),
    "Gemma-3-4B": (2560, 10240, 262208, (2048, 1024, 1024)),
    "Qwen3-VL-8B": (4096, 12288, 151936, (4096, 1024, 1024)),
}


def test_reference_is_what_peft_computes():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"gate": nn.Linear(24, 40, bias=False), "up": nn.Linear(24, 40, bias=False)}
    )
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["gate", "up"], init_lora_weights=False)
    layers = list(get_peft_model(model, config).base_model.model.values())
    x_BK = torch.randn(5, 24)
    factors = [
        Factors(m.lora_A["default"].weight, m.lora_B["default"].weight * 3.0) for m in layers
    ]
    weights = [m.get_base_layer().weight for m in layers]
    gate, up = (layer(x_BK) for layer in layers)
    both = skinny_linear_reference(x_BK, weights, factors)
    torch.testing.assert_close(both, torch.cat([gate, up], 1))
    for gelu, act in ((False, nn.SiLU()), (True, nn.GELU(approximate="tanh"))):
        torch.testing.assert_close(gated_reference(x_BK, weights, factors, gelu), act(gate) * up)


def test_matrices_that_share_their_input_have_all_an_adapter_or_none():
    weight = torch.zeros(16, 16)
    with pytest.raises(AssertionError, match="all an adapter or none"):
        SkinnyLinear([weight, weight], [Factors(weight, weight), None], 1)


# ---------------------------------------------------------------------------------------- tiles


def products():
    """``(K, N, adapted, options)`` of every product of the real models."""
    for hidden, inner, words, (q, k, v) in HIDDEN_INNER_WORDS_QKV.values():
        yield hidden, q + k + v, True, {}
        yield q, hidden, True, {}
        yield hidden, inner, True, {"pair": True, "split": False}
        yield inner, hidden, True, {}
        yield hidden, words, False, {"split": False}


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)])
def test_chosen_tiles_fit_every_card(capability):
    limit = skinny_linear.SHARED_BYTES[capability]
    for K, N, adapted, options in products():
        for rank in (0, 16, 32, 64, 128) if adapted else (0,):
            for rows in range(1, 129):
                t = choose_tiles(rows, K, N, rank, capability=capability, **options)
                case = (capability, K, N, rank, rows, t)
                matrices = 2 if options.get("pair") else 1
                tile_rows = matrices * (t.block_n + rank) + t.block_b
                assert t.stages * tile_rows * t.block_k * 2 <= limit, case
                assert rows <= t.block_b <= max(16, 2 * rows - 1), case
                for size in (t.block_b, t.block_n, t.block_k):
                    assert size >= 16 and size & (size - 1) == 0, case
                assert t.stages >= 1, case
                assert 1 <= t.split <= 8 and (t.split == 1 or options.get("split", True)), case
                # Each share of K is worth a program.
                assert t.split == 1 or K // t.split >= 4 * t.block_k, case


def test_a_card_between_the_known_ones_counts_as_the_one_below():
    def tiles(capability):
        return choose_tiles(16, 3584, 18944, 64, capability=capability, pair=True, split=False)

    assert tiles((8, 7)) == tiles((8, 6)) != tiles((8, 0))
    assert tiles((10, 0)) == tiles((9, 0))


# ------------------------------------------------------------------------------- Triton kernels


def test_triton_kernels_equal_the_reference():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_linear_cases")


def recorded(monkeypatch, capability, K, sizes, rank, rows, gated) -> list[Launch]:
    """The launches of a product of a real model's shape."""
    from foveal.kernels import skinny_linear_triton as kernels

    name = "gated_kernel" if gated else "linear_kernel"
    recorder = Recorder(getattr(kernels, name))
    monkeypatch.setattr(kernels, name, recorder)
    monkeypatch.setattr(skinny_linear, "_capability", lambda _: divmod(capability, 10))
    half = torch.float16 if capability == 75 else torch.bfloat16
    with torch.device("meta"):
        x_BK = torch.empty(rows, K, dtype=half)
        weights = [torch.empty(n, K, dtype=half) for n in sizes]
        factor = Factors(torch.empty(rank, K, dtype=half), torch.empty(1, rank, dtype=half))
        factors = [factor if rank else None for _ in sizes]
        if gated:
            linear = GatedLinear(weights, factors, rows, gelu=False)
            linear(x_BK, torch.empty(rows, sizes[0], dtype=half))
        else:
            linear = SkinnyLinear(weights, factors, rows)
            linear(x_BK, torch.empty(linear.parts, rows, sum(sizes)))
    assert len(recorder.launches) == 1
    return recorder.launches


@pytest.mark.parametrize(
    ("capability", "K", "sizes", "rank", "rows", "gated"),
    [
        (75, 3584, [18944, 18944], 64, 8, True),
        (75, 10240, [2560], 16, 128, False),
        (89, 4096, [12288, 12288], 128, 32, True),
        (90, 3584, [3584, 512, 512], 32, 64, False),
        (80, 18944, [3584], 128, 8, False),
        (75, 3584, [4096], 16, 128, False),
        (90, 18944, [3584], 16, 128, False),
    ],
)
def test_kernels_compile_and_fit_on_every_card(
    monkeypatch, capability, K, sizes, rank, rows, gated
):
    pytest.importorskip("triton")
    for launch in recorded(monkeypatch, capability, K, sizes, rank, rows, gated):
        compiled = launch.compile_for(capability)
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        assert compiled.metadata.shared <= SHARED_BYTES[capability]
        assert "v4" in compiled.asm["ptx"] or "cp.async.cg" in compiled.asm["ptx"]
