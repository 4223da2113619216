"""Prompts through the decoder side by side, without padding: the fast form of ``prefill``.

Rows lie one after the other in ``[N, D]``, so every product sees all tokens at once, and so does
attention where it is causal; masks of pictures are taken row by row. Norms, rotation and the cache
write are the decode step's kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.kernels import causal_attention
from foveal.kernels.decode_attention import PagedRows
from foveal.kernels.decode_fused import residual_norm, rotary_cache
from foveal.kernels.wide_mlp import adapted_gate_
from foveal.models.decoder import Decoder, Layer
from foveal.models.family import family_of, stock_model
from foveal.models.forward import FeatureCache
from foveal.models.packed_lora import PackedLora, base_of
from foveal.models.prefill import Fill, head_logits
from foveal.types import PAGE


@dataclass(frozen=True, slots=True)
class _Packed:
    """N tokens of several rows, and where each goes."""

    ids_N: Tensor
    image_M: Tensor
    cos: dict[str, Tensor]
    sin: dict[str, Tensor]
    page_N: Tensor
    """Page of each token, and its place there."""
    place_N: Tensor
    targets: PagedRows
    """The same as the cache write takes it: each token a row of its own, its place in the page as
    the cached count."""
    base_N: Tensor
    """Added to the place, gives the token's number: its row of the rotary tables."""
    lengths: list[int]
    masks: list[dict[str, Tensor] | None]
    pages: list[Tensor]
    """Of each row, in order."""


def packed_prefill(
    decoder: Decoder, lora: PackedLora, fills: Sequence[Fill], arena: Tensor, address: Tensor,
    features: FeatureCache,
) -> Tensor:  # fmt: skip
    """As ``foveal.models.prefill.prefill``, for whole prompts and a cache of the model's type."""
    model = decoder.model
    images = [image for fill in fills for image in fill.prompt.images]
    found = features.get(model, images)
    packed = _pack(decoder, fills)
    x = decoder.embed(packed.ids_N.clamp(max=decoder.embed.num_embeddings - 1))
    x = x.to(decoder.residual_dtype)
    deepstack: list[Tensor] = []
    if found:
        main, *deepstack = (torch.cat(level) for level in zip(*found, strict=True))
        x[packed.image_M] = main.to(x.dtype)
    part: Tensor | None = None
    after: Tensor | None = None
    norm: dict[str, Any] = {"eps": decoder.eps, "add_one": decoder.family.norm_adds_one}
    half = decoder.dtype
    h = torch.empty(x.shape, dtype=half, device=x.device)
    q = torch.empty(len(x), decoder.heads, decoder.width, dtype=half, device=x.device)
    page_stride, layer_stride = arena.stride(0), arena.stride(1)
    for number, layer in enumerate(decoder.layers):
        residual_norm(part, x, layer.before_attention.weight, h, after_D=after, **norm)
        if 0 < number <= len(deepstack):
            # Features of a tower's earlier depth join the stream behind a layer (Qwen3-VL).
            x[packed.image_M] += deepstack[number - 1].to(x.dtype)
            residual_norm(None, x, layer.before_attention.weight, h, **norm)
        qkv = torch.cat([_linear(m, h, lora) for m in (layer.q, layer.k, layer.v)], dim=1)
        head_norms = None
        if layer.q_norm is not None and layer.k_norm is not None:
            head_norms = (layer.q_norm.weight, layer.k_norm.weight)
        rotary_cache(
            qkv[None], None, head_norms, packed.cos[layer.rotary], packed.sin[layer.rotary],
            q, address, number * layer_stride, page_stride, packed.targets, packed.base_N,
            kv_heads=decoder.kv_heads, cache_dtype=half, **norm,
        )  # fmt: skip
        out = _attend(decoder, layer, number, q, packed, arena)
        part = _linear(layer.o, out.view(len(x), -1), lora)[None]
        after = None if layer.after_attention is None else layer.after_attention.weight
        residual_norm(part, x, layer.before_mlp.weight, h, after_D=after, **norm)
        part = _linear(layer.down, _gated(decoder, layer, h, lora), lora)[None]
        after = None if layer.after_mlp is None else layer.after_mlp.weight
    last = torch.tensor(packed.lengths, device=x.device).cumsum(0) - 1
    assert part is not None
    x, part = x[last].contiguous(), part[:, last].contiguous()
    h = torch.empty(x.shape, dtype=half, device=x.device)
    residual_norm(part, x, decoder.norm.weight, h, after_D=after, **norm)
    return head_logits(model, h)


def _pack(decoder: Decoder, fills: Sequence[Fill]) -> _Packed:
    device, model = decoder.device, decoder.model
    config = stock_model(model).config
    family = family_of(model)
    rows = [list(fill.prompt.ids) for fill in fills]
    lengths = [len(row) for row in rows]
    ids_N = torch.tensor([token for row in rows for token in row])
    image_N = ids_N == config.image_token_id
    position_AN = torch.cat(
        [family.row_positions(config, f.prompt, n) for f, n in zip(fills, lengths, strict=True)], 1
    )
    at = torch.cat([torch.arange(n) for n in lengths])
    tables = [torch.tensor(fill.pages) for fill in fills]
    pages = torch.cat(
        [table[torch.arange(n) // PAGE] for table, n in zip(tables, lengths, strict=True)]
    )
    cos, sin = decoder.rotary_at(position_AN.to(device))
    page_N, place_N = pages.to(device), (at % PAGE).to(device)
    nothing = torch.zeros(1, dtype=torch.int32, device=device)
    targets = PagedRows(
        place_N.int(), nothing, page_N.int()[:, None], nothing, nothing, nothing, nothing,
        nothing, nothing,
    )  # fmt: skip
    masks = [family.prompt_masks(config, m) for m in image_N.to(device).split(lengths)]
    number_N = torch.arange(len(ids_N), dtype=torch.int32, device=device)
    return _Packed(
        ids_N=ids_N.to(device),
        # Positions, not a mask: a mask would be counted on the host in every layer that uses it.
        image_M=image_N.nonzero()[:, 0].to(device),
        cos=cos,
        sin=sin,
        page_N=page_N,
        place_N=place_N,
        targets=targets,
        base_N=number_N - place_N.int(),
        lengths=lengths,
        masks=masks,
        pages=[table.to(device) for table in tables],
    )


def _linear(module: nn.Module, x: Tensor, lora: PackedLora) -> Tensor:
    base = base_of(module)
    y = F.linear(x, base.weight, base.bias)
    factors = lora.factors(module)
    return y if factors is None else y.addmm_(x @ factors.a_RK.T, factors.b_NR.T)


def _gated(decoder: Decoder, layer: Layer, h: Tensor, lora: PackedLora) -> Tensor:
    """``act(gate) * up``: the adapters are added where the products are read anyway."""
    gate, up = (F.linear(h, base_of(m).weight) for m in (layer.gate, layer.up))
    found = [lora.factors(module) for module in (layer.gate, layer.up)]
    given: dict[str, Tensor] = {}
    if found[0] is not None and found[1] is not None:
        low = torch.cat([h @ factors.a_RK.T for factors in found if factors is not None], dim=1)
        given = {"low_SBR": low[None], "b_gate_NR": found[0].b_NR, "b_up_NR": found[1].b_NR}
    adapted_gate_(gate, up, gelu=decoder.family.gelu, **given)
    return gate


def _attend(
    decoder: Decoder, layer: Layer, number: int, q_NHC: Tensor, packed: _Packed, arena: Tensor
) -> Tensor:  # fmt: skip
    """Each row against its own keys, read back from its pages."""
    if packed.masks[0] is not None:
        return _attend_masked(decoder, layer, number, q_NHC, packed, arena)
    # Two indices with slices between them come to the front: [N, 2, K, C].
    k_NKC, v_NKC = arena[:, number][packed.page_N, :, :, packed.place_N].unbind(1)
    return causal_attention(
        q_NHC, k_NKC, v_NKC, packed.lengths, scale=decoder.scale, window=layer.window
    )


def _attend_masked(
    decoder: Decoder, layer: Layer, number: int, q_NHC: Tensor, packed: _Packed, arena: Tensor
) -> Tensor:  # fmt: skip
    """Row by row: the kernels that see several rows in one call take no masks."""
    out = torch.empty_like(q_NHC)
    first, kind = 0, "sliding_attention" if layer.window else "full_attention"
    for pages, length, mask in zip(packed.pages, packed.lengths, packed.masks, strict=True):
        assert mask is not None
        # [P, 2, K, PAGE, C] -> [2, K, T, C]
        found = arena[pages, number].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
        attended = F.scaled_dot_product_attention(
            q_NHC[first : first + length].transpose(0, 1)[None],
            found[0][None],
            found[1][None],
            attn_mask=mask[kind],
            scale=decoder.scale,
            enable_gqa=True,
        )
        out[first : first + length] = attended[0].transpose(0, 1)
        first += length
    return out
