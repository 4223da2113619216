"""How long each phase of a step takes and how much memory it reaches."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch

GIB = 1 << 30


def peak_bytes(device: torch.device) -> int:
    """The most memory in use so far: on a GPU what torch allocated since the last reset, on a
    CPU the resident set of the process, which only ever grows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


class PhaseMeter:
    """Adds up seconds and notes peaks under the names of phases.

        with meter("rollout"):
            ...
        meter.drain()   # {"time/rollout": 1.2, "memory/rollout_gib": 14.9}

    Phases do not nest. A GPU is waited for at the borders of a phase, a few times a step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total_seconds: dict[str, float] = defaultdict(float)
        self.highest_bytes = 0
        self._seconds: dict[str, float] = defaultdict(float)
        self._peaks: dict[str, int] = defaultdict(int)
        self._parts: dict[str, float] = defaultdict(float)
        self._expected: int | None = None

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._settle()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._settle()
            seconds = time.perf_counter() - started
            self._seconds[phase] += seconds
            self.total_seconds[phase] += seconds
            peak = peak_bytes(self.device)
            self._peaks[phase] = max(self._peaks[phase], peak)
            self.highest_bytes = max(self.highest_bytes, peak)

    def seconds(self, *phases: str) -> float:
        """Seconds in ``phases`` since the last drain."""
        return sum(self._seconds[phase] for phase in phases)

    def add_parts(self, phase: str, seconds: Mapping[str, float]) -> None:
        """What a phase says of its own parts, by name. They lie within the phase's time, so they
        are metrics of another kind: ``rollout_time/decode`` beside ``time/rollout``."""
        for part, spent in seconds.items():
            self._parts[f"{phase}_time/{part}"] += spent

    def expect(self, peak_above: int) -> None:
        """Note what training is predicted to take above what a GPU has allocated now: it becomes
        ``memory/predicted_gib``, beside ``memory/train_gib``, until the next prediction."""
        on_gpu = self.device.type == "cuda"
        allocated = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        self._expected = allocated + peak_above

    def drain(self) -> dict[str, float]:
        """Seconds and peaks since the last drain, as metrics."""
        metrics = {f"time/{phase}": seconds for phase, seconds in self._seconds.items()}
        metrics |= {f"memory/{phase}_gib": peak / GIB for phase, peak in self._peaks.items()}
        metrics |= self._parts
        if self._expected is not None:
            metrics["memory/predicted_gib"] = self._expected / GIB
        self._seconds.clear()
        self._peaks.clear()
        self._parts.clear()
        return metrics

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
