"""Rotary positions, computed once per prompt and continued through its completion."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def mrope_positions(
    ids: Sequence[int],
    image_token_id: int,
    grids_thw: Sequence[tuple[int, int, int]],
    merge_size: int,
    length: int,
) -> Tensor:
    """Multimodal rotary positions of Qwen2-VL (arXiv:2409.12191, section 2.1), ``[3, length]``.

    Text advances all three axes together. A picture of ``t x h x w`` merged patches starts at the
    next free position, spreads over its axes, and the text after it goes on one past the largest
    index used. Tokens after ``ids`` (a completion) are text whatever their ids, so that a sampled
    placeholder cannot ask for a picture that is not there.

    Args:
        ids: prompt with placeholders expanded.
        image_token_id: the placeholder.
        grids_thw: patches of each picture before merging.
        merge_size: patches merged along height and width.
        length: positions wanted, at least ``len(ids)``.
    """
    pieces: list[Tensor] = []
    grids = iter(grids_thw)
    at, start = 0, 0
    while at < len(ids):
        if ids[at] == image_token_id:
            time, height, width = next(grids)
            shape = (time, height // merge_size, width // merge_size)
            pieces.append(_picture(shape) + start)
            at += shape[0] * shape[1] * shape[2]
            # As in Qwen2-VL's own index: the larger side of the picture, whatever its duration.
            start += max(shape[1], shape[2])
        else:
            run = _text_run(ids, at, image_token_id)
            pieces.append((start + torch.arange(run)).expand(3, -1))
            at, start = at + run, start + run
    pieces.append((start + torch.arange(length - len(ids))).expand(3, -1))
    return torch.cat(pieces, dim=1)


@functools.lru_cache(maxsize=256)
def _picture(shape: tuple[int, int, int]) -> Tensor:
    """Positions ``[3, M]`` of a picture of so many merged patches that starts at 0."""
    axes = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def _text_run(ids: Sequence[int], at: int, image_token_id: int) -> int:
    end = at
    while end < len(ids) and ids[end] != image_token_id:
        end += 1
    return end - at
