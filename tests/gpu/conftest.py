from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def without_tf32() -> Iterator[None]:
    """float32 products in float32. By default cuDNN rounds the inputs of convolutions to TF32's
    10 bits, and which of its kernels runs depends on the batch."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
