"""The decoder stack as a list of named parts, and one token a row through it.

Nothing is copied and nothing is replaced: a :class:`Decoder` only names the modules of a loaded
model, so adapters, quantised layers and updates are whatever they are at the moment of a call.
``plain_step`` is the specification of faster forms and what runs on a CPU and through quantised
layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.kernels.decode_fused import rotate_reference
from foveal.models.family import family_of, final_softcap, language_model, stock_model

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``attend(layer, q_BHC, k_BKC, v_BKC) -> out_BHC``: writes the cache and attends."""
Keep = Callable[[int, Tensor], None]
"""``keep(layer, x_BD)``: shown the residual stream behind each layer."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, its modules by what they do; None for those that a family lacks."""

    q: Any
    k: Any
    v: Any
    o: Any
    gate: Any
    up: Any
    down: Any
    before_attention: Any
    after_attention: Any
    before_mlp: Any
    after_mlp: Any
    q_norm: Any
    k_norm: Any
    window: int
    """Sliding window in tokens, 0 for none."""
    rotary: str
    """Which rotary table: the layer type where a family has several."""

    @property
    def products(self) -> list[list[Any]]:
        """Linear layers in groups that share their input."""
        return [[self.q, self.k, self.v], [self.o], [self.gate, self.up], [self.down]]


class Decoder:
    """The parts of a loaded model that decode.

    Args:
        model: stock model or its PEFT wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.family = family_of(model).FAMILY
        stock, stack = stock_model(model), language_model(model)
        config = stock.config.get_text_config()
        self.embed: Any = stock.get_input_embeddings()
        self.head: Any = stock.get_output_embeddings()
        self.norm: Any = stack.norm
        self.softcap = final_softcap(model)
        self.layers = [self._layer(layer, config) for layer in stack.layers]
        attention = stack.layers[0].self_attn
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.width: int = attention.head_dim
        self.hidden: int = config.hidden_size
        self.vocabulary: int = stock.get_output_embeddings().weight.shape[0]
        self.scale = float(attention.scaling)
        self.score_softcap = float(getattr(attention, "attn_logit_softcapping", None) or 0.0)
        self.eps = float(config.rms_norm_eps)
        self.dtype: torch.dtype = stock.dtype
        self.device: torch.device = stock.device
        self._rotary: Any = stack.rotary_emb

    @property
    def residual_dtype(self) -> torch.dtype:
        """Of the residual stream: float32 where it outgrows float16."""
        wide = self.family.fp32_residual and self.dtype == torch.float16
        return torch.float32 if wide else self.dtype

    @property
    def products(self) -> list[list[Any]]:
        """Linear layers of the whole stack in groups that share their input."""
        return [group for layer in self.layers for group in layer.products]

    @property
    def page_elements(self) -> int:
        """Elements of one token in the cache, all layers."""
        return len(self.layers) * 2 * self.kv_heads * self.width

    @torch.no_grad()
    def rotary_tables(self, length: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosines and sines ``[length, C]`` of every kind of layer, from the stock module.

        A decoded token is text: its position is the same along all axes.
        """
        position_T = torch.arange(length, device=self.device)
        axes = 1 if self.layers[0].rotary else 3
        cos, sin = self.rotary_at(position_T.expand(axes, -1))
        return {kind: (cos[kind], sin[kind]) for kind in cos}

    @torch.no_grad()
    def rotary_at(self, position_AT: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Cosines and sines ``[T, C]`` by kind of layer, at positions along A axes."""
        x = torch.zeros(1, dtype=self.residual_dtype, device=self.device)
        cosines, sines = {}, {}
        for kind in {layer.rotary for layer in self.layers}:
            if kind:
                cos, sin = self._rotary(x, position_AT[:1], kind)
            else:
                cos, sin = self._rotary(x, position_AT[:, None])
            cosines[kind], sines[kind] = cos[0].contiguous(), sin[0].contiguous()
        return cosines, sines

    def _layer(self, layer: Any, config: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        sandwich = hasattr(layer, "pre_feedforward_layernorm")
        window = getattr(attention, "sliding_window", None)
        return Layer(
            q=attention.q_proj,
            k=attention.k_proj,
            v=attention.v_proj,
            o=attention.o_proj,
            gate=mlp.gate_proj,
            up=mlp.up_proj,
            down=mlp.down_proj,
            before_attention=layer.input_layernorm,
            after_attention=layer.post_attention_layernorm if sandwich else None,
            before_mlp=layer.pre_feedforward_layernorm
            if sandwich
            else layer.post_attention_layernorm,
            after_mlp=layer.post_feedforward_layernorm if sandwich else None,
            q_norm=getattr(attention, "q_norm", None),
            k_norm=getattr(attention, "k_norm", None),
            window=int(window or 0),
            rotary=attention.layer_type if isinstance(config.rope_parameters.get(
                "full_attention"), dict) else "",
        )  # fmt: skip


def plain_step(
    decoder: Decoder,
    token_B: Tensor,
    rotary: dict[str, tuple[Tensor, Tensor]],
    position_B: Tensor,
    attend: Attend,
    keep: Keep | None = None,
) -> Tensor:
    """Hidden states ``[B, D]`` after the last norm for one token a row, by the stock modules.

    Args:
        token_B: token ids.
        rotary: tables of :meth:`Decoder.rotary_tables`.
        position_B: rotary position of each token.
        attend: writes keys and values into the cache and attends.
        keep: shown the stream behind each layer.
    """
    x = decoder.embed(token_B).to(decoder.residual_dtype)
    angles = {kind: (cos[position_B], sin[position_B]) for kind, (cos, sin) in rotary.items()}
    for number, layer in enumerate(decoder.layers):
        q, k, v = attention_inputs(decoder, layer, x, angles[layer.rotary])
        x = attention_outputs(decoder, layer, x, attend(number, q, k, v))
        if keep is not None:
            keep(number, x)
    return decoder.norm(x)


def attention_inputs(
    decoder: Decoder, layer: Layer, x_ND: Tensor, angles: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer up to its attention: rotated q ``[N, H, C]`` and k, and v ``[N, K, C]``.

    Args:
        x_ND: residual stream.
        angles: cosine and sine of each token's position, ``[N, C]``.
    """
    h, N = layer.before_attention(x_ND), x_ND.shape[0]
    q, k, v = (module(h).view(N, -1, decoder.width) for module in (layer.q, layer.k, layer.v))
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = layer.q_norm(q), layer.k_norm(k)
    return rotate_reference(q, *angles), rotate_reference(k, *angles), v


def attention_outputs(decoder: Decoder, layer: Layer, x_ND: Tensor, attended_NHC: Tensor) -> Tensor:
    """A layer from its attention on: the residual stream behind it, ``[N, D]``."""
    y = layer.o(attended_NHC.flatten(1))
    x = x_ND + (y if layer.after_attention is None else layer.after_attention(y))
    h = layer.before_mlp(x)
    gate = layer.gate(h)
    gate = F.gelu(gate, approximate="tanh") if decoder.family.gelu else F.silu(gate)
    y = layer.down(gate * layer.up(h))
    return x + (y if layer.after_mlp is None else layer.after_mlp(y))
