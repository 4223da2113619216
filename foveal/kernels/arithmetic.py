"""Which type a product is computed in, and products of 16-bit factors kept in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which a linear layer computes on ``x``: autocast's where it is on."""
    # Autocast leaves float64 alone.
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def as_typed(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which products are computed in the types of their factors."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of 16-bit factors, summed and returned in float32; wider factors as they are."""
    with as_typed(a):
        if a.element_size() > 2:
            return a @ b
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()
