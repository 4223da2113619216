"""How torch takes memory from the GPU."""

from __future__ import annotations

import os
import sys

import torch

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING")
"""Environment variables by which somebody has decided already."""


def grow_segments() -> bool:
    """Let torch map memory page by page where it grows, rather than in pieces of fixed size.

    Rollouts and training want pieces of other sizes from the same memory. In fixed pieces some of
    it is held and fits neither: with the 7B model of benchmarks/step.py, 2 GiB.

    Returns:
        Whether it was set; not where the environment says how, where the GPU is in use already,
        or where torch cannot do it (outside of Linux, or a version without the setting).
    """
    taken = any(name in os.environ for name in NAMES)
    if taken or not sys.platform.startswith("linux") or torch.cuda.is_initialized():
        return False
    # Torch reads the environment when it is imported, so that comes too late here.
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if change is None:
        return False
    change("expandable_segments:True")
    return True


IDLE_BYTES = 1 << 30
"""Idle memory below this is not worth the wait that giving it back costs."""


def make_room(device: torch.device, size: int) -> bool:
    """Hand memory that torch holds and nobody uses back to the GPU, where none of it is one piece
    of ``size`` bytes.

    Such a piece would be taken from the GPU beside it. Where one fits nothing is given back: memory
    that is handed over and taken again between the phases of every step costs a 7B model half a
    second of ten.

    Returns:
        Whether it was done; not where less than a gigabyte is idle.
    """
    if device.type != "cuda":
        return False
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if idle < IDLE_BYTES or _largest_idle(device) >= size:
        return False
    torch.cuda.empty_cache()
    return True


def _largest_idle(device: torch.device) -> int:
    """Bytes of the largest idle piece; those of CUDA graphs belong to the graphs alone."""
    index = torch.cuda.current_device() if device.index is None else device.index
    idle = [
        block["size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == index and tuple(segment.get("segment_pool_id", (0, 0))) == (0, 0)
        for block in segment["blocks"]
        if block["state"] == "inactive"
    ]
    return max(idle, default=0)
