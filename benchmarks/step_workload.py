"""What a measured training step is made of, for every library alike: rows, settings, clock."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from models import picture_rows, size_of
from record import GIB, Record
from transformers import TrainerCallback

from foveal.memory import PhaseMeter


class StepClock(TrainerCallback):
    """When each optimizer step ended, and the memory that the last one took."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.parts: dict[str, float] = {}
        """Seconds of parts of the last step, where somebody measures them by :meth:`timed`."""
        self.peaks: tuple[int, int, int] = (0, 0, 0)
        """Bytes of the card in use; reserved by torch; allocated since torch's last reset."""
        self._running: dict[str, float] = defaultdict(float)
        self._reserved = 0

    def note_reserved(self) -> None:
        """Look at torch's peak of reserved memory; whoever resets it must call this before."""
        if torch.cuda.is_available():
            self._reserved = max(self._reserved, torch.cuda.max_memory_reserved())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(_now())
        self.parts, self._running = dict(self._running), defaultdict(float)
        self.note_reserved()
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            # CUDA itself and other processes; they hold much the same all the time.
            others = total - free - torch.cuda.memory_reserved()
            allocated = torch.cuda.max_memory_allocated()
            self.peaks = (self._reserved + others, self._reserved, allocated)
            torch.cuda.reset_peak_memory_stats()
            self._reserved = 0
        if len(self.ends) > 1:
            seconds = self.ends[-1] - self.ends[-2]
            print(f"step {len(self.ends)}: {seconds:.2f} s", flush=True)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call`` with its seconds added to a part of the step."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = _now()
            try:
                return call(*args, **kwargs)
            finally:
                self._running[part] += _now() - start

        return wrapped


class NotingMeter(PhaseMeter):
    """The trainer's meter, which resets torch's peaks at each phase; the clock looks before."""

    def __init__(self, device: torch.device, clock: StepClock) -> None:
        super().__init__(device)
        self._clock = clock

    def _settle(self) -> None:
        super()._settle()
        self._clock.note_reserved()


def step_record(clock: StepClock, arguments: argparse.Namespace) -> Record:
    """What every system's record has: times in seconds, memory in GiB (None on a CPU)."""
    tokens = arguments.prompts * arguments.completions * arguments.new_tokens
    seconds = clock.ends[-1] - clock.ends[-2]
    in_use, reserved, allocated = (peak / GIB or None for peak in clock.peaks)
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_gib": in_use,
        "reserved_gib": reserved,
        "allocated_gib": allocated,
    }


def last_step(history: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """What a trainer logged about its last step.

    Raises:
        RuntimeError: if the step was shorter than the workload asks for: a completion ended early,
            or a group had equal rewards and nothing to learn from.
    """
    logs = [entry for entry in history if "loss" in entry][-1]
    shortest = logs["completions/min_length"]
    if shortest != arguments.new_tokens or logs["frac_reward_zero_std"]:
        raise RuntimeError(
            f"the shortest completion has {shortest:.0f} tokens of {arguments.new_tokens}, and "
            f"{logs['frac_reward_zero_std']:.0%} of the groups have equal rewards; the time of "
            "such a step does not compare"
        )
    return logs


def run_settings(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Arguments that this library's GRPOConfig and TRL's take alike."""
    rows = arguments.prompts * arguments.completions
    pass_rows = min(arguments.pass_rows, rows)
    if rows % pass_rows:
        raise ValueError(
            f"--pass-rows {pass_rows} does not divide the {rows} completions of a step; choose one "
            "that does"
        )
    return {
        "output_dir": str(folder / "run"),
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "beta": 0.0,
        "temperature": 1.0,
        "num_generations": arguments.completions,
        "per_device_train_batch_size": pass_rows,
        "gradient_accumulation_steps": rows // pass_rows,
        "max_completion_length": arguments.new_tokens,
        "max_steps": arguments.num_steps,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
    }


def step_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each prompt of each step."""
    size = size_of(arguments.model, arguments.scale)
    return picture_rows(size, arguments.prompts * arguments.num_steps)


def spread_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """In [0, 1), by the tokens: texts will not do, as random ids decode to next to nothing."""
    return [sum(ids) % 1009 / 1009 for ids in completion_ids]


def base_dtype() -> torch.dtype:
    """Few CPUs multiply bf16 at any speed."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def _now() -> float:
    """Seconds, with the device's work done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
