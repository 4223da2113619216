"""Times, peaks and statistics of steps that are still being computed.

A GPU that is asked for a number has to finish everything before it, and then idles until the host
has prepared and launched the next step. So a step's numbers are copied to the host behind its last
kernel, and read when the step after it has been launched.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping

import torch

from foveal.memory.phases import GIB, peak_bytes
from foveal.rl.stats import Stat, later_values

Mark = Callable[[], float]
"""Seconds on some clock at a place in the device's work; waits until the device has been there."""


class StepFlow:
    """The phases of the step in hand, and the step before it.

        with flow("train"):
            ...
        for metrics in flow.close(stats): ...   # of the step before; nothing for the first
        for metrics in flow.finish(): ...       # of what is left

    On a GPU a phase lasts from the end of the work that was given before it to the end of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total_seconds: dict[str, float] = defaultdict(float)
        """Of each phase, as far as steps have been read."""
        self._phases: list[tuple[str, Mark, Mark]] = []
        self._peaks: dict[str, int] = defaultdict(int)
        self._closed: deque[Callable[[], dict[str, float]]] = deque()
        self._origin = None if device.type != "cuda" else torch.cuda.Event(enable_timing=True)
        if self._origin is not None:
            self._origin.record()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = self._mark()
        try:
            yield
        finally:
            self._phases.append((phase, started, self._mark()))
            # The allocator keeps its count when memory is asked for, so there is nothing to await.
            self._peaks[phase] = max(self._peaks[phase], peak_bytes(self.device))

    def close(self, stats: Mapping[str, Stat]) -> list[dict[str, float]]:
        """End the step in hand; metrics of the one before, if there is one.

        Args:
            stats: of the step that ends.
        """
        self._closed.append(self._reader(stats))
        return [self._closed.popleft()() for _ in range(len(self._closed) - 1)]

    def finish(self) -> list[dict[str, float]]:
        """Metrics of all steps that have not been read; the device is waited for."""
        return [self._closed.popleft()() for _ in range(len(self._closed))]

    def _reader(self, stats: Mapping[str, Stat]) -> Callable[[], dict[str, float]]:
        phases, peaks, values = self._phases, dict(self._peaks), later_values(stats)
        self._phases = []
        self._peaks.clear()

        def read() -> dict[str, float]:
            seconds: dict[str, float] = defaultdict(float)
            for phase, started, ended in phases:
                seconds[phase] += ended() - started()
            for phase, spent in seconds.items():
                self.total_seconds[phase] += spent
            metrics = {f"time/{phase}": spent for phase, spent in seconds.items()}
            metrics |= {f"memory/{phase}_gib": peak / GIB for phase, peak in peaks.items()}
            return metrics | values()

        return read

    def _mark(self) -> Mark:
        origin = self._origin
        if origin is None:
            now = time.perf_counter()
            return lambda: now
        here = torch.cuda.Event(enable_timing=True)
        here.record()

        def seconds() -> float:
            here.synchronize()
            return origin.elapsed_time(here) / 1e3

        return seconds
