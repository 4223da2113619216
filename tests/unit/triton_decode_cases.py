"""The Triton kernels of decode attention against dense attention, in Triton's interpreter.

Run by test_kernels_decode_attention.py in a Python of its own; see tests/interpret.py.
"""

from __future__ import annotations

import math

import torch

from foveal.kernels import decode_attention
from foveal.kernels.decode_attention import DecodeAttention
from tests.paged import CASES, SMALL, WINDOWS, dense_attention, paged_case, queries

# Programs are slow here; few of them also leave several items and blocks to each.
decode_attention.PREFIX_PROGRAMS = 3
decode_attention.PARTS_IN_FLIGHT = 24

SCALE = 0.3


def in_triton(q_BHC, case, layer, **settings):
    rows, heads, width = q_BHC.shape
    arena = case.arena
    attention = DecodeAttention(rows, heads, arena.shape[3], width, arena.dtype, arena.device)
    # What is not written must not be read.
    attention.part.fill_(math.nan)
    attention.lse.fill_(math.nan)
    out_BHC = torch.full_like(q_BHC, math.nan)
    address = torch.tensor([arena.data_ptr()])
    offset, stride = layer * arena.stride(1), arena.stride(0)
    attention(q_BHC, address, offset, stride, case.rows, out_BHC, **settings)
    return out_BHC


def assert_equal(case, ratio, tolerance=1e-5, dtype=torch.float32, **settings):
    q_BHC = queries(case, ratio, dtype)
    settings = {"scale": SCALE, "window": 0, "softcap": 0.0} | settings
    out_BHC = in_triton(q_BHC, case, 1, **settings)
    expected_BHC = dense_attention(q_BHC, case, 1, **settings)
    torch.testing.assert_close(out_BHC.double(), expected_BHC, atol=tolerance, rtol=tolerance)


def windows_and_groups():
    for name, (groups, ratio, sizes) in CASES.items():
        for number, window in enumerate(WINDOWS.values()):
            if name != "page borders" and number not in (0, 3):
                continue
            stretch = 2 - number % 2
            case = paged_case(groups, ratio=ratio, padding=1, stretch_pages=stretch, **sizes)
            assert_equal(case, ratio, window=window, softcap=1.5 * (number == 3))


def head_widths():
    for width, ratio, window in ((64, 7, 0), (128, 3, 90), (256, 1, 0)):
        groups = [(70, [0, 64, 30]), (30, [2])]
        case = paged_case(groups, ratio=ratio, kv_heads=1, width=width)
        assert_equal(case, ratio, window=window, softcap=20.0 * (width == 128))


def narrow_caches():
    groups = [(70, [0, 64, 30]), (30, [2])]
    for cache, half in ((torch.float16, torch.float16), (torch.float8_e4m3fn, torch.float16)):
        case = paged_case(groups, ratio=2, dtype=cache, **SMALL)
        assert_equal(case, 2, tolerance=4e-3, dtype=half, window=40)


def every_number_of_splits():
    """One split has a row's own keys to itself; with 32 most have none."""
    before = decode_attention.PARTS_IN_FLIGHT
    case = paged_case([(5, [200, 0])], ratio=2, **SMALL)
    for wanted in (1, 1000):
        decode_attention.PARTS_IN_FLIGHT = wanted
        assert_equal(case, 2, window=150)
    decode_attention.PARTS_IN_FLIGHT = before


def a_batch_of_padding_alone():
    """What graphs are captured with."""
    assert_equal(paged_case([], ratio=2, padding=2, **SMALL), 2, window=7)


def junk_in_places_of_others():
    """NaN, which no weight of zero can hide."""
    groups = [(65, [0, 63, 64]), (1, [127])]
    case = paged_case(groups, ratio=3, **SMALL)
    q_BHC = queries(case, 3)
    settings = {"scale": SCALE, "window": 70, "softcap": 0.0}
    expected_BHC = in_triton(q_BHC, case, 0, **settings)
    for row in (0, 2, 3):
        out_BHC = in_triton(q_BHC, case.with_junk(math.nan, keep=[row]), 0, **settings)
        assert torch.equal(out_BHC[row], expected_BHC[row]), row


if __name__ == "__main__":
    torch.set_num_threads(1)
    windows_and_groups()
    head_widths()
    narrow_caches()
    every_number_of_splits()
    a_batch_of_padding_alone()
    junk_in_places_of_others()
