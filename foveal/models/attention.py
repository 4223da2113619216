"""One attention call a layer in vision towers that pack windows and pictures.

    layers = fast_vision_attention(model)      # at loading; does nothing the second time
    stock_vision_attention(model)              # back to what transformers does

With "sdpa" the towers of Qwen2.5-VL and Qwen3-VL cut the packed sequence and call attention once
a window and once a picture, in a Python loop. They hand the whole sequence and its offsets to an
implementation whose name holds "flash". So ours is registered under such a name, and chosen in
the vision config of one instance alone. Its layers also rotate queries and keys in one pass.

That name means something to this process only. It is in no saved config; but a second model
built from the live ``model.config`` would look for a package of that name: build it from
:func:`stock_config`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from foveal.kernels import rotate, varlen_attention
from foveal.models.family import family_of, stock_model
from foveal.models.state import state_of

PACKED_ATTENTION = "foveal_flash_varlen"
"""Name in transformers' table of attention functions; see above for why it says flash."""
REPLACED = "sdpa"
"""The one implementation that is replaced: whoever chose another had a reason."""


def fast_vision_attention(model: nn.Module) -> int:
    """Let each attention layer of the vision tower handle all windows and pictures in one call.

    Only where the tower packs them and is on "sdpa": Gemma 3's tower attends to each picture as
    a whole already, and any other implementation is the user's choice.

    Args:
        model: stock model or its PEFT wrapper.

    Returns:
        How many layers use one call now; 0 where the tower was left alone.

    Raises:
        ValueError: if the tower has no attention layer that reads the vision config.
    """
    if not family_of(model).FAMILY.packed_vision:
        return 0
    stock = stock_model(model)
    if stock.config.vision_config._attn_implementation == REPLACED:
        _choose(stock, PACKED_ATTENTION)
    if stock.config.vision_config._attn_implementation != PACKED_ATTENTION:
        return 0
    layers = _attention_layers(stock)
    if not layers:
        _choose(stock, REPLACED)
        raise ValueError(
            f"no attention layer in the vision tower of {type(stock).__name__} reads "
            "config.vision_config, so none can be made faster; load the model with "
            "transformers' own class, or with attn_implementation='eager'"
        )
    for layer in layers:
        # A forward that somebody else has put there has its reasons.
        if "forward" not in vars(layer):
            layer.forward = PackedForward(layer)
    line = f"{len(layers)} layers of the vision tower attend in one call instead of one a segment"
    state_of(stock).record("vision attention", line)
    return len(layers)


def stock_vision_attention(model: nn.Module) -> int:
    """Undo :func:`fast_vision_attention`; returns how many layers were switched back."""
    stock = stock_model(model)
    if not family_of(model).FAMILY.packed_vision:
        return 0
    if stock.config.vision_config._attn_implementation != PACKED_ATTENTION:
        return 0
    layers = _attention_layers(stock)
    for layer in layers:
        if isinstance(vars(layer).get("forward"), PackedForward):
            del layer.forward
    _choose(stock, REPLACED)
    state_of(stock).record("vision attention", None)
    return len(layers)


def stock_config(model: nn.Module) -> Any:
    """A copy of a model's config from which transformers can build another model."""
    config = copy.deepcopy(stock_model(model).config)
    vision = getattr(config, "vision_config", None)
    if vision is not None and vision._attn_implementation == PACKED_ATTENTION:
        vision._attn_implementation = REPLACED
    return config


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: ``[1, H, N, C]`` in, ``([1, N, H, C], None)`` out.

    Raises:
        ValueError: where it would compute something else than was asked for.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError(
            f"{type(module).__name__} gave no offsets of packed segments; {PACKED_ATTENTION!r} is "
            "for packed vision towers only: call stock_vision_attention(model)"
        )
    if attention_mask is not None or dropout or query.shape[0] != 1:
        raise ValueError(
            f"{type(module).__name__} gave a mask, dropout={dropout} or {query.shape[0]} rows; "
            f"{PACKED_ATTENTION!r} takes one packed row without either: call "
            "stock_vision_attention(model)"
        )
    query_NHC, key_NHC, value_NHC = (x[0].transpose(0, 1) for x in (query, key, value))
    output_NHC = varlen_attention(
        query_NHC, key_NHC, value_NHC, cu_seq_lens_q, int(max_length_q), scaling
    )
    return output_NHC[None], None


@dataclass(eq=False, slots=True)
class PackedForward:
    """Stands in for ``forward`` on one instance, and is copied and pickled along with it."""

    layer: Any

    def __call__(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **options: Any,
    ) -> Tensor:
        """What the block calls: ``[N, D]`` in and out."""
        layer = self.layer
        chosen = (
            layer.config._attn_implementation == PACKED_ATTENTION and not layer.attention_dropout
        )
        if not chosen or position_embeddings is None or max_seqlen is None:
            return type(layer).forward(
                layer, hidden_states, cu_seqlens, position_embeddings, max_seqlen, **options
            )
        tokens = hidden_states.shape[0]
        qkv_N3HC = layer.qkv(hidden_states).view(tokens, 3, layer.num_heads, -1)
        pair_N2HC, value_N1HC = qkv_N3HC.split((2, 1), dim=1)
        query_NHC, key_NHC = rotate(pair_N2HC, *position_embeddings).unbind(1)
        output_NHC = varlen_attention(
            query_NHC, key_NHC, value_N1HC[:, 0], cu_seqlens, int(max_seqlen), layer.scaling
        )
        return layer.proj(output_NHC.reshape(tokens, -1))


def _choose(stock: Any, name: str) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    stock.set_attn_implementation({"vision_config": name})


def _attention_layers(stock: Any) -> list[Any]:
    """Modules of the tower that look their attention function up in the vision config."""
    return [
        module
        for module in stock.get_submodule(family_of(stock).FAMILY.vision_paths[0]).modules()
        if type(module).__name__.endswith("VisionAttention")
        and getattr(module, "config", None) is stock.config.vision_config
    ]
