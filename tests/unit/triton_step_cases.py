"""The fused decode step against the plain one, in Triton's interpreter.

Run by test_models_decoder.py in a Python of its own with a family's name; see tests/interpret.py.
"""

from __future__ import annotations

import copy
import math

import torch

from foveal import FastVisionModel
from foveal.kernels import decode_attention
from foveal.kernels.kept_rows import NOWHERE, KeptRows
from foveal.models.decoder import Decoder, plain_step
from foveal.models.fused_decoder import FusedStep, Workspace, why_not_fused
from foveal.models.packed_lora import PackedLora
from foveal.models.precision import evaluating
from foveal.models.prefill import head_logits
from foveal.rollout.tables import BatchTables
from foveal.testing import TINY_FAMILIES, tiny
from tests.decoding import arena_for, attend_in_torch, request, sequence

# Programs are slow here.
decode_attention.PREFIX_PROGRAMS = 2
decode_attention.PARTS_IN_FLIGHT = 16

REAL = 3


def tables(decoder, padded):
    """Two rows of a prompt, one at a page's border, one of another prompt, and rows of padding."""
    first, second = request(70, [1, 2], base_position=40), request(30, [3], base_position=30)
    made = BatchTables(
        padded, 4, decoder.heads // decoder.kv_heads, decoder.width, torch.device("cpu")
    )
    made.fill(
        [
            sequence(first, 0, [4], 5),
            sequence(first, 64, [5, 6], 6),
            sequence(second, 9, [7], 7),
        ],
        padded,
    )
    return made.on_device["token"], made.on_device["base_position"], made.rows(padded)


def places(decoder, rows):
    """A place for each row that is none of padding."""
    kept_SLD = torch.full((REAL, len(decoder.layers), decoder.hidden), math.nan)
    kept_SLD = kept_SLD.to(decoder.residual_dtype)
    first_B = torch.full_like(rows.cached_B, NOWHERE)
    first_B[:REAL] = torch.arange(REAL) - rows.cached_B[:REAL]
    address = torch.tensor([kept_SLD.data_ptr()])
    layers, dtype = len(decoder.layers), decoder.residual_dtype
    return kept_SLD, KeptRows(address, first_B, rows.cached_B, layers, dtype)


def step_equals_plain(family, padded):
    torch.manual_seed(0)
    model, _ = tiny(family)
    model = FastVisionModel.get_peft_model(model, r=4, finetune_vision_layers=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    half = copy.deepcopy(model).half()
    decoder, half_decoder = Decoder(model), Decoder(half)
    assert why_not_fused(half_decoder, interpreted=True) is None
    token_B, base_B, rows = tables(decoder, padded)
    arena = arena_for(decoder, 10, seed=1).half().float()
    half_arena = arena.half()
    streams_LBD = []
    with evaluating(model):
        attend = attend_in_torch(decoder, rows, arena)
        position_B = base_B + rows.cached_B
        hidden_BD = plain_step(
            decoder, token_B, decoder.rotary_tables(200), position_B, attend,
            lambda _, x_BD: streams_LBD.append(x_BD.clone()),
        )  # fmt: skip
        expected_BV = head_logits(model, hidden_BD)[:REAL]
    groups = (group for layer in half_decoder.layers for group in layer.products)
    step = FusedStep(
        half_decoder, PackedLora(groups, torch.float16), padded, torch.float16,
        Workspace(half_decoder, padded + 1),
    )  # fmt: skip
    logits_BV = torch.full((padded, decoder.vocabulary), math.nan, dtype=torch.float16)
    address = torch.tensor([half_arena.data_ptr()])
    kept_SLD, kept = places(half_decoder, rows)
    with torch.no_grad():
        step(token_B, half_decoder.rotary_tables(200), base_B, address, rows, logits_BV, kept)
    found_BV = logits_BV[:REAL].float()
    error = ((found_BV - expected_BV).norm() / expected_BV.norm()).item()
    assert error < 0.02, f"{family}, {padded} rows: logits differ by {error:.4f}"
    assert torch.equal(found_BV.argmax(-1), expected_BV.argmax(-1))
    expected_SLD = torch.stack(streams_LBD, dim=1)[:REAL]
    error = (kept_SLD.float() - expected_SLD).norm(dim=(0, 2)) / expected_SLD.norm(dim=(0, 2))
    assert (error < 0.01).all(), f"{family}, {padded} rows: kept streams differ by {error}"
    # Page 0 takes the padding row's keys.
    error = ((half_arena.float() - arena)[1:].norm() / arena[1:].norm()).item()
    assert error < 3e-3, f"{family}, {padded} rows: caches differ by {error:.5f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in TINY_FAMILIES:
        step_equals_plain(name, 4)
    # Enough for the vendor's products; this family norms them, too.
    step_equals_plain("gemma3", 33)
