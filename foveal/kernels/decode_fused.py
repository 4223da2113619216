"""The steps between two products of a decoded token, each one launch.

``residual_norm``   the parts of the product before are summed, normed (Gemma), added to the
                    residual stream, and the sum is normed for the product after
``rotary_cache``    the parts of q, k, v are summed, biased, normed (Qwen3, Gemma) and rotated; q
                    goes out, k and v into the paged cache

The references are built from the stock modules' formulas and round where those round.
"""

# Type checkers do not know how Triton kernels are launched.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import torch
from torch import Tensor

from foveal.kernels.decode_attention import PAGE, PagedRows, triton_type
from foveal.kernels.early_start import early_start
from foveal.kernels.kept_rows import KeptRows


def rms_norm_reference(
    x: Tensor, weight: Tensor, eps: float, add_one: bool, half: torch.dtype
) -> Tensor:
    """Root-mean-square norm (arXiv:1910.07467); ``add_one`` as in Gemma, before the rounding."""
    x = x.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    if add_one:
        return (x * (1.0 + weight.float())).to(half)
    return (x.to(half).float() * weight.float()).to(half)


def residual_norm_reference(
    parts_SBD: Tensor | None,
    residual_BD: Tensor,
    before_D: Tensor,
    *,
    eps: float,
    add_one: bool,
    half: torch.dtype,
    after_D: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of :func:`residual_norm`: ``(residual_BD, normed_BD)``."""
    if parts_SBD is not None:
        y = parts_SBD.float().sum(0).to(half)
        if after_D is not None:
            y = rms_norm_reference(y, after_D, eps, add_one, half)
        residual_BD = (residual_BD.float() + y.float()).to(residual_BD.dtype)
    return residual_BD, rms_norm_reference(residual_BD, before_D, eps, add_one, half)


def residual_norm(
    parts_SBD: Tensor | None,
    residual_BD: Tensor,
    before_D: Tensor,
    out_BD: Tensor,
    *,
    eps: float,
    add_one: bool,
    after_D: Tensor | None = None,
    kept: KeptRows | None = None,
    layer: int = 0,
) -> None:
    """Add to the residual stream in place and write its norm.

    Args:
        parts_SBD: parts of what is added, float32 or 16 bit; None adds nothing.
        residual_BD: changed in place.
        before_D: norm weight of the product that follows.
        out_BD: written, in 16 bit.
        after_D: norm weight of what is added (Gemma), or None.
        kept: where a copy of the sum goes, as with ``kept_rows.keep_rows``; None keeps none.
        layer: under which number it is kept.
    """
    import triton

    from foveal.kernels.decode_fused_triton import residual_norm_kernel

    rows, D = residual_BD.shape
    assert kept is None or (parts_SBD is not None and kept.dtype == residual_BD.dtype)
    block = triton.next_power_of_2(D)
    residual_norm_kernel[(rows,)](
        residual_BD if parts_SBD is None else parts_SBD,
        residual_BD,
        out_BD,
        before_D if after_D is None else after_D,
        before_D,
        rows,
        D,
        eps,
        *((residual_BD,) * 3 if kept is None else (kept.address, kept.first_B, kept.cached_B)),
        0 if kept is None else layer * D,
        0 if kept is None else kept.layers * D,
        SPLIT=0 if parts_SBD is None else parts_SBD.shape[0],
        BLOCK_D=block,
        AFTER=after_D is not None,
        ADD_ONE=add_one,
        KEEP=kept is not None,
        num_warps=min(16, max(1, block // 256)),
        **early_start(residual_BD),
    )


def rotate_reference(x_BHC: Tensor, cos_BC: Tensor, sin_BC: Tensor) -> Tensor:
    """``x * cos + rotate_half(x) * sin`` (arXiv:2104.09864, in the half-split layout)."""
    first, second = x_BHC.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_BHC * cos_BC[:, None] + turned * sin_BC[:, None]


def write_cache(arena: Tensor, layer: int, rows: PagedRows, k_BKC: Tensor, v_BKC: Tensor) -> None:
    """Put the keys and values of one new token a row into its page."""
    at_B = rows.cached_B.long()
    page_B = rows.suffix_table_BP.gather(1, (at_B // PAGE)[:, None]).long()[:, 0]
    arena[page_B, layer, 0, :, at_B % PAGE] = _to_cache(k_BKC, arena.dtype)
    arena[page_B, layer, 1, :, at_B % PAGE] = _to_cache(v_BKC, arena.dtype)


def _to_cache(x: Tensor, dtype: torch.dtype) -> Tensor:
    # The 8-bit format has no infinity: saturate at its largest value.
    return (x.float().clamp(-448, 448) if dtype == torch.float8_e4m3fn else x).to(dtype)


def store_cache(
    k_BKC: Tensor,
    v_BKC: Tensor,
    address: Tensor,
    layer_offset: int,
    page_stride: int,
    rows: PagedRows,
    cache_dtype: torch.dtype,
) -> None:
    """:func:`write_cache` for a cache whose address is read from the device; heads of any type."""
    from foveal.kernels.decode_fused_triton import store_kernel

    B, K, C = k_BKC.shape
    store_kernel[(B, K)](
        k_BKC.contiguous(),
        v_BKC.contiguous(),
        address,
        layer_offset,
        page_stride,
        K * PAGE * C,
        rows.suffix_table_BP,
        rows.suffix_table_BP.stride(0),
        rows.cached_B,
        CACHE=triton_type(cache_dtype),
        KV=K,
        C=C,
        PAGE=PAGE,
        FP8=cache_dtype == torch.float8_e4m3fn,
        num_warps=1,
    )


def rotary_cache(
    parts_SBN: Tensor,
    biases: tuple[Tensor, Tensor, Tensor] | None,
    norms: tuple[Tensor, Tensor] | None,
    cos_TC: Tensor,
    sin_TC: Tensor,
    q_BHC: Tensor,
    address: Tensor,
    layer_offset: int,
    page_stride: int,
    rows: PagedRows,
    base_position_B: Tensor,
    *,
    kv_heads: int,
    cache_dtype: torch.dtype,
    eps: float,
    add_one: bool,
) -> None:
    """Finish q, k and v of one token a row.

    Args:
        parts_SBN: float32 parts, N = (H + 2 K) C: all q, then all k, then all v heads.
        biases: of q, k and v, or None.
        norms: per-head norm weights ``[C]`` of q and k, or None.
        cos_TC, sin_TC: rotary tables by position.
        q_BHC: written.
        address, layer_offset, page_stride: as of ``DecodeAttention``.
        rows: where the new token's keys go.
        base_position_B: int32: rotary position of each row's first own token.
    """
    from foveal.kernels.decode_fused_triton import rotary_cache_kernel

    B, H, C = q_BHC.shape
    bias = biases or (cos_TC, cos_TC, cos_TC)
    norm = norms or (cos_TC, cos_TC)
    rotary_cache_kernel[(B, H + 2 * kv_heads)](
        parts_SBN,
        *bias,
        *norm,
        cos_TC,
        sin_TC,
        q_BHC,
        address,
        layer_offset,
        page_stride,
        kv_heads * PAGE * C,
        rows.suffix_table_BP,
        rows.suffix_table_BP.stride(0),
        rows.cached_B,
        base_position_B,
        B,
        eps,
        CACHE=triton_type(cache_dtype),
        SPLIT=parts_SBN.shape[0],
        HEADS=H,
        KV=kv_heads,
        C=C,
        PAGE=PAGE,
        BIAS=biases is not None,
        NORM=norms is not None,
        ADD_ONE=add_one,
        FP8=cache_dtype == torch.float8_e4m3fn,
        num_warps=1,
        **early_start(q_BHC),
    )
