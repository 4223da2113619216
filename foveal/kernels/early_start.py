"""Kernels of a decoded token that start before the one before them has ended.

A decoded token is some 250 launches of a few microseconds each. Between two of them a card drains,
signals and fills again, and meanwhile nothing reads memory. From compute capability 9.0 on a kernel
may be placed on the card while its predecessor still runs (programmatic dependent launch, CUDA C++
Programming Guide): it sets itself up, asks for the first of its weights, which no kernel writes,
and waits for its predecessor's results only then.

What holds the order: every kernel of the chain lets its successor start at once, and every one
waits before it reads or writes anything but weights. So a kernel that has ended has seen its
predecessor end. Kernels of others (torch, cuBLAS) start when all before them has ended, as always.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

AHEAD_LINES = 4
"""Lines of 128 bytes of each weight row that a program asks for before it waits."""


@functools.cache
def _starts_early(device: torch.device) -> bool:
    # AMD's cards report such capabilities, too.
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def early_start(tensor: Tensor) -> dict[str, Any]:
    """Keywords of a launch on the tensor's device: ``EARLY``, and the attribute that it needs."""
    if tensor.is_cuda and _starts_early(tensor.device):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


def early_read(tensor: Tensor) -> dict[str, Any]:
    """The same of a kernel that reads weights: ``AHEAD`` beside it."""
    return {**early_start(tensor), "AHEAD": AHEAD_LINES}
