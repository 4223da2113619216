"""Attention of one new token a row over a paged cache whose prompts are shared by groups.

The cache is an arena of pages ``[pages, layers, 2, K, PAGE, C]`` (2: keys, values). A page holds
``PAGE`` tokens of every layer. A row's keys are those of its prompt, in pages that all rows of a
group share, followed by its own, in pages of its own. Attention over both is one softmax
(arXiv:2402.05099, 2404.15778 do the same): parts are computed apart and joined by log-sum-exp.

``decode_attention_reference`` is the specification and the CPU path.
"""

# Type checkers do not know how Triton kernels are launched.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.kernels.early_start import early_start
from foveal.types import PAGE

PREFIX_SPLITS = 8
"""Stretches that a prompt's keys are divided into at most."""
PREFIX_PROGRAMS = 32
PARTS_IN_FLIGHT = 264
"""Programs wanted at least: two for each multiprocessor of the largest card."""


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Where the keys of B rows lie. Lives on the cache's device at fixed addresses.

    A chunk is up to ``chunk_rows.shape[1]`` rows of one group; -1 stands for no row. An item is
    ``(chunk, from_t, to_t, slot)``: a stretch of the chunk's prompt, the slot numbering the
    stretches of a prompt from 0.
    """

    cached_B: Tensor
    """int32: tokens of the row's own in the cache before this one, which is written there."""
    prompt_length_B: Tensor
    """int32: tokens of the row's prompt."""
    suffix_table_BP: Tensor
    """int32: pages of the row's own tokens."""
    chunk_rows_XR: Tensor
    chunk_table_XP: Tensor
    """int32: pages of the chunk's prompt."""
    chunk_length_X: Tensor
    """int32: tokens of the chunk's prompt."""
    item_I4: Tensor
    item_count: Tensor
    """int32 ``[1]``."""
    prefix_parts_B: Tensor
    """int32: stretches of the row's prompt."""


def rows_per_chunk(ratio: int, width: int) -> int:
    """Rows whose query heads fill one tile, for ``ratio`` query heads a key/value head."""
    return max(1, (64 if width <= 128 else 32) // ratio)


def suffix_splits(rows: int, kv_heads: int) -> int:
    """Stretches of each row's own keys: enough programs for the card, at most 32."""
    wanted = -(-PARTS_IN_FLIGHT // (rows * kv_heads))
    return min(32, 1 << (wanted - 1).bit_length())


def decode_attention_reference(
    q_BHC: Tensor,
    arena: Tensor,
    layer: int,
    rows: PagedRows,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """One softmax over prompt and own keys of each row; see :func:`decode_attention`."""
    B, H, C = q_BHC.shape
    K = arena.shape[3]
    live = rows.chunk_rows_XR >= 0
    # Each row's place among the chunks, to bring the prompt's part back to rows.
    flat = rows.chunk_rows_XR.flatten()
    place_B = torch.zeros(B, dtype=torch.long, device=q_BHC.device)
    numbers = torch.arange(flat.numel(), device=flat.device)
    place_B.index_copy_(0, flat[live.flatten()].long(), numbers[live.flatten()])
    q_BKGC = q_BHC.view(B, K, H // K, C).float() * scale
    q_XRKGC = q_BKGC[rows.chunk_rows_XR.clamp(min=0).long()]

    prefix_k, prefix_v = _gather(arena, layer, rows.chunk_table_XP, int(rows.chunk_length_X.max()))
    suffix_k, suffix_v = _gather(arena, layer, rows.suffix_table_BP, int(rows.cached_B.max()) + 1)
    prefix_XRKGT = torch.einsum("xrkgc,xktc->xrkgt", q_XRKGC, prefix_k)
    prefix_BKGT = prefix_XRKGT.flatten(0, 1)[place_B]
    scores = torch.cat([prefix_BKGT, torch.einsum("bkgc,bktc->bkgt", q_BKGC, suffix_k)], dim=-1)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    seen_BT = _visible(rows, prefix_k.shape[2], suffix_k.shape[2], window)
    weights = scores.masked_fill(~seen_BT[:, None, None], float("-inf")).softmax(-1)
    prompt_part, own_part = weights.split([prefix_k.shape[2], suffix_k.shape[2]], dim=-1)
    prompt_XRKGT = prompt_part[rows.chunk_rows_XR.clamp(min=0).long()]
    out_XRKGC = torch.einsum("xrkgt,xktc->xrkgc", prompt_XRKGT, prefix_v)
    # A row without a prompt (padding) has no place of its own there.
    with_prompt_B = (rows.prompt_length_B > 0)[:, None, None, None]
    out_BKGC = out_XRKGC.flatten(0, 1)[place_B] * with_prompt_B
    out_BKGC = out_BKGC + torch.einsum("bkgt,bktc->bkgc", own_part, suffix_v)
    return out_BKGC.reshape(B, H, C).to(q_BHC.dtype)


def _gather(arena: Tensor, layer: int, table_RP: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values ``[R, K, T, C]`` of the first ``length`` tokens of page tables."""
    pages = -(-length // PAGE)
    # [R, P, 2, K, PAGE, C]
    found = arena[:, layer][table_RP[:, :pages].long()].float()
    merged = found.permute(2, 0, 3, 1, 4, 5).flatten(3, 4)[..., :length, :]
    return merged[0], merged[1]


def _visible(rows: PagedRows, prefix_length: int, suffix_length: int, window: int) -> Tensor:
    """``[B, T_prefix + T_suffix]``: which keys each row's query may see."""
    device = rows.cached_B.device
    prefix_T = torch.arange(prefix_length, device=device)[None]
    suffix_T = torch.arange(suffix_length, device=device)[None]
    prompt, cached = rows.prompt_length_B[:, None], rows.cached_B[:, None]
    prefix = prefix_T < prompt
    suffix = suffix_T <= cached
    if window:
        prefix = prefix & (prefix_T > prompt + cached - window)
        suffix = suffix & (suffix_T > cached - window)
    return torch.cat([prefix, suffix], dim=1)


class DecodeAttention:
    """The Triton form for at most ``rows`` rows, with its workspace.

    Args:
        rows: B of every call.
        heads, kv_heads, width: H, K and C; ``heads`` a multiple of ``kv_heads``.
        cache_dtype: of the arena: 16 or 32 bit, or ``torch.float8_e4m3fn`` (sm_89 and later).
        device: of everything.
    """

    def __init__(
        self,
        rows: int,
        heads: int,
        kv_heads: int,
        width: int,
        cache_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows, self.heads, self.kv_heads, self.width = rows, heads, kv_heads, width
        self.cache_dtype = cache_dtype
        self.splits = suffix_splits(rows, kv_heads)
        self.slots = self.splits + PREFIX_SPLITS
        self.part = torch.empty(rows, heads, self.slots, width, device=device)
        self.lse = torch.empty(rows, heads, self.slots, device=device)

    def __call__(
        self,
        q_BHC: Tensor,
        address: Tensor,
        layer_offset: int,
        page_stride: int,
        rows: PagedRows,
        out_BHC: Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> None:
        """Attend and write ``out_BHC``.

        Args:
            q_BHC: queries, rotated, contiguous.
            address: int64 ``[1]`` on the device: where the arena begins. It is read by the kernel,
                so a captured graph follows the arena when it is freed and taken anew.
            layer_offset, page_stride: in elements of the arena.
            rows: where keys lie; this token's own keys are in the cache already.
            scale: of the scores.
            window: a key is seen if it is less than ``window`` positions before the query;
                0 for all.
            softcap: ``softcap * tanh(score / softcap)``; 0 for none.
        """
        import triton

        from foveal.kernels.decode_attention_triton import join_kernel, parts_kernel

        ratio = self.heads // self.kv_heads
        chunk_rows = rows.chunk_rows_XR.shape[1]
        grid = (self.kv_heads, PREFIX_PROGRAMS + self.rows * self.splits)
        parts_kernel[grid](
            q_BHC,
            self.part,
            self.lse,
            address,
            layer_offset,
            page_stride,
            self.kv_heads * PAGE * self.width,
            rows.suffix_table_BP,
            rows.cached_B,
            rows.prompt_length_B,
            rows.item_I4,
            rows.item_count,
            rows.chunk_rows_XR,
            rows.chunk_table_XP,
            rows.suffix_table_BP.stride(0),
            scale,
            softcap,
            CACHE=triton_type(self.cache_dtype),
            KV=self.kv_heads,
            RATIO=ratio,
            C=self.width,
            PAGE=PAGE,
            CHUNK_ROWS=chunk_rows,
            CHUNK_QUERIES=max(16, triton.next_power_of_2(chunk_rows * ratio)),
            ROW_QUERIES=max(16, triton.next_power_of_2(ratio)),
            PREFIX_PROGRAMS=PREFIX_PROGRAMS,
            SUFFIX_SPLITS=self.splits,
            SLOTS=self.slots,
            WINDOW=window,
            SOFTCAP=softcap > 0,
            **launch_shape(self.width, q_BHC),
            **early_start(q_BHC),
        )
        join_kernel[(self.rows, self.heads)](
            self.part,
            self.lse,
            out_BHC,
            rows.prefix_parts_B,
            HEADS=self.heads,
            C=self.width,
            SUFFIX_SPLITS=self.splits,
            SLOTS=self.slots,
            PADDED=triton.next_power_of_2(self.slots),
            num_warps=1 if self.width <= 128 else 2,
            **early_start(q_BHC),
        )


def triton_type(dtype: torch.dtype) -> Any:
    """Triton's name of a cache's type."""
    import triton.language as tl

    return {
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
        torch.float32: tl.float32,
        torch.float8_e4m3fn: tl.float8e4nv,
    }[dtype]


def launch_shape(width: int, q: Tensor) -> dict[str, int]:
    """Tile and pipeline depth: measured on an H100, cut down to other cards' shared memory (64 KB
    on sm_75, 99 KB on sm_89)."""
    major = torch.cuda.get_device_capability(q.device)[0] if q.is_cuda else 9
    row_bytes = width * q.element_size()
    tile_bytes = (32 if major >= 9 else 16 if major >= 8 else 8) << 10
    tokens = max(16, min(64, tile_bytes // row_bytes))
    return {"BLOCK_T": tokens, "num_warps": 4, "num_stages": 2}


def prefix_splits(chunks: int) -> int:
    """Stretches of each prompt: few prompts are cut finer, to fill the card."""
    return max(2, min(PREFIX_SPLITS, 16 // max(1, chunks)))
