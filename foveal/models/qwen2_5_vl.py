"""Qwen2.5-VL (arXiv:2502.13923): windowed vision tower, multimodal rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.family import Family, stock_model
from foveal.models.positions import mrope_positions
from foveal.models.rows import RowBatch
from foveal.types import ImageInput, Prompt

FAMILY = Family(
    model_type="qwen2_5_vl",
    model_class="Qwen2_5_VLForConditionalGeneration",
    vision_paths=("model.visual",),
    language_path="model.language_model",
    attention_linears=("q_proj", "k_proj", "v_proj", "o_proj", "attn.qkv", "attn.proj"),
    mlp_linears=("gate_proj", "up_proj", "down_proj", "merger.mlp.0", "merger.mlp.2"),
    placeholder_fields=("image_token_id", "video_token_id"),
    fp32_residual=False,
)


def encode_images(model: nn.Module, images: Sequence[ImageInput]) -> list[tuple[Tensor, ...]]:
    """One tower call for all pictures; each comes back as ``(features_MD,)``."""
    stock = stock_model(model)
    pixels = torch.cat([image.pixel_values for image in images]).to(stock.device)
    grid = torch.tensor([image.grid_thw for image in images], device=stock.device)
    output = stock.model.get_image_features(pixels, grid, return_dict=True)
    return [(features_MD,) for features_MD in output.pooler_output]


def row_positions(config: Any, prompt: Prompt, length: int) -> Tensor:
    return mrope_positions(
        prompt.ids,
        config.image_token_id,
        [image.grid_thw for image in prompt.images if image.grid_thw is not None],
        config.vision_config.spatial_merge_size,
        length,
    )


def decoder_inputs(
    model: nn.Module,
    batch: RowBatch,
    embeds_BLD: Tensor,
    features: Sequence[tuple[Tensor, ...]],
) -> dict[str, Any]:
    return {"position_ids": batch.positions_ABL, "attention_mask": batch.real_BL.long()}
