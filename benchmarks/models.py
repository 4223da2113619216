"""Models of real size with random weights, and rows for them: speed does not ask for training.

The sizes are those of the checkpoints' config.json. Processors are the byte-level ones of
``foveal.testing``, set to the real number of tokens a picture; their ids are valid in the large
vocabulary, and sampled ids beyond theirs decode to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from foveal.types import Prompt

Scale = Literal["full", "tiny"]
SHRINK = 4
"""Scale "tiny" divides widths and numbers of heads by this; heads keep their width."""
TINY_VOCABULARY = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Where a checkpoint differs from the defaults of its family's config class."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    top: dict[str, Any]
    """Fields of the config that holds both."""
    picture_px: int
    """Edge of a square picture."""
    picture_tokens: int
    """Image tokens of such a picture."""
    tiny_vision: dict[str, Any] = field(default_factory=dict)
    """Fields of the tower at scale "tiny": fewer layers, each kind still there."""
    tiny_picture: tuple[int, int] = (0, 0)
    """``picture_px`` and ``picture_tokens`` at scale "tiny"."""


# Qwen/Qwen2.5-VL-7B-Instruct
QWEN2_5_VL_7B = Size(
    family="qwen2_5_vl",
    text={
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    },
    vision={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 3584,
    },
    top={"tie_word_embeddings": False},
    picture_px=840,
    picture_tokens=900,
    tiny_vision={"depth": 4, "fullatt_block_indexes": [1, 3]},
    tiny_picture=(112, 16),
)

# Qwen/Qwen3-VL-8B-Instruct
QWEN3_VL_8B = Size(
    family="qwen3_vl",
    text={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    vision={
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "deepstack_visual_indexes": [8, 16, 24],
        "num_position_embeddings": 2304,
        "out_hidden_size": 4096,
    },
    top={"tie_word_embeddings": False},
    picture_px=960,
    picture_tokens=900,
    tiny_vision={"depth": 4, "deepstack_visual_indexes": [0, 1, 2]},
    tiny_picture=(128, 16),
)

# google/gemma-3-4b-it
GEMMA_3_4B = Size(
    family="gemma3",
    text={
        "vocab_size": 262208,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        # Five sliding layers to one global layer is the class's own pattern.
        "sliding_window": 1024,
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    },
    vision={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 896,
        "vision_use_head": False,
    },
    top={"mm_tokens_per_image": 256, "tie_word_embeddings": True},
    picture_px=896,
    picture_tokens=256,
    tiny_vision={"num_hidden_layers": 2, "image_size": 224},
    tiny_picture=(224, 16),
)

SIZES = {
    "qwen2.5-vl-7b": QWEN2_5_VL_7B,
    "qwen3-vl-8b": QWEN3_VL_8B,
    "gemma-3-4b": GEMMA_3_4B,
}


def size_of(name: str, scale: Scale = "full") -> Size:
    """The size behind a name.

    Raises:
        ValueError: for an unknown name or scale.
    """
    if name not in SIZES:
        raise ValueError(f"no model {name!r} to measure; there are {', '.join(SIZES)}")
    if scale not in ("full", "tiny"):
        raise ValueError(f"scale is {scale!r}; it must be 'full' or 'tiny'")
    return SIZES[name] if scale == "full" else _shrunk(SIZES[name])


def build(
    name: str,
    *,
    device: torch.device | str,
    layers: int | None = None,
    lora_rank: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    scale: Scale = "full",
) -> tuple[Any, Any]:
    """A model with random weights and an adapter on its decoder, and its processor.

    Args:
        name: one of ``SIZES``.
        device: where the weights are made.
        layers: of the decoder; all if None.
        lora_rank: of the adapter, which is not zero: it changes every layer it stands on.
        dtype: of the base weights.
        scale: "tiny" for a try on a CPU: the same structure, narrower.

    Returns:
        The PEFT model in evaluation mode, and the processor.
    """
    from foveal import FastVisionModel

    model, processor = build_stock(name, device=device, layers=layers, dtype=dtype, scale=scale)
    adapted = FastVisionModel.get_peft_model(
        model, r=lora_rank, lora_alpha=2 * lora_rank, finetune_vision_layers=False
    )
    start_adapter(adapted)
    return adapted.eval(), processor


def build_stock(
    name: str,
    *,
    device: torch.device | str,
    layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    scale: Scale = "full",
) -> tuple[Any, Any]:
    """The model of :func:`build` before it is given an adapter, and its processor.

    The weights are made on the device, in their type: seconds on a GPU, where drawing them on a
    CPU takes minutes.
    """
    from foveal.testing import tiny

    size = size_of(name, scale)
    stand_in, processor = tiny(size.family)
    torch.manual_seed(0)
    config = _config(size, stand_in.config, layers)
    model = _random_weights(type(stand_in), config, device, dtype)
    model.generation_config = stand_in.generation_config
    return model, sized_processor(processor, size)


def build_prompts(
    model: Any, processor: Any, size: Size, count: int, *, first_seed: int = 0
) -> list[Prompt]:
    """Prompts of :func:`picture_rows`, tokenised."""
    from foveal.data import PromptBuilder, load_rows
    from foveal.models.family import stock_model

    builder = PromptBuilder(processor, image_token_id=stock_model(model).config.image_token_id)
    rows = load_rows(picture_rows(size, count, first_seed=first_seed))
    return [builder.build(rows[index], index) for index in range(count)]


def picture_rows(size: Size, count: int, *, first_seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a data set: a picture of noise, another one in each row, and about 120 letters."""
    import numpy as np
    from PIL import Image

    shape = (size.picture_px, size.picture_px, 3)
    pixels = [
        np.random.default_rng(first_seed + row).integers(0, 256, shape, dtype=np.uint8)
        for row in range(count)
    ]
    text = "<image>" + "How many red things are there? " * 4
    return [{"problem": text, "images": [Image.fromarray(p)], "answer": "3"} for p in pixels]


def _shrunk(size: Size) -> Size:
    text = _divided(
        size.text, "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"
    )
    vision = _divided(
        size.vision,
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "num_attention_heads",
        "out_hidden_size",
    )
    px, tokens = size.tiny_picture
    counted = {"mm_tokens_per_image": tokens} if "mm_tokens_per_image" in size.top else {}
    return replace(
        size,
        text={**text, "vocab_size": TINY_VOCABULARY},
        vision={**vision, **size.tiny_vision},
        top={**size.top, **counted},
        picture_px=px,
        picture_tokens=tokens,
    )


def _divided(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value // SHRINK if key in names else value for key, value in fields.items()}


def _config(size: Size, stand_in: Any, layers: int | None) -> Any:
    """A config of this size with the token ids of the byte-level tokenizer."""
    text = {**size.text, **_token_ids(stand_in.text_config)}
    if layers is not None:
        text["num_hidden_layers"] = layers
    token_ids = _token_ids(stand_in)
    return type(stand_in)(
        text_config=text, vision_config=dict(size.vision), **size.top, **token_ids
    )


def _token_ids(config: Any) -> dict[str, Any]:
    endings = ("_token_id", "_token_index")
    return {key: value for key, value in config.to_dict().items() if key.endswith(endings)}


def _random_weights(
    model_class: type[nn.Module], config: Any, device: torch.device | str, dtype: torch.dtype
) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return model_class(config)
    finally:
        torch.set_default_dtype(before)


def start_adapter(adapted: nn.Module) -> None:
    """PEFT starts B at zero. A standard deviation of 0.01 makes the adapter a few per cent of
    what its layer gives: enough to show, too little to upset the model."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)


def sized_processor(processor: Any, size: Size) -> Any:
    """The processor with pictures of ``size.picture_px`` left as they are."""
    if "mm_tokens_per_image" in size.top:
        edges = {"height": size.picture_px, "width": size.picture_px}
        return type(processor)(
            image_processor=type(processor.image_processor)(size=edges),
            tokenizer=processor.tokenizer,
            chat_template=processor.chat_template,
            image_seq_length=size.picture_tokens,
        )
    patch = size.vision["patch_size"]
    pixels = {"shortest_edge": (2 * patch) ** 2, "longest_edge": size.picture_px**2}
    processor.image_processor = type(processor.image_processor)(
        patch_size=patch, merge_size=2, size=pixels
    )
    return processor
