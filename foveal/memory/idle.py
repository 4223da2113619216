"""What torch holds of a GPU's memory without using it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

IDLE_BYTES = 1 << 30
"""Idle memory below this is not worth the wait that giving it back costs."""


def idle_bytes(device: torch.device) -> int:
    """All of it."""
    return sum(s["total_size"] - s["allocated_size"] for s in _segments(device))


def make_room(device: torch.device, size: int) -> bool:
    """Hand idle memory back to the GPU, where none of it is one piece of ``size`` bytes.

    Such a piece would be taken from the GPU beside it. Where one fits nothing is given back: to map
    gigabytes anew between the phases of every step takes time (docs/performance.md, a whole step).

    Args:
        size: bytes.

    Returns:
        Whether it was done; not where less than a gigabyte is idle.
    """
    if device.type != "cuda":
        return False
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if idle < IDLE_BYTES or _largest(device) >= size:
        return False
    torch.cuda.empty_cache()
    return True


def _largest(device: torch.device) -> int:
    """Bytes of the largest idle piece."""
    blocks = (block for segment in _segments(device) for block in segment["blocks"])
    return max((block["size"] for block in blocks if block["state"] == "inactive"), default=0)


def _segments(device: torch.device) -> Iterator[dict[str, Any]]:
    """Of the pool that everybody shares: those of CUDA graphs belong to the graphs alone."""
    index = torch.cuda.current_device() if device.index is None else device.index
    for segment in torch.cuda.memory_snapshot():
        if segment["device"] == index and tuple(segment.get("segment_pool_id", (0, 0))) == (0, 0):
            yield segment
