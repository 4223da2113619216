"""Shared by all tests: offline, few threads, GPU tests skipped with a reason."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from foveal.testing import TINY_FAMILIES, tiny

# Workers of pytest-xdist share the cores; more threads than cores make tiny models slower.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(params=list(TINY_FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny_model(family):
    """A tiny random model of each family and its processor."""
    return tiny(family)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The packs of real pictures, which lie beside the checkout."""
    folder = Path(os.environ.get("FOVEAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data packs at {folder}; set FOVEAL_DATA to their folder")
    return folder
