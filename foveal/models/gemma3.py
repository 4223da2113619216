"""Gemma 3 (arXiv:2503.19786): pictures of one size whose tokens see each other both ways,
sliding and global layers, a residual stream too large for float16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.family import Family, stock_model
from foveal.models.rows import RowBatch
from foveal.types import ImageInput, Prompt

FAMILY = Family(
    model_type="gemma3",
    model_class="Gemma3ForConditionalGeneration",
    vision_paths=("model.vision_tower", "model.multi_modal_projector"),
    language_path="model.language_model",
    attention_linears=("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
    mlp_linears=("gate_proj", "up_proj", "down_proj", "fc1", "fc2"),
    placeholder_fields=("image_token_id", "boi_token_id", "eoi_token_id"),
    packed_vision=False,
    fp32_residual=True,
    norm_adds_one=True,
    gelu=True,
)


def encode_images(model: nn.Module, images: Sequence[ImageInput]) -> list[tuple[Tensor, ...]]:
    """One tower call for all pictures; each comes back as ``(features_MD,)``."""
    stock = stock_model(model)
    dtype = stock.model.vision_tower.dtype
    pixels = torch.stack([image.pixel_values.to(stock.device, dtype) for image in images])
    output = stock.model.get_image_features(pixels, return_dict=True)
    return [(features_MD,) for features_MD in output.pooler_output]


def row_positions(config: Any, prompt: Prompt, length: int) -> Tensor:
    return torch.arange(length)[None]


def decoder_inputs(
    model: nn.Module,
    batch: RowBatch,
    embeds_BLD: Tensor,
    features: Sequence[tuple[Tensor, ...]],
) -> dict[str, Any]:
    config = stock_model(model).config.get_text_config()
    full, sliding = attention_masks(batch.real_BL, batch.image_BL, config.sliding_window)
    masks = {"full_attention": full[:, None], "sliding_attention": sliding[:, None]}
    if config._attn_implementation == "eager":
        lowest = torch.finfo(embeds_BLD.dtype).min
        masks = {
            name: torch.zeros_like(mask, dtype=embeds_BLD.dtype).masked_fill(~mask, lowest)
            for name, mask in masks.items()
        }
    elif config._attn_implementation != "sdpa":
        raise ValueError(
            f"Gemma 3 was loaded with attn_implementation={config._attn_implementation!r}, which "
            "cannot let image tokens see each other both ways; load it with 'sdpa'"
        )
    return {"position_ids": batch.positions_ABL[0], "attention_mask": masks}


def prompt_masks(config: Any, image_L: Tensor) -> dict[str, Tensor]:
    """Who sees whom in one prompt, ``[L, L]`` by kind of layer."""
    image_1L = image_L[None]
    window = config.get_text_config().sliding_window
    full, sliding = attention_masks(torch.ones_like(image_1L), image_1L, window)
    return {"full_attention": full[0], "sliding_attention": sliding[0]}


def attention_masks(real_BL: Tensor, image_BL: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Who sees whom, ``[B, L, L]`` booleans: in global layers and in sliding ones.

    Causal, in sliding layers within ``window`` positions; and the tokens of one picture see each
    other both ways in both. Each token sees itself, padding included: a row of the mask without
    any True would give nan.
    """
    length = real_BL.shape[1]
    at = torch.arange(length, device=real_BL.device)
    distance = at[:, None] - at[None, :]
    starts_BL = image_BL & ~torch.nn.functional.pad(image_BL, (1, 0))[:, :-1]
    picture_BL = starts_BL.cumsum(-1) * image_BL
    same_picture = (picture_BL[:, :, None] == picture_BL[:, None, :]) & image_BL[:, :, None]
    causal = (distance >= 0)[None]
    full = ((causal | same_picture) & real_BL[:, None, :]) | (distance == 0)
    near = causal & (distance < window)[None]
    sliding = ((near | same_picture) & real_BL[:, None, :]) | (distance == 0)
    return full, sliding
