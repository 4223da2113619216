"""Kernels that start before the one before has ended must not touch its results too soon."""

from __future__ import annotations

import importlib
import re

import pytest
import torch

from foveal.kernels import decode_attention, decode_fused, early_start, skinny_linear, wide_mlp
from foveal.models.decoder import Decoder
from foveal.models.fused_decoder import FusedStep, Workspace
from foveal.models.packed_lora import PackedLora
from foveal.rollout.tables import BatchTables
from foveal.testing import tiny
from tests.aot import Recorder
from tests.unit.test_models_decoder import KERNELS, adapted

MEMORY = re.compile(r"\b(ld|st|red|atom)\.global|cp\.async")
EARLY = {"EARLY": True, "launch_pdl": True}


def launches_of_a_step(monkeypatch, family, rows, early):
    """Every kernel of one step, with what it is launched with."""
    if early:
        for module in (decode_attention, decode_fused, wide_mlp):
            monkeypatch.setattr(module, "early_start", lambda _: EARLY)
        monkeypatch.setattr(skinny_linear, "early_read", lambda _: {**EARLY, "AHEAD": 4})
    recorders = []
    for module_name, names in KERNELS.items():
        module = importlib.import_module(f"foveal.kernels.{module_name}")
        for name in names:
            recorders.append(Recorder(getattr(module, name)))
            monkeypatch.setattr(module, name, recorders[-1])
    decoder = Decoder(adapted(tiny(family)[0]).half())
    tables = BatchTables(rows, 4, decoder.heads // decoder.kv_heads, decoder.width,
                         torch.device("cpu"))  # fmt: skip
    t = tables.on_device
    tables.fill([], rows)
    groups = (group for layer in decoder.layers for group in layer.products)
    step = FusedStep(decoder, PackedLora(groups, decoder.dtype), rows, decoder.dtype,
                     Workspace(decoder, rows))  # fmt: skip
    with torch.no_grad():
        step(
            t["token"], decoder.rotary_tables(9), t["base_position"],
            torch.zeros(1, dtype=torch.long), tables.rows(rows),
            torch.zeros(rows, decoder.vocabulary, dtype=decoder.dtype),
        )  # fmt: skip
    launches = {launch.variant: launch for r in recorders for launch in r.launches}
    return list(launches.values())


@pytest.mark.parametrize("rows", [2, 40])
def test_every_kernel_of_a_step_waits_before_it_touches_memory(family, rows, monkeypatch):
    """One that did not would read what is not written yet, and let its successor do the same."""
    pytest.importorskip("triton")
    launches = launches_of_a_step(monkeypatch, family, rows, early=True)
    assert {launch.kernel.__name__ for launch in launches} >= {"parts_kernel", "linear_kernel"}
    for launch in launches:
        assert launch.options["launch_pdl"], launch.kernel.__name__
        before, waits, after = launch.compile_for(90).asm["ptx"].partition("griddepcontrol.wait")
        assert waits and "griddepcontrol.launch_dependents" in before, launch.kernel.__name__
        assert not MEMORY.search(before), launch.kernel.__name__
        assert MEMORY.search(after), launch.kernel.__name__
        reads_weights = launch.kernel.__name__ in ("linear_kernel", "gated_kernel")
        assert ("prefetch.global.L2" in before) == reads_weights, launch.kernel.__name__


def test_older_cards_are_given_none_of_it(monkeypatch):
    """Their compilers do not know the instructions."""
    pytest.importorskip("triton")
    launches = launches_of_a_step(monkeypatch, "qwen2_5_vl", 2, early=False)
    for launch in launches:
        assert "launch_pdl" not in launch.options
        ptx = launch.compile_for(75).asm["ptx"]
        assert "griddepcontrol" not in ptx and "prefetch" not in ptx


def test_only_cards_from_9_0_on_start_early(monkeypatch):
    class Stand:
        is_cuda, device = True, None

    for capability, early in (((7, 5), False), ((8, 9), False), ((9, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        early_start._starts_early.cache_clear()
        assert early_start.early_start(Stand())["EARLY"] is early  # pyright: ignore
    monkeypatch.setattr(torch.version, "hip", "6.4")
    early_start._starts_early.cache_clear()
    assert early_start.early_start(Stand())["EARLY"] is False  # pyright: ignore
    early_start._starts_early.cache_clear()
    assert early_start.early_start(torch.zeros(1)) == {"EARLY": False}
