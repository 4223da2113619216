"""The steps between two products: references against the stock modules, kernels against both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm, apply_rotary_pos_emb

from foveal.kernels.decode_fused import (
    residual_norm_reference,
    rms_norm_reference,
    rotate_reference,
    write_cache,
)
from foveal.types import PAGE
from tests.aot import CAPABILITIES, SHARED_BYTES, Recorder
from tests.interpret import run_interpreted


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stock", [Qwen3VLTextRMSNorm, Gemma3RMSNorm])
def test_norm_rounds_where_the_stock_module_rounds(stock, half):
    torch.manual_seed(0)
    norm = stock(48, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    norm, x_BD = norm.to(half), (3 * torch.randn(64, 48)).to(half)
    found_BD = rms_norm_reference(x_BD, norm.weight, 1e-6, stock is Gemma3RMSNorm, half)
    assert torch.equal(found_BD, norm(x_BD))


def test_residual_stream_is_normed_as_a_stock_layer_does():
    torch.manual_seed(0)
    after, before = (Gemma3RMSNorm(48, eps=1e-6) for _ in range(2))
    for norm in (after, before):
        torch.nn.init.normal_(norm.weight)
        norm.half()
    residual_BD, parts_SBD = torch.randn(5, 48).half(), torch.randn(3, 5, 48)
    y_BD = parts_SBD.sum(0).half()
    for with_after in (False, True):
        stream_BD = residual_BD + (after(y_BD) if with_after else y_BD)
        weight_D = after.weight if with_after else None
        found = residual_norm_reference(
            parts_SBD, residual_BD, before.weight, eps=1e-6, add_one=True, half=torch.float16,
            after_D=weight_D,
        )  # fmt: skip
        assert torch.equal(found[0], stream_BD) and torch.equal(found[1], before(stream_BD))
    unchanged_BD, _ = residual_norm_reference(
        None, residual_BD, before.weight, eps=1e-6, add_one=True, half=torch.float16
    )
    assert unchanged_BD is residual_BD


def test_rotation_is_the_stock_one():
    torch.manual_seed(0)
    q, k, cos, sin = (torch.randn(shape) for shape in ((4, 3, 16), (4, 2, 16), (4, 16), (4, 16)))
    # The stock function takes [B, H, T, C]; here each row is a batch of one token.
    stock_q, stock_k = apply_rotary_pos_emb(
        q[:, :, None], k[:, :, None], cos[:, None], sin[:, None]
    )
    assert torch.equal(rotate_reference(q, cos, sin), stock_q[:, :, 0])
    assert torch.equal(rotate_reference(k, cos, sin), stock_k[:, :, 0])


def test_a_token_goes_into_its_own_page_and_place():
    rows: Any = SimpleNamespace(
        cached_B=torch.tensor([0, PAGE - 1, PAGE], dtype=torch.int32),
        suffix_table_BP=torch.tensor([[4, 9], [2, 9], [9, 3]], dtype=torch.int32),
    )
    arena = torch.zeros(10, 2, 2, 2, PAGE, 4)
    k_BKC = torch.randn(3, 2, 4)
    write_cache(arena, 1, rows, k_BKC, -k_BKC)
    for row, (page, place) in enumerate(((4, 0), (2, PAGE - 1), (3, 0))):
        assert torch.equal(arena[page, 1, 0, :, place], k_BKC[row])
        assert torch.equal(arena[page, 1, 1, :, place], -k_BKC[row])
    assert arena.count_nonzero() == 2 * k_BKC.numel()


def test_an_8_bit_cache_saturates_where_it_has_no_number():
    rows: Any = SimpleNamespace(
        cached_B=torch.zeros(1, dtype=torch.int32),
        suffix_table_BP=torch.zeros(1, 1, dtype=torch.int32),
    )
    arena = torch.zeros(1, 1, 2, 1, PAGE, 2).to(torch.float8_e4m3fn)
    big = torch.tensor([[[1e4, -1e4]]])
    write_cache(arena, 0, rows, big, big)
    assert arena[0, 0, :, 0, 0].float().tolist() == [[448.0, -448.0]] * 2


def test_triton_kernels_equal_the_references():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_fused_cases")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_and_fit_on_every_card(capability, monkeypatch):
    """With the shapes of Gemma-3-4B, whose norms and heads need every branch."""
    pytest.importorskip("triton")
    from foveal.kernels import decode_fused, decode_fused_triton, kept_rows, kept_rows_triton

    names = [
        (decode_fused_triton, "residual_norm_kernel"),
        (decode_fused_triton, "rotary_cache_kernel"),
        (decode_fused_triton, "store_kernel"),
        (kept_rows_triton, "keep_rows_kernel"),
    ]
    recorders = [Recorder(getattr(module, name)) for module, name in names]
    for (module, name), recorder in zip(names, recorders, strict=True):
        monkeypatch.setattr(module, name, recorder)
    half = torch.float16 if capability == 75 else torch.bfloat16
    rows, D, heads, kv_heads, width = 32, 2560, 8, 4, 256

    def empty(*shape: int, dtype: torch.dtype = half) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    table = SimpleNamespace(
        suffix_table_BP=empty(rows, 64, dtype=torch.int32),
        cached_B=empty(rows, dtype=torch.int32),
    )
    address, base = empty(1, dtype=torch.int64), empty(rows, dtype=torch.int32)
    kept = kept_rows.KeptRows(address, base, table.cached_B, 34, half)
    for where in (None, kept):
        decode_fused.residual_norm(
            empty(4, rows, D, dtype=torch.float32), empty(rows, D), empty(D), empty(rows, D),
            eps=1e-6, add_one=True, after_D=empty(D), kept=where, layer=3,
        )  # fmt: skip
    kept_rows.keep_rows(kept, 3, empty(rows, D))
    decode_fused.rotary_cache(
        empty(4, rows, (heads + 2 * kv_heads) * width, dtype=torch.float32),
        None, (empty(width), empty(width)), empty(64, width), empty(64, width),
        empty(rows, heads, width), address, 16, 1 << 20, table, base,
        kv_heads=kv_heads, cache_dtype=half, eps=1e-6, add_one=True,
    )  # fmt: skip
    k_BKC = empty(rows, kv_heads, width)
    decode_fused.store_cache(k_BKC, k_BKC, address, 16, 1 << 20, table, half)
    launches = [launch for recorder in recorders for launch in recorder.launches]
    assert len(launches) == len(names) + 1
    for launch in launches:
        compiled = launch.compile_for(capability)
        assert compiled.metadata.shared <= SHARED_BYTES[capability]
        assert f".target sm_{capability}" in compiled.asm["ptx"]
