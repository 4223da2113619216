"""Rows in a paged cache, and their attention written out row by row from a list of places."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveal.kernels.decode_attention import PREFIX_SPLITS, PagedRows, rows_per_chunk
from foveal.types import PAGE

Place = tuple[int, int]
"""A page and a place in it."""


@dataclass(frozen=True)
class PagedCase:
    """Rows, the cache they read, and where each row's keys lie, in order of position."""

    rows: PagedRows
    arena: Tensor
    places: list[list[Place]]

    def with_junk(self, value: float, keep: Sequence[int]) -> PagedCase:
        """The same with ``value`` in every place that no row of ``keep`` may see.

        The scratch page stays as it is: it always holds numbers.
        """
        arena = torch.full_like(self.arena, value)
        arena[0] = self.arena[0]
        for row in keep:
            for page, place in self.places[row]:
                arena[page, :, :, :, place] = self.arena[page, :, :, :, place]
        return replace(self, arena=arena)


def paged_case(
    groups: Sequence[tuple[int, list[int]]],
    *,
    ratio: int,
    kv_heads: int,
    width: int,
    padding: int = 0,
    stretch_pages: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PagedCase:
    """Rows of several prompts in a cache of two layers, pages in no order.

    Args:
        groups: ``(prompt tokens, tokens of its own in the cache for each row)``.
        padding: rows at the end without a prompt, in the scratch page.
        stretch_pages: pages of a prompt that one item covers, more where there are many.
    """
    size = rows_per_chunk(ratio, width)
    cached = [c for _, own in groups for c in own] + [0] * padding
    needed = sum(-(-n // PAGE) for n, _ in groups) + sum(c // PAGE + 1 for c in cached)
    chance = random.Random(seed)
    free = list(range(1, needed + 3))
    chance.shuffle(free)
    B, P = len(cached), 12
    prompt, parts = [0] * B, [0] * B
    suffix_BP, chunk_table, chunk_length, chunk_rows, items = [], [], [], [], []
    places: list[list[Place]] = []
    for length, own in groups:
        pages = [free.pop() for _ in range(-(-length // PAGE))]
        stretch = max(stretch_pages, -(-len(pages) // PREFIX_SPLITS)) * PAGE
        starts = range(0, length, stretch)
        for first in range(0, len(own), size):
            items += [
                (len(chunk_rows), t, min(t + stretch, length), s) for s, t in enumerate(starts)
            ]
            members = range(len(places), len(places) + len(own[first : first + size]))
            chunk_rows.append([*members] + [-1] * (size - len(members)))
            chunk_table.append(pages + [0] * (P - len(pages)))
            chunk_length.append(length)
            for row, count in zip(members, own[first : first + size], strict=True):
                mine = [free.pop() for _ in range(count // PAGE + 1)]
                suffix_BP.append(mine + [0] * (P - len(mine)))
                prompt[row], parts[row] = length, len(starts)
                at = [(pages[t // PAGE], t % PAGE) for t in range(length)]
                places.append(at + [(mine[t // PAGE], t % PAGE) for t in range(count + 1)])
    places += [[(0, 0)]] * padding
    empty = B - len(chunk_rows)
    items += [(0, 0, 0, 0)] * 4
    generator = torch.Generator().manual_seed(seed)
    shape = (needed + 3, 2, 2, kv_heads, PAGE, width)

    def table(values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    rows = PagedRows(
        cached_B=table(cached),
        prompt_length_B=table(prompt),
        suffix_table_BP=table(suffix_BP + [[0] * P] * padding),
        chunk_rows_XR=table(chunk_rows + [[-1] * size] * empty),
        chunk_table_XP=table(chunk_table + [[0] * P] * empty),
        chunk_length_X=table(chunk_length + [0] * empty),
        item_I4=table(items),
        item_count=table([len(items) - 4]),
        prefix_parts_B=table(parts),
    )
    return PagedCase(rows, torch.randn(shape, generator=generator).to(dtype), places)


def dense_attention(
    q_BHC: Tensor, case: PagedCase, layer: int, *, scale: float, window: int, softcap: float
) -> Tensor:
    """Softmax attention in float64, one row after the other, keys fetched one by one."""
    out_BHC = torch.empty_like(q_BHC, dtype=torch.float64)
    for row, places in enumerate(case.places):
        seen = places[-window:] if window else places
        pages, at = (torch.tensor(x) for x in zip(*seen, strict=True))
        # [T, 2, K, C]
        found = case.arena.double()[pages, layer, :, :, at]
        ratio = q_BHC.shape[1] // found.shape[2]
        k_THC, v_THC = (found[:, i].repeat_interleave(ratio, 1) for i in range(2))
        score_HT = torch.einsum("hc,thc->ht", q_BHC[row].double(), k_THC) * scale
        if softcap:
            score_HT = softcap * torch.tanh(score_HT / softcap)
        out_BHC[row] = torch.einsum("ht,thc->hc", score_HT.softmax(-1), v_THC)
    return out_BHC


def queries(case: PagedCase, ratio: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Queries ``[B, H, C]`` for every row of a case."""
    heads, width = case.arena.shape[3] * ratio, case.arena.shape[5]
    generator = torch.Generator().manual_seed(99)
    shape = (len(case.places), heads, width)
    return torch.randn(shape, generator=generator).to(dtype)


SMALL = {"kv_heads": 2, "width": 16}
CASES = {
    # Own tokens at each border of a page, a prompt of exactly a page, a group of one.
    "page borders": ([(64, [0, 62, 63, 64, 127]), (65, [1]), (1, [128, 5])], 3, SMALL),
    # More rows than a chunk holds (64 queries of 7 heads: 9 rows), then a smaller group.
    "a group larger than a chunk": ([(130, [*range(0, 30, 3)]), (70, [3, 100])], 7, SMALL),
    "no grouped heads": ([(100, [2, 70]), (40, [9])], 1, SMALL),
}
"""``(groups, ratio, sizes)`` by name."""
WINDOWS = {
    "all": 0,
    "within own tokens": 2,
    "one page": 64,
    "into the prompt": 100,
    "longer than all": 1000,
}
