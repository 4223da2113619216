"""When memory that nobody uses goes back to the GPU."""

from __future__ import annotations

import pytest
import torch

from foveal.memory.idle import IDLE_BYTES, idle_bytes, make_room


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


def test_what_graphs_hold_is_not_counted_as_free(monkeypatch):
    segments = [
        {"device": 0, "segment_pool_id": (0, 0), "total_size": 50, "allocated_size": 20},
        {"device": 0, "segment_pool_id": (0, 1), "total_size": 700, "allocated_size": 0},
        {"device": 1, "segment_pool_id": (0, 0), "total_size": 9000, "allocated_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert idle_bytes(torch.device("cuda", 0)) == 30
