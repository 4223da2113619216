"""Who decides how torch takes memory."""

from __future__ import annotations

import pytest
import torch

from foveal.models.allocator import IDLE_BYTES, NAMES, grow_segments, make_room


@pytest.fixture
def nobody_has_decided(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr("sys.platform", "linux")
    said: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", said.append, raising=False)
    return said


def test_segments_grow_unless_somebody_has_decided_otherwise(nobody_has_decided, monkeypatch):
    assert grow_segments()
    # Torch read the environment when it was imported: only telling it acts.
    assert nobody_has_decided == ["expandable_segments:True"]
    for name in NAMES:
        with monkeypatch.context() as patch:
            patch.setenv(name, "max_split_size_mb:512")
            assert not grow_segments(), "a user's own setting would be lost"
            assert len(nobody_has_decided) == 1


@pytest.mark.parametrize("reason", ["in use", "windows"])
def test_nothing_is_set_where_it_would_not_act(nobody_has_decided, monkeypatch, reason):
    if reason == "in use":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    else:
        monkeypatch.setattr("sys.platform", "win32")
    assert not grow_segments()
    assert not nobody_has_decided


def _memory(monkeypatch, *, idle, pieces, graph_piece=0):
    """A GPU on which ``idle`` bytes are held without use, in pieces; how often they were freed."""
    blocks = [{"state": "inactive", "size": size} for size in pieces]
    blocks.append({"state": "active_allocated", "size": 1 << 40})
    graphs = [{"state": "inactive", "size": graph_piece}]
    calls: list[int] = []
    for name, value in {
        "memory_reserved": lambda _: 7 + idle,
        "memory_allocated": lambda _: 7,
        "memory_snapshot": lambda: [
            {"device": 0, "segment_pool_id": (0, 0), "blocks": blocks},
            {"device": 0, "segment_pool_id": (0, 1), "blocks": graphs},
            {"device": 1, "segment_pool_id": (0, 0), "blocks": graphs},
        ],
        "current_device": lambda: 0,
        "empty_cache": lambda: calls.append(1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return calls


@pytest.mark.parametrize("idle", [IDLE_BYTES - 1, IDLE_BYTES])
def test_memory_is_given_back_only_where_much_of_it_is_idle(monkeypatch, idle):
    calls = _memory(monkeypatch, idle=idle, pieces=[idle])
    assert make_room(torch.device("cuda"), idle + 1) is (idle >= IDLE_BYTES)
    assert len(calls) == (idle >= IDLE_BYTES)
    assert not make_room(torch.device("cpu"), idle + 1)


@pytest.mark.parametrize(("wanted", "given"), [(600 << 20, False), (601 << 20, True)])
def test_memory_in_which_the_cache_fits_is_not_given_back_at_every_step(monkeypatch, wanted, given):
    # The pool of a graph has a larger piece, which nobody else gets.
    calls = _memory(
        monkeypatch, idle=2 * IDLE_BYTES, pieces=[500 << 20, 600 << 20], graph_piece=1 << 30
    )
    assert make_room(torch.device("cuda", 0), wanted) is given
    assert make_room(torch.device("cuda"), wanted) is given
    assert len(calls) == 2 * given
