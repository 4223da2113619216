"""Who decides how torch takes memory."""

from __future__ import annotations

import pytest
import torch

from foveal.models.allocator import NAMES, grow_segments


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
