"""What a captured step keeps, with stand-ins for CUDA's parts."""

from __future__ import annotations

import contextlib
import gc
import types
import weakref

import torch

from foveal.rollout import graphs


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
