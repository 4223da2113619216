"""Numbers from the host to the device without a wait."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on ``device``; one of the host's is copied there in turn.

    A copy from ordinary memory waits for everything that the device has been given to do, so that
    the host cannot run ahead of it; one from pinned memory takes its turn there.
    """
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
