"""What tells a rollout that weights have changed since the last one, and how far.

structure_of     other layers, adapters or places: graphs have to be captured anew
fingerprint_of   other values: the prompts in the cache are stale
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from foveal.models.decoder import Decoder


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """As ``model.parameters()`` gives them, shared ones as often as they are shared; that walk
    takes several times as long."""
    return [p for m in model.modules() for p in m._parameters.values() if p is not None]


def structure_of(decoder: Decoder, parameters: Sequence[nn.Parameter]) -> Any:
    """What captured graphs rely on: which layers and adapters there are, and where weights lie."""
    return (
        decoder.head.weight.data_ptr(),
        decoder.embed.weight.data_ptr(),
        tuple((id(m), m.weight.data_ptr(), _adapters(m)) for m in _linears(decoder)),
        tuple(map(id, parameters)),
    )


def _adapters(linear: Any) -> Any:
    """Rank and scale of a layer's adapters, and which of them are in use."""
    if not hasattr(linear, "lora_A"):
        return None
    parts = (linear.r, linear.scaling)
    return tuple(tuple(p.items()) for p in parts), tuple(linear.active_adapters), linear.merged


def switches_of(decoder: Decoder) -> tuple[bool, ...]:
    """Whose adapter is off."""
    return tuple(getattr(m, "disable_adapters", False) for m in _linears(decoder))


def _linears(decoder: Decoder) -> list[Any]:
    return [module for group in decoder.products for module in group]


def fingerprint_of(parameters: Sequence[nn.Parameter], switches: tuple[bool, ...]) -> Any:
    """Changes when weights do, or when an adapter is switched: whatever torch writes moves version
    counters, of frozen weights too. Writes to ``.data`` do not; for trainable weights the norms
    show them."""
    trained = [p.detach() for p in parameters if p.requires_grad]
    norms = torch.stack(torch._foreach_norm(trained)).tolist() if trained else []
    return tuple(p._version for p in parameters), switches, norms
