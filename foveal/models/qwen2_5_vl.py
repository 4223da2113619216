"""Qwen2.5-VL (arXiv:2502.13923): windowed vision tower, multimodal rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
    packed_vision=True,
    gated_vision=True,
    fp32_residual=False,
    answer_coordinates="resized",
)


def encode_images(model: nn.Module, images: Sequence[ImageInput]) -> list[tuple[Tensor, ...]]:
    """One tower call for all pictures; each comes back as ``(features_MD,)``."""
    stock = stock_model(model)
    # Joined on the device: tens of megabytes of fresh host memory would cost more than the copy.
    pixels = torch.cat([image.pixel_values.to(stock.device) for image in images])
    grid_I3 = torch.tensor([image.grid_thw for image in images])
    index = packed_index(grid_I3, stock.config.vision_config) | window_index(
        grid_I3, stock.config.vision_config
    )
    output = stock.model.get_image_features(
        pixels, grid_I3, return_dict=True, **index_on(stock.device, index)
    )
    return [(features_MD,) for features_MD in output.pooler_output]


def packed_index(grid_I3: Tensor, config: Any) -> dict[str, Any]:
    """Where pictures lie in the packed row, as keyword arguments of the stock tower.

    The tower would compute the same on the GPU and read it back, and wait for the GPU each time;
    computed on the CPU beforehand, nothing waits.

    Args:
        grid_I3: patches of each picture along time, height and width, on the CPU.
        config: the vision config.
    """
    from transformers.vision_utils import get_vision_cu_seqlens

    offsets = get_vision_cu_seqlens(grid_I3)
    merge = config.spatial_merge_size
    return {
        "cu_seqlens": offsets,
        "max_seqlen": int(offsets.diff().max()),
        "position_ids": torch.cat([_positions(tuple(grid), merge) for grid in grid_I3.tolist()]),
    }


def window_index(grid_I3: Tensor, config: Any) -> dict[str, Any]:
    """The order of patches by window, and where windows lie in it; as :func:`packed_index`."""
    merge = config.spatial_merge_size
    orders, ends, tokens = [], [torch.zeros(1, dtype=torch.int32)], 0
    for grid in grid_I3.tolist():
        order, offsets = _windows(tuple(grid), merge, config.window_size, config.patch_size)
        orders.append(order + tokens)
        ends.append(offsets[1:] + tokens * merge**2)
        tokens += len(order)
    offsets = torch.cat(ends)
    return {
        "window_index": torch.cat(orders),
        "cu_window_seqlens": offsets,
        "max_window_seqlen": int(offsets.diff().max()),
    }


# Pictures of a data set have few sizes, and these indices take 0.4 ms of the host's time a picture,
# which a batch of a hundred small ones would feel: what depends on the size alone is kept.
@lru_cache(maxsize=1024)
def _positions(grid: tuple[int, int, int], merge: int) -> Tensor:
    """Row and column of each patch of one picture, ``[patches, 2]``."""
    from transformers.vision_utils import get_vision_position_ids

    return get_vision_position_ids(torch.tensor([grid]), merge)


@lru_cache(maxsize=1024)
def _windows(
    grid: tuple[int, int, int], merge: int, window: int, patch: int
) -> tuple[Tensor, Tensor]:
    """The order of one picture's merged patches by window, and where windows begin and end."""
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(torch.tensor([grid]), merge, window, patch)


def index_on(device: torch.device, index: dict[str, Any]) -> dict[str, Any]:
    """``index`` with its tensors on ``device``, copied from pinned memory so that nothing waits."""
    pinned = device.type == "cuda"
    return {
        name: (value.pin_memory() if pinned else value).to(device, non_blocking=pinned)
        if isinstance(value, Tensor)
        else value
        for name, value in index.items()
    }


def row_positions(config: Any, prompt: Prompt, length: int) -> Tensor:
    return mrope_positions(
        prompt.ids,
        config.image_token_id,
        [image.grid_thw for image in prompt.images if image.grid_thw is not None],
        config.vision_config.spatial_merge_size,
        length,
    )


def prompt_masks(config: Any, image_L: Tensor) -> None:
    """Causal attention needs no mask of its own."""


def decoder_inputs(
    model: nn.Module,
    batch: RowBatch,
    embeds_BLD: Tensor,
    features: Sequence[tuple[Tensor, ...]],
) -> dict[str, Any]:
    return {"position_ids": batch.positions_ABL, "attention_mask": batch.real_BL.long()}
