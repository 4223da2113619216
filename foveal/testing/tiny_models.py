"""Configurations of the tiny models: each keeps every feature that makes its family special.

Sizes are odd on purpose where the architecture allows it (three query heads a key/value head,
unequal widths); heads are 16 wide, the least that the kernels take; depths are the least that
show each kind of layer: windowed and full vision attention for Qwen2.5-VL, deepstack for
Qwen3-VL, sliding and global layers for Gemma 3.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

TEXT_WIDTH = 48
SLIDING_WINDOW = 24


def tiny(family: str, *, seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A random tiny model and its processor.

    Args:
        family: model type, one of ``TINY_FAMILIES``.
        seed: of the random weights; the global random state is left as it was.

    Raises:
        ValueError: for an unknown family.
    """
    if family not in TINY_FAMILIES:
        raise ValueError(f"no tiny model for {family!r}; there are {', '.join(TINY_FAMILIES)}")
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, processor = TINY_FAMILIES[family]()
        _spread_weights(model)
    return model.eval(), processor


def save_tiny(folder: str | Path, family: str, *, seed: int = 0) -> Path:
    """Write ``tiny(family)`` as an ordinary checkpoint folder and return its path."""
    model, processor = tiny(family, seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def _spread_weights(model: PreTrainedModel) -> None:
    """Scale the weights up, so that logits differ clearly and a wrong position or mask shows."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                # Gemma 3's projector starts at zero, which would hide every picture.
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))


def _generation_config(model: PreTrainedModel, tokenizer: Any, *stop_tokens: str) -> None:
    config = model.generation_config
    config.eos_token_id = [tokenizer.convert_tokens_to_ids(token) for token in stop_tokens]
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = tokenizer.bos_token_id


def _qwen_token_ids(tokenizer: Any) -> dict[str, Any]:
    names = ("image", "video")
    ids: dict[str, Any] = {
        f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}_pad|>") for n in names
    }
    for edge in ("start", "end"):
        ids[f"vision_{edge}_token_id"] = tokenizer.convert_tokens_to_ids(f"<|vision_{edge}|>")
    return ids


def _qwen_text(vocab: int, width: int, heads: int, **extra: Any) -> dict[str, Any]:
    return dict(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        **extra,
    )


def _tiny_qwen2_5_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
    )

    from foveal.testing.tokenizer import qwen_tokenizer

    tokenizer = qwen_tokenizer()
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_heads": 2,
        "out_hidden_size": 2 * TEXT_WIDTH,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "patch_size": 14,
    }
    config = Qwen2_5_VLConfig(
        text_config=_qwen_text(len(tokenizer), width=2 * TEXT_WIDTH, heads=6),
        vision_config=vision,
        tie_word_embeddings=False,
        **_qwen_token_ids(tokenizer),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _generation_config(model, tokenizer, "<|im_end|>", "<|endoftext|>")
    return model, _qwen_processor(Qwen2_5_VLProcessor, tokenizer, patch_size=14)


def _tiny_qwen3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    from foveal.testing.tokenizer import qwen_tokenizer

    tokenizer = qwen_tokenizer()
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = _qwen_text(len(tokenizer), width=TEXT_WIDTH, heads=4, head_dim=16)
    text["rope_parameters"]["mrope_interleaved"] = True
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        **_qwen_token_ids(tokenizer),
    )
    model = Qwen3VLForConditionalGeneration(config)
    _generation_config(model, tokenizer, "<|im_end|>", "<|endoftext|>")
    return model, _qwen_processor(Qwen3VLProcessor, tokenizer, patch_size=16)


def _qwen_processor(processor_class: Any, tokenizer: Any, patch_size: int) -> ProcessorMixin:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    token = patch_size * 2
    pixels = {"shortest_edge": 4 * token**2, "longest_edge": 16 * token**2}
    image_processor = Qwen2VLImageProcessor(patch_size=patch_size, merge_size=2, size=pixels)
    video_class = Qwen2VLVideoProcessor if patch_size == 14 else Qwen3VLVideoProcessor
    return processor_class(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_class(patch_size=patch_size, merge_size=2),
        chat_template=tokenizer.chat_template,
    )


def _tiny_gemma3() -> tuple[PreTrainedModel, ProcessorMixin]:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    from foveal.testing.tokenizer import gemma_tokenizer

    tokenizer: Any = gemma_tokenizer()
    image_size, patch_size, tokens = 56, 14, 4
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "max_position_embeddings": 4096,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=tokens,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    model = Gemma3ForConditionalGeneration(config)
    _generation_config(model, tokenizer, "<end_of_turn>", "<eos>")
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": image_size, "width": image_size}),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=tokens,
    )
    return model, processor


TINY_FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "qwen2_5_vl": _tiny_qwen2_5_vl,
    "qwen3_vl": _tiny_qwen3_vl,
    "gemma3": _tiny_gemma3,
}
