"""Numbers of a step that are read when the next one has been launched."""

from __future__ import annotations

import pytest
import torch

from foveal.memory import phases
from foveal.rl.stats import Mean, Sum, later_values, stat_values
from foveal.train import step_flow
from foveal.train.sft_data import cores_for_workers
from foveal.train.step_flow import StepFlow

CPU = torch.device("cpu")


def loss(value: float) -> dict[str, Sum]:
    return {"loss": Sum(torch.tensor(value))}


@pytest.fixture
def flow(monkeypatch):
    """Its clock counts seconds that a test lets pass through ``flow.wait``."""
    clock = [0.0]
    monkeypatch.setattr(step_flow.time, "perf_counter", lambda: clock[0])
    made = StepFlow(CPU)

    def wait(seconds: float) -> None:
        clock[0] += seconds

    made.wait = wait  # pyright: ignore[reportAttributeAccessIssue]
    return made


def step(flow, data: float, train: float, value: float):
    with flow("data"):
        flow.wait(data)
    with flow("train"):
        flow.wait(train)
    return flow.close(loss(value))


def test_each_step_is_told_once_with_its_own_phases_and_statistics(flow):
    assert step(flow, 1, 2, 0.5) == []
    (first,) = step(flow, 3, 5, 0.25)
    (last,) = flow.finish()
    told = [(one["loss"], one["time/data"], one["time/train"]) for one in (first, last)]
    assert told == [(0.5, 1, 2), (0.25, 3, 5)]
    assert flow.finish() == []
    assert dict(flow.total_seconds) == {"data": 4, "train": 7}


def test_parts_of_a_phase_are_added_up_and_other_time_is_in_none(flow):
    for part in (1.0, 2.0):
        with flow("train"):
            flow.wait(part)
        flow.wait(10)
    flow.close(loss(0))
    (metrics,) = flow.finish()
    assert metrics["time/train"] == 3
    assert "time/data" not in metrics


def test_a_phase_that_fails_still_ends(flow):
    with pytest.raises(KeyError), flow("train"):
        flow.wait(2)
        raise KeyError("row")
    flow.close(loss(0))
    assert flow.finish()[0]["time/train"] == 2


def test_a_peak_is_of_its_own_step(flow, monkeypatch):
    peaks = iter([3 * phases.GIB, 5 * phases.GIB, 1 * phases.GIB])
    monkeypatch.setattr(step_flow, "peak_bytes", lambda device: next(peaks))
    for _ in range(2):
        with flow("train"):
            pass
    flow.close(loss(0))
    with flow("train"):
        pass
    (first,) = flow.close(loss(0))
    assert first["memory/train_gib"] == 5
    assert flow.finish()[0]["memory/train_gib"] == 1


def test_later_values_are_those_of_when_they_were_asked_for():
    total = torch.tensor(3.0)
    stats = {"loss": Sum(total), "entropy": Mean(torch.tensor(6.0), torch.tensor(4.0))}
    at_once, read = stat_values(stats), later_values(stats)
    total.add_(1)
    assert read() == at_once == {"loss": 3.0, "entropy": 1.5}
    assert later_values({})() == {}


@pytest.mark.parametrize(
    ("device", "workers", "inside"), [("cuda", 2, 1), ("cuda", 0, 3), ("cpu", 2, 3)]
)
def test_threads_are_given_up_for_workers_beside_a_gpu_alone(device, workers, inside):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError), cores_for_workers(torch.device(device), workers):
            assert torch.get_num_threads() == inside
            raise KeyError("a run that fails gives them back too")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
