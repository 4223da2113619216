"""The Triton kernels of products with few rows against the references, in the interpreter.

Run by test_kernels_skinny_linear.py in a Python of its own; see tests/interpret.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from foveal.kernels.skinny_linear import (
    Factors,
    GatedLinear,
    SkinnyLinear,
    gated_reference,
    skinny_linear_reference,
)

HALF = torch.float16


def numbers(*shape, scale=1.0, seed=0, dtype=HALF):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def product(rows, K, sizes, rank):
    x_BK = numbers(rows, K)
    weights = [numbers(n, K, scale=K**-0.5, seed=i) for i, n in enumerate(sizes)]
    factors = [
        Factors(numbers(rank, K, scale=K**-0.5, seed=i), numbers(n, rank, scale=0.5, seed=9 + i))
        if rank
        else None
        for i, n in enumerate(sizes)
    ]
    return x_BK, weights, factors


def one_to_three_matrices():
    """K in whole blocks and not, divided evenly, unevenly and so often that a share is empty."""
    cases = [
        # rows, K, sizes, rank, {block of K, split}
        (1, 256, [96, 32, 32], 0, (64, 1)),
        (5, 320, [40, 24, 8], 16, (64, 4)),
        (17, 200, [70], 0, (64, 1)),
        (5, 200, [33, 65], 16, (32, 3)),
        (17, 96, [48, 16, 130], 32, (32, 2)),
    ]
    for rows, K, sizes, rank, (block_k, split) in cases:
        x_BK, weights, factors = product(rows, K, sizes, rank)
        linear = SkinnyLinear(weights, factors, rows)
        linear.tiles = replace(linear.tiles, block_n=32, block_k=block_k, split=split)
        out_SBN = torch.full((linear.parts, rows, sum(sizes)), math.nan)
        linear(x_BK, out_SBN)
        expected_BN = skinny_linear_reference(x_BK, weights, factors)
        # x A' is rounded to 16 bit, with K divided each part by itself.
        tolerance = 5e-3 if rank else 1e-5
        torch.testing.assert_close(out_SBN.sum(0), expected_BN, atol=tolerance, rtol=tolerance)
        if rank:
            bare_BN = skinny_linear_reference(x_BK, weights, [None] * len(sizes))
            assert (out_SBN.sum(0) - bare_BN).abs().max() > 0.1, "the adapter must matter here"


def tiles_as_they_are_chosen():
    """Without a split the output may have the model's own type, as the head's has."""
    x_BK, weights, factors = product(3, 1024, [200], 0)
    for dtype, tolerance in ((torch.float32, 1e-5), (HALF, 2e-3)):
        linear = SkinnyLinear(weights, factors, 3, split=False)
        assert linear.parts == 1
        out_BN = torch.full((3, 200), math.nan, dtype=dtype)
        linear(x_BK, out_BN)
        expected_BN = skinny_linear_reference(x_BK, weights, factors)
        torch.testing.assert_close(out_BN.float(), expected_BN, atol=tolerance, rtol=tolerance)
    linear = SkinnyLinear(weights, factors, 3)
    assert linear.parts > 1, "this product leaves the card empty unless K is divided"
    out_SBN = torch.full((linear.parts, 3, 200), math.nan)
    linear(x_BK, out_SBN)
    torch.testing.assert_close(out_SBN.sum(0), expected_BN, atol=1e-5, rtol=1e-5)


def gates():
    for rows, K, N, rank, gelu in (
        (1, 128, 40, 0, False),
        (17, 100, 70, 16, True),
        (32, 64, 50, 16, False),
        (20, 100, 50, 0, True),
    ):
        x_BK, weights, factors = product(rows, K, [N, N], rank)
        linear = GatedLinear(weights, factors, rows, gelu=gelu)
        out_BN = torch.full((rows, N), math.nan, dtype=HALF)
        linear(x_BK, out_BN)
        expected_BN = gated_reference(x_BK, weights, factors, gelu)
        torch.testing.assert_close(out_BN, expected_BN, atol=5e-3, rtol=5e-3)
        other_BN = gated_reference(x_BK, weights, factors, not gelu)
        assert (out_BN - other_BN).abs().max() > 0.02, "the two gates must differ here"


if __name__ == "__main__":
    torch.set_num_threads(1)
    one_to_three_matrices()
    tiles_as_they_are_chosen()
    gates()
