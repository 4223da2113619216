"""One token a row through the decoder on a CPU in float32: the fast form of ``plain_step``.

On small models it is the number of operators that takes the time, so products of one input share
their adapter's product, the residual stream is added to by the products themselves, and whatever
depends on weights alone is worked out once a rollout. Base weights are read where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.kernels.decode_attention import PagedRows
from foveal.kernels.decode_attention_dense import DenseAttention
from foveal.models.decoder import Decoder, Keep, Layer
from foveal.models.packed_lora import lora_of


def why_not_on_cpu(decoder: Decoder, cache_dtype: torch.dtype) -> str | None:
    """The reason why a model cannot take this step; None if it can."""
    if decoder.device.type != "cpu":
        return f"the model is on {decoder.device.type}"
    if decoder.dtype != torch.float32 or cache_dtype != torch.float32:
        return f"weights are {decoder.dtype} and the cache is {cache_dtype}, not both float32"
    modules = (m for layer in decoder.layers for group in layer.products for m in group)
    odd = next((m for m in modules if lora_of(m) is None), None)
    return None if odd is None else f"a {type(odd).__name__} layer has to be called as it is"


class _Product:
    """Linear layers that share their input, side by side, with their adapters.

    Adapters of the group become two matrices: all of its A one below the other, and its B along a
    diagonal of blocks, so that they take two products however many layers there are.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        found = [lora_of(module) for module in modules]
        assert all(f is not None for f in found)
        bases: list[Any] = [f[0] for f in found if f is not None]
        self.total = sum(base.out_features for base in bases)
        self._layers: list[tuple[slice, Tensor, Tensor | None]] = []
        self._a_KR: Tensor | None = None
        downs, ups, at = [], [], 0
        for base, (_, adapters) in zip(bases, (f for f in found if f is not None), strict=True):
            columns = slice(at, at + base.out_features)
            self._layers.append((columns, base.weight.detach().t(), base.bias))
            for a_RK, b_NR, scale in adapters:
                up_RN = b_NR.new_zeros(b_NR.shape[1], self.total)
                up_RN[:, columns] = b_NR.t() * scale
                downs.append(a_RK)
                ups.append(up_RN)
            at = columns.stop
        if downs:
            self._a_KR, self._b_RN = torch.cat(downs).t(), torch.cat(ups)

    def __call__(self, x_BK: Tensor) -> Tensor:
        """``[B, N]``, the layers' outputs side by side."""
        y = x_BK.new_empty(len(x_BK), self.total)
        for columns, weight_KN, bias in self._layers:
            out = y if len(self._layers) == 1 else y[:, columns]
            if bias is None:
                torch.mm(x_BK, weight_KN, out=out)
            else:
                torch.addmm(bias, x_BK, weight_KN, out=out)
        if self._a_KR is not None:
            y.addmm_(torch.mm(x_BK, self._a_KR), self._b_RN)
        return y

    def add_to(self, y_BN: Tensor, x_BK: Tensor) -> None:
        """Add the output of the group's only layer to ``y_BN``."""
        ((_, weight_KN, bias),) = self._layers
        y_BN.addmm_(x_BK, weight_KN)
        if bias is not None:
            y_BN.add_(bias)
        if self._a_KR is not None:
            y_BN.addmm_(torch.mm(x_BK, self._a_KR), self._b_RN)


class _Norm:
    """Root-mean-square norm over the last axis: ``x / sqrt(|x|^2 + D eps) * (sqrt(D) w)``."""

    def __init__(self, weight: Tensor, eps: float, add_one: bool) -> None:
        D = weight.shape[-1]
        self._weight = (weight.detach() + 1.0 if add_one else weight.detach()) * D**0.5
        self._least = torch.tensor((D * eps) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self._least)
        return torch.div(x, length).mul_(self._weight)


@dataclass(slots=True)
class _Parts:
    """A layer, ready for a rollout."""

    qkv: _Product
    o: _Product
    pair: _Product
    down: _Product
    before_attention: _Norm
    after_attention: _Norm | None
    before_mlp: _Norm
    after_mlp: _Norm | None
    heads_norm: _Norm | None
    """Of all query and key heads at once."""


class CpuStep:
    """The step for any number of rows.

    Args:
        decoder: of a model for which :func:`why_not_on_cpu` has no reason.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._windows = {layer.window for layer in decoder.layers}
        self._attention: DenseAttention | None = None
        self._batch: object = None
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take norms and adapters as they are now; what earlier steps fetched is forgotten."""
        self._attention = None
        self._layers = [self._parts(layer) for layer in self.decoder.layers]
        self._norm = self._norm_of(self.decoder.norm)

    def release(self) -> None:
        """Free the copies of keys."""
        self._attention = None

    def __call__(
        self,
        token_B: Tensor,
        rotary: dict[str, tuple[Tensor, Tensor]],
        position_B: Tensor,
        rows: PagedRows,
        arena: Tensor,
        batch: object,
        logits_BV: Tensor,
        keep: Keep | None = None,
    ) -> None:
        """Write the logits ``[B, V]`` of the next token; keys and values go into the cache.

        Args:
            token_B, rotary, position_B: as in :func:`foveal.models.decoder.plain_step`.
            rows: where keys lie. Between calls with one ``batch`` only ``cached_B`` changes, by
                one a call.
            arena: the cache.
            batch: equal to that of the call before if the rows are.
            logits_BV: written.
            keep: shown the stream behind each layer, which is changed in place afterwards.
        """
        d, attention = self.decoder, self._attend(rows, arena, batch)
        attention.begin()
        x = d.embed(token_B).clone()
        turns = {kind: _turns(cos, sin, position_B) for kind, (cos, sin) in rotary.items()}
        for number, (layer, parts) in enumerate(zip(d.layers, self._layers, strict=True)):
            qkv = parts.qkv(parts.before_attention(x)).view(len(x), -1, d.width)
            turned = qkv[:, : d.heads + d.kv_heads]
            if parts.heads_norm is not None:
                turned.copy_(parts.heads_norm(turned))
            _rotate(turned, *turns[layer.rotary])
            out = attention(
                qkv[:, : d.heads], qkv[:, d.heads :], number,
                scale=d.scale, window=layer.window, softcap=d.score_softcap,
            )  # fmt: skip
            _join(x, out, parts.o, parts.after_attention)
            both = parts.pair(parts.before_mlp(x))
            gate, up = both.chunk(2, dim=1)
            act = F.gelu(gate, approximate="tanh") if d.family.gelu else F.silu(gate)
            _join(x, act.mul_(up), parts.down, parts.after_mlp)
            if keep is not None:
                keep(number, x)
        attention.finish()
        logits = d.head(self._norm(x))
        if d.softcap is not None:
            logits = d.softcap * torch.tanh(logits / d.softcap)
        logits_BV.copy_(logits)

    def _attend(self, rows: PagedRows, arena: Tensor, batch: object) -> DenseAttention:
        found = self._attention
        if (
            found is None
            or batch != self._batch
            or found.arena is not arena
            or found.steps == found.room
        ):
            self._attention = None
            self._attention = DenseAttention(rows, arena, self.decoder.heads, self._windows)
            self._batch = batch
        assert self._attention is not None
        return self._attention

    def _parts(self, layer: Layer) -> _Parts:
        qkv, o, pair, down = (_Product(group) for group in layer.products)
        return _Parts(
            qkv, o, pair, down,
            self._norm_of(layer.before_attention),
            layer.after_attention and self._norm_of(layer.after_attention),
            self._norm_of(layer.before_mlp),
            layer.after_mlp and self._norm_of(layer.after_mlp),
            self._heads_norm(layer),
        )  # fmt: skip

    def _norm_of(self, module: Any) -> _Norm:
        return _Norm(module.weight, self.decoder.eps, self.decoder.family.norm_adds_one)

    def _heads_norm(self, layer: Layer) -> _Norm | None:
        d, q, k = self.decoder, layer.q_norm, layer.k_norm
        if q is None or k is None:
            return None
        weight = torch.cat([q.weight.expand(d.heads, -1), k.weight.expand(d.kv_heads, -1)])  # pyright: ignore
        return _Norm(weight, d.eps, d.family.norm_adds_one)


def _join(x: Tensor, h: Tensor, product: _Product, after: _Norm | None) -> None:
    """Add a product of ``h``, normed if there is a norm after it, to the residual stream."""
    if after is None:
        product.add_to(x, h)
    else:
        x.add_(after(product(h)))


def _turns(cos_TC: Tensor, sin_TC: Tensor, position_B: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign of the half that they meet: ``[B, 1, C]`` each."""
    half = sin_TC.shape[-1] // 2
    cos, sin = cos_TC[position_B][:, None], sin_TC[position_B][:, None]
    sin[..., :half].neg_()
    return cos, sin


def _rotate(x_BNC: Tensor, cos_B1C: Tensor, sin_B1C: Tensor) -> None:
    """``x * cos + rotate_half(x) * sin`` in place."""
    swapped = x_BNC.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    x_BNC.mul_(cos_B1C).addcmul_(swapped, sin_B1C)
