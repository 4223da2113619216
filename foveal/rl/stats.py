"""Numbers of one micro-batch that can be put together with those of the next.

An average of averages is wrong as soon as micro-batches differ in size, so a statistic here is what
an average is made of. Its class says how two of them combine:

    Mean   total and count both add; the value is total / count
    Sum    adds
    Min    the smaller one;  Max  the larger one

Values are detached 0-dimensional tensors and stay on their device: nothing here waits for the GPU
before ``stat_values`` asks for floats, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mean:
    """``total / count``; 0 where nothing was counted, as in TRL."""

    total: Tensor
    count: Tensor

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> Tensor:
        return self.total / self.count.clamp(min=1)


@dataclass(frozen=True, slots=True)
class Sum:
    """Shares of one number, such as the loss of a step."""

    total: Tensor

    def merge(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)

    def value(self) -> Tensor:
        return self.total


@dataclass(frozen=True, slots=True)
class Min:
    """The smallest seen; +inf stands for "nothing seen" and has the value NaN."""

    smallest: Tensor

    def merge(self, other: Min) -> Min:
        return Min(torch.minimum(self.smallest, other.smallest))

    def value(self) -> Tensor:
        return self.smallest.masked_fill(self.smallest == torch.inf, torch.nan)


@dataclass(frozen=True, slots=True)
class Max:
    """The largest seen; -inf stands for "nothing seen" and has the value NaN."""

    largest: Tensor

    def merge(self, other: Max) -> Max:
        return Max(torch.maximum(self.largest, other.largest))

    def value(self) -> Tensor:
        return self.largest.masked_fill(self.largest == -torch.inf, torch.nan)


Stat = Mean | Sum | Min | Max


def merge_stats(*parts: Mapping[str, Stat]) -> dict[str, Stat]:
    """Statistics of several micro-batches as those of all their rows.

    A name may be missing from some of the parts. Raises TypeError if one name has two classes.
    """
    merged: dict[str, Stat] = {}
    for part in parts:
        for name, stat in part.items():
            seen = merged.get(name, stat)
            if type(seen) is not type(stat):
                kinds = f"{type(seen).__name__} and {type(stat).__name__}"
                raise TypeError(f"statistic {name!r} is both {kinds}; give it one class everywhere")
            merged[name] = seen.merge(stat) if name in merged else stat  # pyright: ignore
    return merged


def stat_values(stats: Mapping[str, Stat]) -> dict[str, float]:
    """Every statistic as a float, in one transfer from the device."""
    return later_values(stats)()


def later_values(stats: Mapping[str, Stat]) -> Callable[[], dict[str, float]]:
    """``stat_values`` in two parts: the transfer is asked for now, and waited for when called."""
    if not stats:
        return dict
    values = torch.stack([stat.value().double() for stat in stats.values()])
    there = values.to("cpu", non_blocking=True)
    ready = None
    if values.is_cuda:
        ready = torch.cuda.Event()
        ready.record()

    def read() -> dict[str, float]:
        if ready is not None:
            ready.synchronize()
        return dict(zip(stats, there.tolist(), strict=True))

    return read


def token_mean(value_BT: Tensor, mask_BT: Tensor) -> Mean:
    """Mean over the unmasked tokens. ``value_BT`` may be ``[B, 1]``: one value for every token."""
    value_BT = value_BT.detach().expand_as(mask_BT)
    return Mean(value_BT.where(mask_BT, 0).sum(), mask_BT.sum())


def row_mean(value_B1: Tensor) -> Mean:
    """Mean over rows, rows without a token included."""
    value_B1 = value_B1.detach()
    return Mean(value_B1.sum(), value_B1.new_full((), value_B1.shape[0]))


def lowest(value: Tensor, valid: Tensor) -> Min:
    """The smallest entry where ``valid``."""
    return Min(_extreme(value, valid, torch.inf).amin())


def highest(value: Tensor, valid: Tensor) -> Max:
    """The largest entry where ``valid``."""
    return Max(_extreme(value, valid, -torch.inf).amax())


def _extreme(value: Tensor, valid: Tensor, nothing: float) -> Tensor:
    chosen = value.detach().where(valid, nothing).flatten()
    # One entry more, so that a micro-batch without a row has an extreme as well.
    return torch.cat([chosen, chosen.new_full((1,), nothing)])
