"""What all runs share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _libraries_are_no_garbage() -> Iterator[None]:
    """Every training run collects garbage first; going through all of torch takes a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
