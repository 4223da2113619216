"""Decode attention over a paged cache: against a softmax written out row by row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from foveal.kernels import decode_attention
from foveal.kernels.decode_attention import (
    DecodeAttention,
    PagedRows,
    decode_attention_reference,
    rows_per_chunk,
    suffix_splits,
)
from tests.aot import SHARED_BYTES, Recorder
from tests.interpret import run_interpreted
from tests.paged import CASES, SMALL, WINDOWS, dense_attention, paged_case, queries

SCALE = 0.3


def in_reference(q_BHC, case, layer, **settings):
    return decode_attention_reference(q_BHC, case.arena, layer, case.rows, **settings)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("name", CASES)
def test_every_row_sees_its_own_keys_and_no_others(name, window):
    groups, ratio, sizes = CASES[name]
    case = paged_case(groups, ratio=ratio, padding=2, **sizes)
    q_BHC = queries(case, ratio)
    for softcap in (0.0, 1.5):
        settings = {"scale": SCALE, "window": window, "softcap": softcap}
        out_BHC = in_reference(q_BHC, case, 1, **settings)
        expected_BHC = dense_attention(q_BHC, case, 1, **settings)
        torch.testing.assert_close(out_BHC.double(), expected_BHC, atol=1e-5, rtol=1e-5)


def test_what_a_row_may_not_see_never_reaches_it():
    groups, ratio, sizes = CASES["page borders"]
    case = paged_case(groups, ratio=ratio, padding=1, **sizes)
    q_BHC = queries(case, ratio)
    for window in (0, 70):
        settings = {"scale": SCALE, "window": window, "softcap": 0.0}
        expected_BHC = in_reference(q_BHC, case, 0, **settings)
        for row in range(len(case.places)):
            out_BHC = in_reference(q_BHC, case.with_junk(1e4, keep=[row]), 0, **settings)
            torch.testing.assert_close(out_BHC[row], expected_BHC[row], atol=1e-6, rtol=1e-6)


def test_a_batch_of_padding_alone_gives_the_scratch_page():
    case = paged_case([], ratio=2, padding=3, **SMALL)
    q_BHC = queries(case, 2)
    expected_BHC = case.arena[0, 1, 1, :, 0].repeat_interleave(2, 0).expand(3, -1, -1)
    out_BHC = in_reference(q_BHC, case, 1, scale=SCALE, window=0, softcap=0.0)
    torch.testing.assert_close(out_BHC, expected_BHC)


def test_a_chunk_of_rows_fills_one_tile_and_no_more():
    for width, queries_most in ((64, 64), (128, 64), (256, 32)):
        for ratio in range(1, 17):
            rows = rows_per_chunk(ratio, width)
            assert rows * ratio <= queries_most < (rows + 1) * ratio
    assert rows_per_chunk(100, 128) == 1, "one row has to go in, however many heads it has"


def test_splits_fill_the_card_and_are_a_power_of_two():
    for kv_heads in (1, 2, 4, 8):
        splits = [suffix_splits(rows, kv_heads) for rows in range(1, 129)]
        assert splits == sorted(splits, reverse=True)
        for rows, split in zip(range(1, 129), splits, strict=True):
            assert 1 <= split <= 32 and split & (split - 1) == 0
            enough = decode_attention.PARTS_IN_FLIGHT
            assert split == 32 or rows * kv_heads * split >= enough
            assert split == 1 or rows * kv_heads * split // 2 < enough, "twice too many"


# ----------------------------------------------------------------------------- Triton kernels


def test_triton_kernels_equal_the_written_out_softmax():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_decode_cases")


def recorded(monkeypatch, capability: int, width: int, ratio: int, cache: torch.dtype, rows=16):
    """The launches of one call with the shapes of a real model."""
    from foveal.kernels import decode_attention_triton as kernels

    parts, join = Recorder(kernels.parts_kernel), Recorder(kernels.join_kernel)
    monkeypatch.setattr(kernels, "parts_kernel", parts)
    monkeypatch.setattr(kernels, "join_kernel", join)
    real_shape = decode_attention.launch_shape
    on_card = SimpleNamespace(is_cuda=True, element_size=lambda: 2, device=None)
    monkeypatch.setattr(
        decode_attention, "launch_shape", lambda width, q: real_shape(width, on_card)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: divmod(capability, 10))
    half = torch.float16 if capability == 75 else torch.bfloat16
    meta = torch.device("meta")

    def table(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=meta)

    chunk = rows_per_chunk(ratio, width)
    paged = PagedRows(
        table(rows), table(rows), table(rows, 64), table(rows, chunk), table(rows, 64),
        table(rows), table(8 * rows, 4), table(1), table(rows),
    )  # fmt: skip
    q_BHC = torch.empty(rows, 4 * ratio, width, dtype=half, device=meta)
    DecodeAttention(rows, 4 * ratio, 4, width, cache, meta)(
        q_BHC, torch.empty(1, dtype=torch.int64, device=meta), 2 * 4 * 64 * width,
        28 * 2 * 4 * 64 * width, paged, torch.empty_like(q_BHC), scale=0.1, window=512,
    )  # fmt: skip
    return [*parts.launches, *join.launches]


E4M3 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("capability", "width", "ratio", "cache"),
    [
        (75, 128, 7, torch.float16),
        (75, 256, 2, torch.float16),
        (80, 256, 2, torch.bfloat16),
        (89, 256, 2, E4M3),
        (90, 128, 7, E4M3),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_kernels_compile_and_fit_on_every_card(monkeypatch, capability, width, ratio, cache):
    pytest.importorskip("triton")
    launches = recorded(monkeypatch, capability, width, ratio, cache)
    assert len(launches) == 2
    for launch in launches:
        compiled = launch.compile_for(capability)
        assert compiled.metadata.shared <= SHARED_BYTES[capability]
        ptx = compiled.asm["ptx"]
        assert f".target sm_{capability}" in ptx
        # Keys one element at a time would take many times as long to read.
        assert "v4" in ptx or "cp.async.cg" in ptx
