"""Prompts with made-up pictures for the tiny models."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from foveal.data import PromptBuilder, normalise_row
from foveal.types import Prompt


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise: every pixel matters, so a picture in the wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def row(text: str, *pictures: Image.Image, **columns: Any) -> dict[str, Any]:
    markers = "<image>" * len(pictures)
    return {"problem": markers + text, "images": list(pictures), "answer": "3", **columns}


def build(model: Any, processor: Any, *rows: dict[str, Any]) -> list[Prompt]:
    builder = PromptBuilder(processor, image_token_id=model.config.image_token_id)
    return [builder.build(normalise_row(r, i), i) for i, r in enumerate(rows)]


def ragged_prompts(model: Any, processor: Any) -> list[Prompt]:
    """One picture, two pictures of different shape, no picture; all of different length."""
    return build(
        model,
        processor,
        row("How many red things?", picture(0, 70, 90)),
        row("Which is larger, the first or the second?", picture(1, 100, 60), picture(2, 64, 64)),
        row("What is three minus one, in words, if you please?"),
    )


def random_completions(lengths: list[int], seed: int = 0, vocabulary: int = 250) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def stock_inputs(model: Any, prompt: Prompt, completion: list[int]) -> dict[str, torch.Tensor]:
    """What the stock model's own forward takes for one unpadded row."""
    ids = torch.tensor([[*prompt.ids, *completion]])
    is_image = torch.zeros_like(ids)
    is_image[0, : len(prompt.ids)] = torch.tensor(prompt.ids) == model.config.image_token_id
    inputs: dict[str, torch.Tensor] = {"input_ids": ids}
    gemma = model.config.model_type == "gemma3"
    inputs["token_type_ids" if gemma else "mm_token_type_ids"] = is_image.int()
    if prompt.images:
        join = torch.stack if gemma else torch.cat
        inputs["pixel_values"] = join([image.pixel_values for image in prompt.images])
        if not gemma:
            inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in prompt.images])
    return inputs
