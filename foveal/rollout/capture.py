"""Keeps what the decode pass puts into each layer, for the training pass at the same weights.

    capture.begin(demand)                    a rollout
        capture.burst(rows, bucket, steps)   places, known to the device before the burst runs
        ... decode steps write               kernels.kept_rows, inside the captured graphs
        capture.take(row, tokens)            one completion's places
    capture.end()

Places have nothing to do with the cache's pages: they outlive them. A row that steps back has its
keys computed again and goes on where it was; what its tokens put into the layers stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.kernels.kept_rows import NOWHERE, KeptRows, keep_rows_reference
from foveal.kernels.transfer import to_device
from foveal.models.decoder import Decoder
from foveal.models.layer_inputs import LayerInputs, Run
from foveal.rollout.scheduler import Sequence

BLOCK_PLACES = 8192
"""Of a block: so few blocks that reading completions back takes few launches."""
BURSTS_A_BLOCK = 8
"""At least: the end of a block is lost where a whole burst does not fit there."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a rollout may need at most, in places: one token's streams each."""

    needed: int
    burst: int
    """Of the largest burst."""

    @classmethod
    def of(cls, counts: Rows[tuple[int, int]], burst: int, at_once: int) -> Demand:
        """Of a rollout.

        Args:
            counts: of each request its completions and their ``max_tokens``.
            burst: decode steps between two looks of the host; a row may end at the first of them.
            at_once: most rows of a batch.
        """
        # A completion's last token is not fed.
        needed = sum(n * (most + burst - 2) for n, most in counts if most > 1)
        return cls(needed, min(at_once, sum(n for n, _ in counts)) * burst)

    @property
    def block(self) -> int:
        return max(BLOCK_PLACES, BURSTS_A_BLOCK * self.burst)

    @property
    def places(self) -> int:
        """Of all blocks together, what is lost at their ends included."""
        blocks = -(-self.needed // (self.block - self.burst))
        return self.needed + (blocks - 1) * self.burst if blocks else 0


class Capture:
    """The places of one rollout at a time.

    Args:
        decoder: the model's parts.
        cached: int32: own tokens of each row, at a fixed address.
    """

    def __init__(self, decoder: Decoder, cached: Tensor) -> None:
        self.layers, self.width = len(decoder.layers), decoder.hidden
        self.dtype, self.device = decoder.residual_dtype, decoder.device
        first = torch.full_like(cached, NOWHERE)
        address = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.rows = KeptRows(address, first, cached, self.layers, self.dtype)
        self._block: Tensor | None = None
        self._used = 0
        self._size = self._left = 0
        self._runs: dict[Sequence, list[Run]] = defaultdict(list)

    @property
    def token_bytes(self) -> int:
        """Of one token, all layers."""
        return self.layers * self.width * self.dtype.itemsize

    def begin(self, demand: Demand) -> None:
        """Begin a rollout that needs no more than ``demand``."""
        self.end()
        self._size, self._left = demand.block, demand.places

    def end(self) -> None:
        """Let go of the rollout; what was taken of it stays."""
        if self._block is None:
            return
        self._block, self._used = None, 0
        self._runs.clear()
        self.pause()
        self.rows.address.zero_()

    def pause(self) -> None:
        """Until the next burst no row has a place: whatever runs is not kept."""
        self.rows.first_B.fill_(NOWHERE)

    def burst(self, sequences: Rows[Sequence], bucket: int, steps: int) -> None:
        """Give every row places for the tokens that it is fed in ``steps`` steps.

        Args:
            sequences: the batch; rows of the bucket behind them are padding.
            bucket: rows of the step.
            steps: of the burst.
        """
        block = self._room(len(sequences) * steps)
        first = [NOWHERE] * bucket
        for row, sequence in enumerate(sequences):
            at = self._used + row * steps
            self._runs[sequence].append(Run(block, at, steps))
            first[row] = at - sequence.cached
        self._used += len(sequences) * steps
        rows = self.rows.first_B[:bucket]
        rows.copy_(to_device(torch.tensor(first, dtype=torch.int32), self.device))

    def write(self, layer: int, x_BD: Tensor) -> None:
        """What the kernels do, in torch: the stream behind a layer, of the whole batch."""
        assert self._block is not None, "a burst has places before it runs"
        B = len(x_BD)
        rows = self.rows.batch(B)
        keep_rows_reference(self._block, layer, rows.first_B, rows.cached_B, x_BD)

    def take(self, sequence: Sequence, tokens: int) -> LayerInputs:
        """The streams of a completion's first ``tokens`` tokens."""
        runs = []
        for run in self._runs.pop(sequence, []):
            used = min(run.tokens, tokens)
            tokens -= used
            if used:
                runs.append(Run(run.block_SLD, run.first, used))
        assert not tokens, f"{tokens} tokens were decoded and not kept"
        return LayerInputs(tuple(runs))

    def _room(self, places: int) -> Tensor:
        """The block with room for a burst; a new one where the last is full."""
        if self._block is None or self._used + places > len(self._block):
            size = max(places, min(self._size, self._left))
            self._block = torch.empty(
                size, self.layers, self.width, dtype=self.dtype, device=self.device
            )
            self._used, self._left = 0, max(0, self._left - size)
            self.rows.address.fill_(self._block.data_ptr())
        return self._block
