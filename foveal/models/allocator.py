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
