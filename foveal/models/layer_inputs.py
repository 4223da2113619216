"""What the decode pass of a rollout put into each layer, kept for the training pass.

A rollout has computed, at the same weights, what a checkpointed training pass would first compute
again: each layer's input for each token. The streams lie in blocks ``[S, L, D]``, where entry l of
a token is the stream behind layer l: the input of layer l + 1, or of the last norm. The first
layer's input is the token's embedding, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.kernels.transfer import to_device


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens one after another in a block."""

    block_SLD: Tensor
    first: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class LayerInputs:
    """The streams of one completion's tokens, all but its last, which passes no layer."""

    runs: tuple[Run, ...]
    """In the order of tokens."""

    @property
    def tokens(self) -> int:
        return sum(run.tokens for run in self.runs)

    def __deepcopy__(self, memo: object) -> LayerInputs:
        """Itself: nobody writes to it, and a copy would take gigabytes."""
        return self


class PackedInputs:
    """The streams of several completions, one after another.

    Args:
        completions: of each completion its streams; some have none.
        device: where they lie.
    """

    def __init__(self, completions: Sequence[LayerInputs], device: torch.device) -> None:
        runs = [run for completion in completions for run in completion.runs]
        self.tokens = sum(run.tokens for run in runs)
        blocks = {id(run.block_SLD): run.block_SLD for run in runs}
        found: dict[int, tuple[list[Tensor], list[Tensor]]] = {key: ([], []) for key in blocks}
        at = 0
        for run in runs:
            sources, targets = found[id(run.block_SLD)]
            sources.append(torch.arange(run.first, run.first + run.tokens))
            targets.append(torch.arange(at, at + run.tokens))
            at += run.tokens
        self._parts = [
            (block, *(to_device(torch.cat(places), device) for places in found[key]))
            for key, block in blocks.items()
        ]

    def behind(self, layer: int) -> Tensor:
        """The residual stream ``[N, D]`` behind a layer, a copy."""
        if len(self._parts) == 1:
            block_SLD, source_N, _ = self._parts[0]
            return block_SLD[:, layer].index_select(0, source_N)
        block_SLD = self._parts[0][0]
        x_ND = block_SLD.new_empty(self.tokens, block_SLD.shape[-1])
        for block_SLD, source_M, target_M in self._parts:
            x_ND.index_copy_(0, target_M, block_SLD[:, layer].index_select(0, source_M))
        return x_ND
