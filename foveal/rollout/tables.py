"""What the kernels need to know about a batch, written by the host in one copy.

All integers of a batch lie in one int32 tensor, so that a change of the batch costs a single
transfer and every kernel argument keeps its address, which captured graphs rely on.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.kernels.decode_attention import (
    PREFIX_SPLITS,
    PagedRows,
    prefix_splits,
    rows_per_chunk,
)
from foveal.types import PAGE


class BatchTables:
    """Tables for up to ``max_rows`` rows of up to ``max_pages`` pages each.

    Args:
        max_rows: B at most.
        max_pages: pages of a prompt, or of a row's own tokens, at most.
        ratio, width: query heads a key/value head, and their width: they set the chunk size.
        device: of the kernels.
    """

    def __init__(
        self, max_rows: int, max_pages: int, ratio: int, width: int, device: torch.device
    ) -> None:
        self.max_rows, self.max_pages = max_rows, max_pages
        shapes = {
            "token": (max_rows,),
            "cached": (max_rows,),
            "prompt_length": (max_rows,),
            "base_position": (max_rows,),
            "prefix_parts": (max_rows,),
            "chunk_length": (max_rows,),
            "item_count": (1,),
            "chunk_rows": (max_rows, rows_per_chunk(ratio, width)),
            "item": (max_rows * PREFIX_SPLITS, 4),
            "suffix_table": (max_rows, max_pages),
            "chunk_table": (max_rows, max_pages),
        }
        # Every table begins at a multiple of 16 bytes.
        sizes = {name: -(-int(np.prod(shape)) // 4) * 4 for name, shape in shapes.items()}
        total = sum(sizes.values())
        self._host = torch.zeros(total, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = torch.zeros(total, dtype=torch.int32, device=device)
        self._mirror: dict[str, np.ndarray] = {}
        self.on_device: dict[str, Tensor] = {}
        at = 0
        for name, shape in shapes.items():
            count = int(np.prod(shape))
            self._mirror[name] = self._host[at : at + count].view(shape).numpy()
            self.on_device[name] = self._device[at : at + count].view(shape)
            at += sizes[name]

    def rows(self, bucket: int) -> PagedRows:
        """The tables as the kernels of a batch of ``bucket`` rows take them."""
        t = self.on_device
        return PagedRows(
            cached_B=t["cached"][:bucket],
            prompt_length_B=t["prompt_length"][:bucket],
            suffix_table_BP=t["suffix_table"][:bucket],
            chunk_rows_XR=t["chunk_rows"][:bucket],
            chunk_table_XP=t["chunk_table"][:bucket],
            chunk_length_X=t["chunk_length"][:bucket],
            item_I4=t["item"],
            item_count=t["item_count"],
            prefix_parts_B=t["prefix_parts"][:bucket],
        )

    def fill(self, sequences: Rows[Any], bucket: int) -> None:
        """Describe ``sequences`` (rows of one request side by side) in a batch of ``bucket``.

        Rows past the last sequence are padding: one token each, in the scratch page.
        """
        m, count = self._mirror, len(sequences)
        for name in ("token", "cached", "prompt_length", "base_position", "prefix_parts"):
            m[name][:bucket] = 0
        m["chunk_rows"][:bucket] = -1
        m["chunk_length"][:bucket] = 0
        m["token"][:count] = [s.ids[-1] for s in sequences]
        m["cached"][:count] = [s.cached for s in sequences]
        m["prompt_length"][:count] = [s.request.prompt_tokens for s in sequences]
        m["base_position"][:count] = [s.request.payload.base_position for s in sequences]
        m["suffix_table"][:bucket] = 0
        for row, sequence in enumerate(sequences):
            m["suffix_table"][row, : len(sequence.pages)] = sequence.pages
        self._fill_chunks(sequences)
        self._device.copy_(self._host, non_blocking=True)

    def _fill_chunks(self, sequences: Rows[Any]) -> None:
        m = self._mirror
        size = m["chunk_rows"].shape[1]
        chunks = _chunks(sequences, size)
        splits = prefix_splits(len(chunks))
        items = 0
        for chunk, (first, count) in enumerate(chunks):
            request = sequences[first].request
            m["chunk_rows"][chunk, :count] = range(first, first + count)
            m["chunk_table"][chunk, : len(request.prefix_pages)] = request.prefix_pages
            m["chunk_length"][chunk] = request.prompt_tokens
            pages = -(-request.prompt_tokens // PAGE)
            stretch = -(-pages // splits) * PAGE
            starts = range(0, request.prompt_tokens, stretch)
            for slot, start in enumerate(starts):
                end = min(start + stretch, request.prompt_tokens)
                m["item"][items] = (chunk, start, end, slot)
                items += 1
            m["prefix_parts"][first : first + count] = len(starts)
        m["item_count"][0] = items


def _chunks(sequences: Rows[Any], size: int) -> list[tuple[int, int]]:
    """``(first row, rows)`` of runs of one request, at most ``size`` rows each."""
    chunks: list[tuple[int, int]] = []
    for row, sequence in enumerate(sequences):
        if chunks:
            first, count = chunks[-1]
            if count < size and sequences[first].request is sequence.request:
                chunks[-1] = (first, count + 1)
                continue
        chunks.append((row, 1))
    return chunks


class DrawnTokens:
    """Tokens and log-probabilities of a burst, each step's on its way to the host in one copy."""

    def __init__(self, steps: int, rows: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        # Eight bytes of token and four of log-probability a row, filled up to keep both aligned.
        shape = (steps, 16 * rows)
        self._flat = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)
        self.tokens, self.logprobs = self._views(self._flat, rows)
        self._tokens, self._logprobs = self._views(self._host, rows)
        self._arrived = [torch.cuda.Event() for _ in range(steps)] if pinned else []

    def fetch(self, step: int) -> None:
        """Send for what a step has drawn; does not wait."""
        self._host[step].copy_(self._flat[step], non_blocking=True)
        if self._arrived:
            self._arrived[step].record()

    def read(self, first: int, last: int, rows: int) -> list[list[tuple[int, float]]]:
        """What steps ``first`` to ``last`` have drawn, by row; waits for them."""
        if self._arrived:
            self._arrived[last - 1].synchronize()
        tokens = self._tokens[first:last, :rows].T.tolist()
        logprobs = self._logprobs[first:last, :rows].T.tolist()
        return [list(zip(*row, strict=True)) for row in zip(tokens, logprobs, strict=True)]

    @staticmethod
    def _views(flat: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        logprobs = flat[:, 8 * rows : 12 * rows].view(torch.float32)
        return flat[:, : 8 * rows].view(torch.int64), logprobs
