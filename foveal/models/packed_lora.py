"""The trainable adapter, copied small and ready for the decode kernels.

Adapters are trained in float32 and rolled out in the base's 16 bit, which is what autocast makes
of them in the training pass too. The copy is 80 MB for a 7B model at rank 16 and takes less than
a millisecond, so it is simply taken again before every rollout: an update acts at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveal.kernels.skinny_linear import Factors


def lora_of(module: nn.Module) -> tuple[Any, list[tuple[Tensor, Tensor, float]]] | None:
    """The base layer and the live adapters ``(A, B, scale)`` of a linear layer.

    None if the layer does something that the decode kernels do not (a bias in the adapter, a
    merged adapter's variant, a layer that is not linear): it has to be called as it is then.
    """
    found = _active(module)
    off = getattr(module, "disable_adapters", False) or getattr(module, "merged", False)
    return (found[0], []) if found is not None and off else found


def base_of(module: nn.Module) -> Any:
    """The base layer of a module that :func:`lora_of` takes."""
    found = lora_of(module)
    assert found is not None, f"a {type(module).__name__} layer has to be called as it is"
    return found[0]


def _active(module: nn.Module) -> tuple[Any, list[tuple[Tensor, Tensor, float]]] | None:
    """As :func:`lora_of`, whether adapters are switched on or off at the moment."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(module, LoraLayer):
        return (module, []) if type(module) is nn.Linear else None
    layer: Any = module
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or getattr(layer, "lora_variant", None):
        return None
    live = []
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if layer.lora_B[name].bias is not None:
            return None
        live.append((layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]))
    return base, live


class PackedLora:
    """16-bit copies of all adapters of the decoder, in one piece of memory at fixed addresses.

    Args:
        groups: lists of linear layers that share their input; a group gets adapters for all of
            its layers (zeros where there is none) or for none.
        dtype: of the copies.
    """

    def __init__(self, groups: Iterable[list[nn.Module]], dtype: torch.dtype) -> None:
        groups = list(groups)
        self._all = [module for group in groups for module in group]
        # There is room for adapters that are off: they may be on at the next refresh.
        adapted = [group for group in groups if any(_rank(module) for module in group)]
        modules: list[Any] = [module for group in adapted for module in group]
        widest = max((_rank(module) for module in modules), default=0)
        self.rank = 0 if widest == 0 else max(16, 1 << (widest - 1).bit_length())
        """R: ranks of a layer's adapters together, filled up to a power of two; 0 for none."""
        total = sum(self.rank * (m.in_features + m.out_features) for m in modules)
        device = modules[0].weight.device if modules else torch.device("cpu")
        self._flat = torch.zeros(total, dtype=dtype, device=device)
        self._modules = modules
        self._factors: dict[int, Factors] = {}
        self._copies: _Copies | None = None
        at = 0
        for module in modules:
            k, n = module.in_features, module.out_features
            middle, end = at + self.rank * k, at + self.rank * (k + n)
            self._factors[id(module)] = Factors(
                self._flat[at:middle].view(self.rank, k), self._flat[middle:end].view(n, self.rank)
            )
            at = end
        self.refresh()

    @property
    def bytes(self) -> int:
        return self._flat.numel() * self._flat.element_size()

    def factors(self, module: nn.Module) -> Factors | None:
        return self._factors.get(id(module))

    @torch.no_grad()
    def refresh(self, *, unchanged: bool = False) -> None:
        """Copy the adapters as they are now; one that is switched off counts as zero.

        Args:
            unchanged: the caller knows that adapters, scales and switches are those of the last
                call and only values may differ; looking for others takes tens of milliseconds.

        Raises:
            RuntimeError: if an adapter came or grew since the pack was made.
        """
        if self._copies is None or not unchanged:
            self._copies = self._find_copies()
        c = self._copies
        if c.unused:
            torch._foreach_zero_(c.unused)
        if c.values:
            torch._foreach_copy_(c.into_a, c.values)
            torch._foreach_copy_(c.into_b, torch._foreach_mul(c.scaled, c.scales))

    def _find_copies(self) -> _Copies:
        for module in self._all:
            rank = _rank(module)
            if rank > (self.rank if id(module) in self._factors else 0):
                raise RuntimeError(
                    f"a layer's adapters have rank {rank} together, and there is no room for them "
                    "among the packed ones; make the engine after the adapters"
                )
        found = _Copies([], [], [], [], [], [])
        for module in self._modules:
            factors, at = self._factors[id(module)], 0
            for a_RK, b_NR, scale in _live(module):
                end = at + a_RK.shape[0]
                found.into_a.append(factors.a_RK[at:end])
                found.into_b.append(factors.b_NR[:, at:end])
                found.values.append(a_RK)
                found.scaled.append(b_NR)
                found.scales.append(scale)
                at = end
            if at < self.rank:
                found.unused.append(factors.b_NR[:, at:])
        return found


@dataclass(frozen=True, slots=True)
class _Copies:
    """Which adapters go where."""

    into_a: list[Tensor]
    values: list[Tensor]
    into_b: list[Tensor]
    scaled: list[Tensor]
    scales: list[float]
    unused: list[Tensor]


def _live(module: nn.Module) -> list[tuple[Tensor, Tensor, float]]:
    found = lora_of(module)
    return [] if found is None else found[1]


def _rank(module: nn.Module) -> int:
    found = _active(module)
    return 0 if found is None else sum(a_RK.shape[0] for a_RK, _, _ in found[1])
