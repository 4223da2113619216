"""One token a row through the decoder, nine launches a layer: the fast form of ``plain_step``.

    norm(residual + parts) -> q,k,v -> rotate, cache -> attend, join -> o
    norm(residual + parts) -> act(gate) * up -> down

With more than 32 rows, gate, up and down are the vendor's products (``kernels/wide_mlp.py``).

Weights are read from the stock modules where they lie, adapters from their packed copy. Every
tensor that a launch touches has a fixed address, so the step can be captured in a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.kernels.decode_attention import PAGE, DecodeAttention, PagedRows
from foveal.kernels.decode_fused import residual_norm, rotary_cache
from foveal.kernels.kept_rows import KeptRows
from foveal.kernels.skinny_linear import GatedLinear, SkinnyLinear
from foveal.kernels.wide_mlp import WIDE_ROWS, WideMLP, WideRoom
from foveal.models.decoder import Decoder, Layer
from foveal.models.packed_lora import PackedLora, base_of, lora_of


def why_not_fused(decoder: Decoder, *, interpreted: bool = False) -> str | None:
    """The reason why a model cannot take the fused step; None if it can."""
    if decoder.device.type != "cuda" and not interpreted:
        return f"the model is on {decoder.device.type}"
    if decoder.dtype not in (torch.bfloat16, torch.float16):
        return f"its weights are {str(decoder.dtype).removeprefix('torch.')}"
    if decoder.width & (decoder.width - 1) or not 16 <= decoder.width <= 256:
        return f"its heads are {decoder.width} wide, not a power of two from 16 to 256"
    head = decoder.head
    if decoder.vocabulary < 16 or type(head) is not nn.Linear or head.bias is not None:
        return "its head is no plain linear layer without a bias"
    reasons = (_why_layer_not_fused(layer) for layer in decoder.layers)
    return next((reason for reason in reasons if reason is not None), None)


def _why_layer_not_fused(layer: Layer) -> str | None:
    biased = []
    for module in (module for group in layer.products for module in group):
        found = lora_of(module)
        if found is None:
            return f"a {type(module).__name__} layer has to be called as it is"
        biased.append(found[0].bias is not None)
    if any(biased[3:]):
        return "a layer other than q, k and v has a bias"
    return "of q, k and v some have a bias and some not" if len(set(biased[:3])) > 1 else None


@dataclass(slots=True)
class _FewRows:
    """Gate, up and down of up to 32 rows."""

    pair: GatedLinear
    down: SkinnyLinear


@dataclass(slots=True)
class _Products:
    """The products of a layer for a number of rows."""

    qkv: SkinnyLinear
    o: SkinnyLinear
    mlp: _FewRows | WideMLP


class FusedStep:
    """The step for a fixed number of rows.

    Args:
        decoder: the model's parts.
        lora: packed adapters.
        rows: B.
        cache_dtype: of the arena.
        workspace: room for the largest, shared by steps of all sizes.
    """

    def __init__(
        self,
        decoder: Decoder,
        lora: PackedLora,
        rows: int,
        cache_dtype: torch.dtype,
        workspace: Workspace,
    ) -> None:
        self.decoder, self.rows, self.cache_dtype = decoder, rows, cache_dtype
        self.room = workspace
        self.attention = DecodeAttention(
            rows, decoder.heads, decoder.kv_heads, decoder.width, cache_dtype, decoder.device
        )
        self.layers = [self._products(layer, lora) for layer in decoder.layers]
        self.head = SkinnyLinear([decoder.head.weight], [None], rows, split=False)
        layer_elements = 2 * decoder.kv_heads * PAGE * decoder.width
        self.layer_stride = layer_elements
        self.page_stride = layer_elements * len(decoder.layers)

    def _products(self, layer: Layer, lora: PackedLora) -> _Products:
        def given(modules: list[Any]) -> tuple[list[Tensor], list[Any]]:
            bases = [base_of(m) for m in modules]
            return [base.weight for base in bases], [lora.factors(m) for m in modules]

        qkv, o, pair, down = layer.products
        gelu = self.decoder.family.gelu
        if self.rows >= WIDE_ROWS:
            mlp = WideMLP(*given([*pair, *down]), self.rows, gelu=gelu)
        else:
            mlp = _FewRows(
                GatedLinear(*given(pair), self.rows, gelu=gelu),
                SkinnyLinear(*given(down), self.rows),
            )
        return _Products(
            SkinnyLinear(*given(qkv), self.rows), SkinnyLinear(*given(o), self.rows), mlp
        )

    def _mlp(self, mlp: _FewRows | WideMLP, h: Tensor) -> Tensor:
        """Parts of the layer's second half."""
        room = self.room
        if isinstance(mlp, WideMLP):
            return mlp(h, room.wide(mlp))
        act, parts = room.act[: self.rows], room.view(mlp.down)
        mlp.pair(h, act)
        mlp.down(act, parts)
        return parts

    def __call__(
        self,
        token_B: Tensor,
        rotary: dict[str, tuple[Tensor, Tensor]],
        base_position_B: Tensor,
        address: Tensor,
        rows: PagedRows,
        logits_BV: Tensor,
        kept: KeptRows | None = None,
    ) -> None:
        """Write the logits ``[B, V]`` of the next token; keys and values go into the cache.

        With ``kept`` the stream behind each layer goes there, on the way of the norm that adds it.
        """
        decoder, room, B = self.decoder, self.room, self.rows
        norm: dict[str, Any] = {
            "eps": decoder.eps, "add_one": decoder.family.norm_adds_one
        }  # fmt: skip
        residual, h, q, out = room.residual[:B], room.h[:B], room.q[:B], room.out[:B]
        residual.copy_(decoder.embed(token_B))
        parts: Tensor | None = None
        after: Tensor | None = None
        for number, (layer, products) in enumerate(zip(decoder.layers, self.layers, strict=True)):
            residual_norm(
                parts, residual, _weight(layer.before_attention), h, after_D=after,
                kept=kept if number else None, layer=number - 1, **norm,
            )  # fmt: skip
            qkv = room.view(products.qkv)
            products.qkv(h, qkv)
            cos, sin = rotary[layer.rotary]
            rotary_cache(
                qkv, _biases(layer), _head_norms(layer), cos, sin, q, address,
                number * self.layer_stride, self.page_stride, rows, base_position_B,
                kv_heads=decoder.kv_heads, cache_dtype=self.cache_dtype, **norm,
            )  # fmt: skip
            self.attention(
                q, address, number * self.layer_stride, self.page_stride, rows, out,
                scale=decoder.scale, window=layer.window, softcap=decoder.score_softcap,
            )  # fmt: skip
            parts = room.view(products.o)
            products.o(out.view(B, -1), parts)
            residual_norm(
                parts, residual, _weight(layer.before_mlp), h,
                after_D=_optional(layer.after_attention), **norm,
            )  # fmt: skip
            parts = self._mlp(products.mlp, h)
            after = _optional(layer.after_mlp)
        residual_norm(
            parts, residual, _weight(decoder.norm), h, after_D=after,
            kept=kept, layer=len(decoder.layers) - 1, **norm,
        )  # fmt: skip
        self.head(h, logits_BV)
        if decoder.softcap is not None:
            logits_BV.copy_(decoder.softcap * torch.tanh(logits_BV / decoder.softcap))

    def warm_tasks(
        self,
        token_B: Tensor,
        rotary: dict[str, tuple[Tensor, Tensor]],
        base_position_B: Tensor,
        address: Tensor,
        rows: PagedRows,
        logits_BV: Tensor,
        kept: KeptRows | None = None,
    ) -> list[Callable[[], None]]:
        """Launches that between them compile every kernel of the step; independent of each other.

        Their results are discarded: only layers of different kinds are run, each kernel by itself.
        """
        decoder, room, B = self.decoder, self.room, self.rows
        kinds = {layer.window: (layer, products)
                 for layer, products in zip(decoder.layers, self.layers, strict=True)}  # fmt: skip
        norm: dict[str, Any] = {
            "eps": decoder.eps, "add_one": decoder.family.norm_adds_one
        }  # fmt: skip
        residual, h, q, out = room.residual[:B], room.h[:B], room.q[:B], room.out[:B]
        tasks: list[Callable[[], None]] = []
        layer, products = next(iter(kinds.values()))
        qkv, o = room.view(products.qkv), room.view(products.o)
        down, mlp_tasks = self._warm_mlp(products.mlp, h)
        weight, after = _weight(layer.before_mlp), _optional(layer.after_mlp)
        for parts in (None, o, down):
            tasks.append(
                partial(residual_norm, parts, residual, weight, h,
                        after_D=None if parts is None else after, **norm)
            )  # fmt: skip
        # Places of rows whose width is no multiple of 16 differ in alignment.
        for number in () if kept is None else (0, 1):
            tasks.append(
                partial(residual_norm, down, residual, weight, h, after_D=after, kept=kept,
                        layer=number, **norm)
            )  # fmt: skip
        cos, sin = rotary[layer.rotary]
        tasks.append(
            partial(rotary_cache, qkv, _biases(layer), _head_norms(layer), cos, sin, q, address, 0,
                    self.page_stride, rows, base_position_B, kv_heads=decoder.kv_heads,
                    cache_dtype=self.cache_dtype, **norm)
        )  # fmt: skip
        for window in kinds:
            tasks.append(
                partial(self.attention, q, address, 0, self.page_stride, rows, out,
                        scale=decoder.scale, window=window, softcap=decoder.score_softcap)
            )  # fmt: skip
        tasks.append(partial(products.qkv, h, qkv))
        tasks.append(partial(products.o, out.view(B, -1), o))
        tasks += mlp_tasks
        tasks.append(partial(self.head, h, logits_BV))
        return tasks

    def _warm_mlp(
        self, mlp: _FewRows | WideMLP, h: Tensor
    ) -> tuple[Tensor, list[Callable[[], None]]]:
        """Room for what :meth:`_mlp` returns, and launches of its kernels."""
        if isinstance(mlp, WideMLP):
            room = self.room.wide(mlp)
            return room.out_1BD, mlp.launches(h, room)
        act, parts = self.room.act[: self.rows], self.room.view(mlp.down)
        return parts, [partial(mlp.pair, h, act), partial(mlp.down, act, parts)]


class Workspace:
    """Room for what flows between launches, for at most ``rows`` rows."""

    def __init__(self, decoder: Decoder, rows: int) -> None:
        def empty(*shape: int, dtype: torch.dtype = decoder.dtype) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=decoder.device)

        inner = base_of(decoder.layers[0].gate).out_features
        self.residual = empty(rows, decoder.hidden, dtype=decoder.residual_dtype)
        self.h = empty(rows, decoder.hidden)
        self.q = empty(rows, decoder.heads, decoder.width)
        self.out = empty(rows, decoder.heads, decoder.width)
        self.act = empty(min(rows, WIDE_ROWS - 1), inner)
        self._rows = rows
        self._rooms: dict[Hashable, Tensor] = {}
        self._outgrown: list[Tensor] = []
        self._empty = empty

    @property
    def bytes(self) -> int:
        tensors = [self.residual, self.h, self.q, self.out, self.act]
        tensors += [*self._rooms.values(), *self._outgrown]
        return sum(t.numel() * t.element_size() for t in tensors)

    def view(self, product: SkinnyLinear) -> Tensor:
        """Room for the parts of a product, ``[S, B, N]`` in float32."""
        # The parts of a product are read by the next kernel, so two products need their own room
        # only if they differ in width; those of one width never live at the same time.
        shape = (product.parts, product.rows, product.total)
        return self._room(product.total, shape, torch.float32, math.prod(shape))

    def wide(self, product: WideMLP) -> WideRoom:
        """Room for gate, up and down of many rows, the same for all layers."""

        def room(name: str, dtype: torch.dtype) -> Tensor:
            parts, _, columns = shape = product.shapes[name]
            return self._room(name, shape, dtype, parts * self._rows * columns)

        half = self.h.dtype
        return WideRoom(
            room("pair_2BN", half), room("out_1BD", half),
            room("low_SBR", torch.float32), room("low_down_PBR", torch.float32),
        )  # fmt: skip

    def _room(
        self, name: Hashable, shape: tuple[int, int, int], dtype: torch.dtype, most: int
    ) -> Tensor:
        """A view of the room of a name, made with ``most`` elements if it is too small."""
        size = math.prod(shape)
        if name not in self._rooms or self._rooms[name].numel() < size:
            if name in self._rooms:
                # Captured graphs go on using the old room.
                self._outgrown.append(self._rooms[name])
            self._rooms[name] = self._empty(most, dtype=dtype)
        return self._rooms[name][:size].view(shape)


def _weight(module: Any) -> Tensor:
    return module.weight


def _optional(module: nn.Module | None) -> Tensor | None:
    return None if module is None else _weight(module)


def _biases(layer: Layer) -> tuple[Tensor, Tensor, Tensor] | None:
    found = [base_of(m).bias for m in (layer.q, layer.k, layer.v)]
    return None if found[0] is None else tuple(found)


def _head_norms(layer: Layer) -> tuple[Tensor, Tensor] | None:
    if layer.q_norm is None or layer.k_norm is None:
        return None
    return _weight(layer.q_norm), _weight(layer.k_norm)
