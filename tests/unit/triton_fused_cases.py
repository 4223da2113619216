"""The Triton kernels between two products against the references, in Triton's interpreter.

Run by test_kernels_decode_fused.py in a Python of its own; see tests/interpret.py.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import torch

from foveal.kernels.decode_fused import (
    residual_norm,
    residual_norm_reference,
    rms_norm_reference,
    rotary_cache,
    rotate_reference,
    store_cache,
    write_cache,
)
from foveal.kernels.kept_rows import NOWHERE, KeptRows, keep_rows, keep_rows_reference
from foveal.types import PAGE

HALF = torch.float16
E4M3 = torch.float8_e4m3fn
EPS = 1e-6


def numbers(*shape, seed=0, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def norms():
    """With and without parts, Gemma's second norm and its 1 + weight; D no power of two."""
    rows, D = 3, 96
    for split, after, add_one, stream in itertools.product(
        (0, 1, 4), (False, True), (False, True), (HALF, torch.float32)
    ):
        parts_SBD = numbers(split, rows, D) if split else None
        settings: dict[str, Any] = {"eps": EPS, "add_one": add_one}
        settings["after_D"] = numbers(D, seed=2, dtype=HALF) if after else None
        before_D = numbers(D, seed=1, dtype=HALF)
        residual_BD = numbers(rows, D, seed=3, dtype=stream)
        expected = residual_norm_reference(parts_SBD, residual_BD, before_D, half=HALF, **settings)
        out_BD = torch.full((rows, D), math.nan, dtype=HALF)
        residual_norm(parts_SBD, residual_BD, before_D, out_BD, **settings)
        # One step of fp16: sums are taken in another order.
        for found, wanted in zip((residual_BD, out_BD), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)


def kept(rows, D, layers, stream):
    """Places for all rows but one, in an empty tensor."""
    kept_SLD = torch.full((9, layers, D), 7.0, dtype=stream)
    first_B = torch.tensor([-1, 3, NOWHERE, -40][:rows], dtype=torch.int32)
    cached_B = torch.tensor([1, 5, 40, 47][:rows], dtype=torch.int32)
    address = torch.tensor([kept_SLD.data_ptr()])
    return kept_SLD, KeptRows(address, first_B, cached_B, layers, stream)


def streams_are_kept():
    """Each row in its own place, padding in none; by itself, and on the way of a norm."""
    rows, D, layers = 4, 96, 3
    for stream, layer in itertools.product((HALF, torch.float32), range(layers)):
        x_BD = numbers(rows, D, seed=layer, dtype=stream)
        found_SLD, places = kept(rows, D, layers, stream)
        expected_SLD = found_SLD.clone()
        keep_rows_reference(expected_SLD, layer, places.first_B, places.cached_B, x_BD)
        written = {tuple(at) for at in (expected_SLD != 7).any(-1).nonzero().tolist()}
        assert written == {(0, layer), (8, layer), (7, layer)}
        keep_rows(places, layer, x_BD)
        assert torch.equal(found_SLD, expected_SLD)
        # The norm keeps the sum that it leaves in the stream.
        found_SLD, places = kept(rows, D, layers, stream)
        expected_SLD = found_SLD.clone()
        parts_SBD, weight_D = numbers(2, rows, D), numbers(D, seed=1, dtype=HALF)
        residual_norm(
            parts_SBD, x_BD, weight_D, torch.empty(rows, D, dtype=HALF), eps=EPS, add_one=False,
            kept=places, layer=layer,
        )  # fmt: skip
        keep_rows_reference(expected_SLD, layer, places.first_B, places.cached_B, x_BD)
        assert torch.equal(found_SLD, expected_SLD)


def paged(kv_heads, width, cached, layers=3, dtype=HALF):
    """Rows at the given lengths, pages in no order, and an empty cache."""
    B, P = len(cached), 4
    table_BP = (torch.randperm(B * P, generator=torch.Generator().manual_seed(7)) + 1).view(B, P)
    rows: Any = SimpleNamespace(
        cached_B=torch.tensor(cached, dtype=torch.int32), suffix_table_BP=table_BP.int()
    )
    shape = (B * P + 1, layers, 2, kv_heads, PAGE, width)
    return rows, torch.full(shape, 7.0).to(dtype)


def exact(x):
    """Numbers that have an 8-bit form, and those beyond its range as they are.

    The interpreter's own rounding to 8 bit loses the carry into the exponent.
    """
    return torch.where(x.abs() > 448, x, x.clamp(-448, 448).to(E4M3).float())


CACHED = [0, 1, 62, 63, 64, 127, 128]


def stores():
    for cache in (HALF, torch.float32, E4M3):
        rows, arena = paged(3, 32, CACHED, dtype=cache)
        expected = arena.clone()
        k_BKC, v_BKC = numbers(7, 3, 32, seed=1), numbers(7, 3, 32, seed=2)
        # The 8-bit format ends at 448; what lies above must not turn to nan.
        k_BKC[0, 0, :2] = torch.tensor([1000.0, -1000.0])
        if cache == E4M3:
            k_BKC, v_BKC = exact(k_BKC), exact(v_BKC)
        else:
            k_BKC, v_BKC = k_BKC.to(cache), v_BKC.to(cache)
        write_cache(expected, 2, rows, k_BKC, v_BKC)
        address = torch.tensor([arena.data_ptr()])
        store_cache(k_BKC, v_BKC, address, 2 * arena.stride(1), arena.stride(0), rows, cache)
        assert torch.equal(arena.float(), expected.float()), cache


def reference(parts_SBN, biases, norm_weights, angles, heads, kv_heads, width, add_one):
    """q, k and v of one step, from the references of the pieces."""
    sum_BHC = parts_SBN.sum(0).view(-1, heads + 2 * kv_heads, width)
    if biases is not None:
        sum_BHC = sum_BHC + torch.cat(biases).float().view(1, -1, width)
    q, k, v = sum_BHC.to(HALF).split([heads, kv_heads, kv_heads], 1)
    if norm_weights is not None:
        q, k = (
            rms_norm_reference(x, w, EPS, add_one, HALF)
            for x, w in zip((q, k), norm_weights, strict=True)
        )
    return *(rotate_reference(x, *angles) for x in (q, k)), v


def heads_into_the_cache():
    heads, kv_heads, width = 3, 2, 32
    B, N = len(CACHED), (heads + 2 * kv_heads) * width
    cos_TC, sin_TC = (
        numbers(300, width, seed=4).cos().half(),
        numbers(300, width, seed=5).sin().half(),
    )
    base_B = torch.tensor([3, 0, 100, 17, 40, 5, 60], dtype=torch.int32)
    bias = tuple(numbers(n * width, seed=6, dtype=HALF) for n in (heads, kv_heads, kv_heads))
    norm = (numbers(width, seed=8, dtype=HALF), numbers(width, seed=9, dtype=HALF))
    for split, biases, weights, add_one, cache in (
        (1, None, None, False, HALF),
        (4, bias, None, False, HALF),
        (2, None, norm, False, HALF),
        (1, None, None, False, E4M3),
        (4, None, norm, True, HALF),
    ):
        rows, arena = paged(kv_heads, width, CACHED, dtype=cache)
        expected = arena.clone()
        parts_SBN = numbers(split, B, N, scale=split**-0.5)
        if cache == E4M3:
            parts_SBN = exact(parts_SBN)
            parts_SBN[:, 0, ::3] = 1000.0
            cos_TC, sin_TC = torch.ones_like(cos_TC), torch.zeros_like(sin_TC)
        position_B = (base_B + rows.cached_B).long()
        angles = (cos_TC[position_B], sin_TC[position_B])
        q, k, v = reference(parts_SBN, biases, weights, angles, heads, kv_heads, width, add_one)
        write_cache(expected, 1, rows, k, v)
        q_BHC = torch.full((B, heads, width), math.nan, dtype=HALF)
        rotary_cache(
            parts_SBN, biases, weights, cos_TC, sin_TC, q_BHC, torch.tensor([arena.data_ptr()]),
            arena.stride(1), arena.stride(0), rows, base_B, kv_heads=kv_heads, cache_dtype=cache,
            eps=EPS, add_one=add_one,
        )  # fmt: skip
        torch.testing.assert_close(q_BHC, q, atol=4e-3, rtol=4e-3)
        torch.testing.assert_close(arena.float(), expected.float(), atol=4e-3, rtol=4e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    norms()
    streams_are_kept()
    stores()
    heads_into_the_cache()
