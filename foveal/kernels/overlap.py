"""Kernels that start while the one in front of them still runs.

Between two kernels of a stream a card stands still for a microsecond or two: the last programs of
the one end, then those of the other are placed. A decode step is some 250 kernels, each a few
microseconds of reading, so that is a tenth of it. From sm_90 on a kernel may be placed early and
wait inside (programmatic dependent launch, CUDA programming guide): it lets its own successor
start, fetches what no kernel writes (weights, into the level-2 cache), and waits for the end of
its predecessor before it touches anything else. A kernel that has waited knows that all kernels
before its predecessor have ended too, because that one waited in the same way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

PREFETCH_BYTES = 16 << 20
"""Of weights, fetched by all programs of a kernel while they wait: a third of an H100's level-2
cache, so that two kernels in a row do not drive each other's out."""
PREFETCH_PIECE = 128
"""Columns of a row fetched by one instruction."""

ALLOWED = True
"""False launches every kernel after the end of the one before it: for measurements and tests."""


def overlap(tensor: torch.Tensor) -> dict[str, Any]:
    """Keyword arguments of a kernel's launch: whether it may start early."""
    if ALLOWED and can_overlap(tensor.device):
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}


def prefetch_columns(rows: int, columns: int, share: int, element_bytes: int) -> int:
    """How many columns of its rows each program fetches while it waits; 0 for none.

    Args:
        rows: of all programs together.
        columns: of the matrix, which decides how its rows are aligned.
        share: of these, what one program reads.
    """
    if columns * element_bytes % 16 or share < PREFETCH_PIECE:
        return 0
    most = PREFETCH_BYTES // (max(1, rows) * element_bytes)
    pieces = max(1, min(most, share) // PREFETCH_PIECE)
    # A power of two, as a tile's sides are.
    return PREFETCH_PIECE << (min(pieces, 8).bit_length() - 1)


@cache
def can_overlap(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
