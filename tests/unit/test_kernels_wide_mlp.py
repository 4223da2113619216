"""Gate, up and down of many rows: the references against PEFT, tiles, kernels that compile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveal.kernels import skinny_linear
from foveal.kernels.skinny_linear import Factors
from foveal.kernels.wide_mlp import (
    WideMLP,
    WideRoom,
    adapted_gate_,
    adapted_gate_reference,
    add_adapter_reference,
    gate_tiles,
    wide_mlp_reference,
)
from tests.aot import SHARED_BYTES, Launch, Recorder
from tests.interpret import run_interpreted

HIDDEN_INNER = {
    "Qwen2.5-VL-7B": (3584, 18944),
    "Gemma-3-4B": (2560, 10240),
    "Qwen3-VL-8B": (4096, 12288),
}


@pytest.mark.parametrize("gelu", [False, True])
def test_references_whole_and_in_steps_are_what_peft_computes(gelu):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    sizes = {"gate": (24, 40), "up": (24, 40), "down": (40, 24)}
    base = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})
    config = LoraConfig(r=4, lora_alpha=12, target_modules=list(sizes), init_lora_weights=False)
    layers = dict(get_peft_model(base, config).base_model.model.items())  # pyright: ignore
    x_BK, act = torch.randn(5, 24), nn.GELU(approximate="tanh") if gelu else nn.SiLU()
    expected_BD = layers["down"](act(layers["gate"](x_BK)) * layers["up"](x_BK))
    gate, up, down = factors = [
        Factors(m.lora_A["default"].weight, m.lora_B["default"].weight * 3.0)
        for m in layers.values()
    ]
    weights = [m.get_base_layer().weight for m in layers.values()]
    torch.testing.assert_close(wide_mlp_reference(x_BK, weights, factors, gelu), expected_BD)
    # Small products in unequal parts.
    low_BR = torch.cat([x_BK @ gate.a_RK.T, x_BK @ up.a_RK.T], 1)
    product_BN = adapted_gate_reference(
        x_BK @ weights[0].T, x_BK @ weights[1].T, gelu=gelu,
        low_SBR=torch.stack([0.25 * low_BR, 0.75 * low_BR]),
        b_gate_NR=gate.b_NR, b_up_NR=up.b_NR,
    )  # fmt: skip
    shares = torch.stack(
        [
            part @ a.T
            for part, a in zip(product_BN.split(16, 1), down.a_RK.split(16, 1), strict=True)
        ]
    )
    found_BD = add_adapter_reference(product_BN @ weights[2].T, shares, down.b_NR)
    torch.testing.assert_close(found_BD, expected_BD)


def test_gate_and_up_have_both_an_adapter_or_none():
    weights = [torch.zeros(16, 16)] * 3
    factor = Factors(weights[0], weights[0])
    with pytest.raises(AssertionError, match="both an adapter or none"):
        WideMLP(weights, [factor, None, None], 64, gelu=False)


def test_programs_fill_the_card_and_parts_stay_few():
    for _, inner in HIDDEN_INNER.values():
        for rank in (0, 16, 32, 64, 128):
            for rows in (33, 40, 64, 96, 128, 200, 256, 257, 1000, 6400):
                rank_down = rank if rows < 1000 else 0
                tiles = gate_tiles(rows, inner, rank, rank_down)
                assert tiles.block_b == (64 if rows > 256 and not rank_down else 16)
                case = (inner, rank, rows, tiles)
                assert tiles.block_n * tiles.block_b <= 4096 >= tiles.block_n * rank, case
                assert tiles.block_n >= 16 and tiles.columns & (tiles.columns - 1) == 0, case
                shares = tiles.shares(inner)
                assert (shares - 1) * tiles.columns < inner <= shares * tiles.columns, case
                assert shares * -(-rows // tiles.block_b) >= 128 and shares <= 80, case
    assert gate_tiles(128, 18944, 16).shares(18944) == 37


def test_triton_kernels_equal_the_references():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_wide_cases")


# ---------------------------------------------------------------------------- ahead of time


@pytest.fixture
def recorders(monkeypatch) -> list[Recorder]:
    """Stand for the kernels; they note launches."""
    pytest.importorskip("triton")
    from foveal.kernels import skinny_linear_triton, wide_mlp_triton

    made = []
    for module, name in (
        (skinny_linear_triton, "linear_kernel"),
        (wide_mlp_triton, "adapted_gate_kernel"),
        (wide_mlp_triton, "add_adapter_kernel"),
    ):
        made.append(Recorder(getattr(module, name)))
        monkeypatch.setattr(module, name, made[-1])
    return made


PROMPTS = 6400


def launched(model: str, rank: int, rows: int, half: torch.dtype, gelu: bool) -> None:
    """The kernels of a step, or of prompts without down's small product."""
    hidden, inner = HIDDEN_INNER[model]
    with torch.device("meta"):
        if rows == PROMPTS:
            gate_BN, b_NR = (torch.empty(n, inner, dtype=half) for n in (rows, rank))
            low = torch.empty(1, rows, 2 * rank, dtype=half)
            given = {"low_SBR": low, "b_gate_NR": b_NR.T, "b_up_NR": b_NR.T} if rank else {}
            adapted_gate_(gate_BN, gate_BN, gelu=gelu, **given)
            return
        shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
        weights = [torch.empty(shape, dtype=half) for shape in shapes]
        factors = [
            Factors(torch.empty(rank, k, dtype=half), torch.empty(n, rank, dtype=half))
            if rank
            else None
            for n, k in shapes
        ]
        mlp = WideMLP(weights, factors, rows, gelu=gelu)
        room = WideRoom(
            **{
                name: torch.empty(shape, dtype=torch.float32 if "low" in name else half)
                for name, shape in mlp.shapes.items()
            }
        )
        for launch in mlp.launches(torch.empty(rows, hidden, dtype=half), room):
            launch()


def compiled_on(capability: int, launches: list[Launch]) -> None:
    for launch in launches:
        compiled = launch.compile_for(capability)
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        assert compiled.metadata.shared <= SHARED_BYTES[capability]
        # Loads of 16 bytes.
        assert "ld.global.v4" in compiled.asm["ptx"] or "cp.async.cg" in compiled.asm["ptx"]


@pytest.mark.parametrize(
    ("capability", "model", "rank", "rows"),
    [
        (75, "Qwen2.5-VL-7B", 16, 64),
        (75, "Gemma-3-4B", 128, 128),
        (75, "Qwen3-VL-8B", 64, PROMPTS),
        (80, "Qwen2.5-VL-7B", 64, 40),
        (80, "Qwen2.5-VL-7B", 0, 128),
        (89, "Qwen3-VL-8B", 32, 128),
        (89, "Qwen2.5-VL-7B", 128, 512),
        (89, "Gemma-3-4B", 128, PROMPTS),
        (90, "Qwen2.5-VL-7B", 16, 128),
        (90, "Qwen2.5-VL-7B", 16, PROMPTS),
        (90, "Gemma-3-4B", 32, 64),
    ],
)
def test_kernels_compile_and_fit_on_every_card(
    capability, model, rank, rows, monkeypatch, recorders
):
    monkeypatch.setattr(skinny_linear, "_capability", lambda _: divmod(capability, 10))
    half = torch.float16 if capability == 75 else torch.bfloat16
    launched(model, rank, rows, half, gelu="Gemma" in model)
    launches = [launch for recorder in recorders for launch in recorder.launches]
    assert len(launches) == (1 if rows == PROMPTS or not rank else 3)
    compiled_on(capability, launches)
