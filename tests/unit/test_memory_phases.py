"""Seconds of phases and of their parts."""

from __future__ import annotations

import pytest
import torch

from foveal.memory.phases import PhaseMeter


def test_parts_of_a_phase_are_not_counted_into_the_step_a_second_time(monkeypatch):
    times = iter([1.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr("foveal.memory.phases.time.perf_counter", lambda: next(times))
    meter = PhaseMeter(torch.device("cpu"))
    for part in ({"vision": 0.5, "decode": 1.5}, {"decode": 0.75}):
        with meter("rollout"):
            pass
        meter.add_parts("rollout", part)
    drained = meter.drain()
    assert {k: v for k, v in drained.items() if k.startswith("time/")} == {"time/rollout": 3.0}
    assert drained["rollout_time/decode"] == pytest.approx(2.25)
    assert drained["rollout_time/vision"] == pytest.approx(0.5)
    assert not meter.drain()
