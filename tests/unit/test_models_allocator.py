"""Who decides how torch takes memory."""

from __future__ import annotations

import os

import pytest
import torch

from foveal.models.allocator import NAMES, grow_segments


@pytest.fixture
def nobody_has_decided(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr("sys.platform", "linux")
    # So that what is set is taken back after the test.
    monkeypatch.setenv(NAMES[0], "")
    monkeypatch.delenv(NAMES[0])


@pytest.mark.usefixtures("nobody_has_decided")
def test_segments_grow_unless_somebody_has_decided_otherwise(monkeypatch):
    assert grow_segments()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in NAMES:
        with monkeypatch.context() as patch:
            patch.delenv("PYTORCH_ALLOC_CONF", raising=False)
            patch.setenv(name, "max_split_size_mb:512")
            assert not grow_segments(), "a user's own setting would be lost"
            assert os.environ[name] == "max_split_size_mb:512"


@pytest.mark.usefixtures("nobody_has_decided")
@pytest.mark.parametrize("reason", ["in use", "windows"])
def test_nothing_is_set_where_it_would_not_act(monkeypatch, reason):
    if reason == "in use":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    else:
        monkeypatch.setattr("sys.platform", "win32")
    assert not grow_segments()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
