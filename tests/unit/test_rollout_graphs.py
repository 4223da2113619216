"""What is captured, and what a captured step keeps; with stand-ins for CUDA's parts."""

from __future__ import annotations

import contextlib
import gc
import types
import weakref

import torch
from torch import nn

from foveal.models.decoder import Decoder
from foveal.rollout import graphs
from foveal.rollout.steps import Steps
from foveal.testing import tiny


def test_what_a_graph_works_on_lives_as_long_as_the_graph(monkeypatch):
    """A graph holds addresses only: a workspace that is freed after capture is written into by
    every replay, whoever owns it by then."""
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    nothing = lambda *args, **options: contextlib.nullcontext()  # noqa: E731
    cuda = types.SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=nothing,
        CUDAGraph=lambda: types.SimpleNamespace(replay=lambda: None),
        graph=nothing,
    )
    monkeypatch.setattr(graphs, "torch", types.SimpleNamespace(cuda=cuda))
    workspace = torch.zeros(3)
    alive = weakref.ref(workspace)

    def run(workspace=workspace):
        workspace.add_(1)

    step = graphs.GraphStep(run, pool=None)
    del workspace, run
    gc.collect()
    assert alive() is not None
    step()


def test_a_layer_that_waits_for_the_device_is_not_captured():
    """A capture that breaks leaves torch's generator unusable for the rest of the process."""

    class Linear8bitLt(nn.Linear):
        pass

    def why_no_graphs(**options):
        decoder = Decoder(model)
        return Steps(
            decoder, max_rows=2, max_tokens=64, cache_dtype=decoder.dtype,
            arena=lambda: torch.empty(0), **options,
        ).why_no_graphs  # fmt: skip

    model, _ = tiny("qwen2_5_vl")
    assert why_no_graphs() is None
    assert why_no_graphs(graphs=False) == "none were asked for"
    mlp = model.model.language_model.layers[0].mlp
    mlp.gate_proj = Linear8bitLt(mlp.gate_proj.in_features, mlp.gate_proj.out_features, bias=False)
    assert "8-bit layers wait" in (why_no_graphs() or "")
