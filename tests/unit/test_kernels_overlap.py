"""How much of its weights a kernel fetches while it waits for the one before it."""

from __future__ import annotations

import torch

from foveal.kernels.overlap import PREFETCH_BYTES, PREFETCH_PIECE, overlap, prefetch_columns


def test_a_cpu_never_starts_early():
    assert overlap(torch.zeros(1)) == {"OVERLAP": False}


def test_what_is_fetched_early_fits_the_cache_and_the_share():
    """Gate and up, q k v, down and the head of a 7B model; a small model's layer."""
    for rows, columns, share in (
        (37888, 3584, 3584), (4 * 4608, 3584, 896), (8 * 3584, 18944, 2432), (152064, 3584, 3584),
        (960, 576, 320), (4, 18944, 18944),
    ):  # fmt: skip
        early = prefetch_columns(rows, columns, share, 2)
        assert 0 < early <= share and early % PREFETCH_PIECE == 0
        assert early & (early - 1) == 0, "tiles have sides that are powers of two"
        assert early == PREFETCH_PIECE or early * rows * 2 <= PREFETCH_BYTES


def test_rows_that_do_not_begin_at_16_bytes_are_not_fetched():
    assert prefetch_columns(64, 1001, 1001, 2) == 0
    assert prefetch_columns(64, 1004, 1004, 2) == 0
    assert prefetch_columns(64, 1008, 64, 2) == 0
