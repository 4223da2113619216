"""One decode step as a CUDA graph: hundreds of launches become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class GraphStep:
    """Captures ``run`` once; calling it replays the capture.

    Args:
        run: launches work on tensors whose addresses do not change; must not wait for the device.
        pool: memory shared by graphs that never run at the same time.

    A graph holds addresses, not tensors, so ``run`` is kept: what it alone owns (workspaces) would
    be freed otherwise, and replays would write into whatever was put there next.
    """

    def __init__(self, run: Callable[[], None], pool: Any) -> None:
        self._run = run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Once without capture: libraries set up their workspaces at a first call.
            run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            run()

    def __call__(self) -> None:
        self._graph.replay()
