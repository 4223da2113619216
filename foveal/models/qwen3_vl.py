"""Qwen3-VL: features of several tower depths join the first decoder layers (deepstack)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.family import Family, stock_model
from foveal.models.qwen2_5_vl import index_on, packed_index, prompt_masks, row_positions
from foveal.models.rows import RowBatch
from foveal.types import ImageInput

__all__ = ["FAMILY", "encode_images", "row_positions", "decoder_inputs", "prompt_masks"]

FAMILY = Family(
    model_type="qwen3_vl",
    model_class="Qwen3VLForConditionalGeneration",
    vision_paths=("model.visual",),
    language_path="model.language_model",
    attention_linears=("q_proj", "k_proj", "v_proj", "o_proj", "attn.qkv", "attn.proj"),
    mlp_linears=("gate_proj", "up_proj", "down_proj", "linear_fc1", "linear_fc2"),
    placeholder_fields=("image_token_id", "video_token_id"),
    packed_vision=True,
    fp32_residual=False,
)


def encode_images(model: nn.Module, images: Sequence[ImageInput]) -> list[tuple[Tensor, ...]]:
    """One tower call for all pictures; each comes back as ``(features_MD, *deepstack_MD)``."""
    stock = stock_model(model)
    # Joined on the device: tens of megabytes of fresh host memory would cost more than the copy.
    pixels = torch.cat([image.pixel_values.to(stock.device) for image in images])
    grid_I3 = torch.tensor([image.grid_thw for image in images])
    index = packed_index(grid_I3, stock.config.vision_config) | position_taps(grid_I3, stock)
    output = stock.model.get_image_features(
        pixels, grid_I3, return_dict=True, **index_on(stock.device, index)
    )
    counts = [image.num_tokens for image in images]
    # Some versions of transformers hand deepstack features out joined, others one a picture.
    deepstack = [
        level.split(counts) if isinstance(level, Tensor) else level
        for level in output.deepstack_features
    ]
    return list(zip(output.pooler_output, *deepstack, strict=True))


def position_taps(grid_I3: Tensor, stock: Any) -> dict[str, Any]:
    """Entries of the learned position table that each patch mixes, and how much of each; as
    :func:`foveal.models.qwen2_5_vl.packed_index`."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    tower = stock.model.visual
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_I3,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=tower.spatial_merge_size,
    )
    return {"interp_indices": indices, "interp_weights": weights}


def decoder_inputs(
    model: nn.Module,
    batch: RowBatch,
    embeds_BLD: Tensor,
    features: Sequence[tuple[Tensor, ...]],
) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "position_ids": batch.positions_ABL,
        "attention_mask": batch.real_BL.long(),
    }
    if features:
        _, *levels = zip(*features, strict=True)
        inputs["visual_pos_masks"] = batch.image_BL
        inputs["deepstack_visual_embeds"] = [torch.cat(level) for level in levels]
    return inputs
