"""The least time that decoding can take: the bytes it must read, over the memory's speed.

Each decode step reads the decoder's weights, the adapter and the head once for all rows, and the
keys and values that the rows see: those of a prompt once for its whole group, and each row's own.
All counted at 2 bytes a number. What is written, the embedding's few rows, the pictures and the
prompts' own pass are not counted, so a whole rollout cannot reach its floor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from record import GIB
from torch import nn

BYTES_PER_NUMBER = 2


@dataclass(frozen=True, slots=True)
class Decoder:
    """What a decoder reads."""

    weight_bytes: int
    """Layers, adapter and head."""
    kv_bytes: int
    """Key and value of one token in one layer."""
    windows: tuple[int | None, ...]
    """Of each layer: how many tokens one sees, itself included; None for all."""

    @classmethod
    def of(cls, model: nn.Module) -> Decoder:
        from foveal.models.family import language_model, stock_model

        stock = stock_model(model)
        embedding = stock.get_input_embeddings().weight
        layers = sum(p.numel() for p in language_model(model).parameters() if p is not embedding)
        head = stock.get_output_embeddings().weight.numel()
        config = stock.config.get_text_config()
        return cls(
            weight_bytes=(layers + head) * BYTES_PER_NUMBER,
            kv_bytes=2 * config.num_key_value_heads * _head_width(config) * BYTES_PER_NUMBER,
            windows=tuple(
                config.sliding_window if kind == "sliding_attention" else None
                for kind in _layer_types(config)
            ),
        )


def decode_bytes(
    decoder: Decoder, prompt_lengths: Sequence[int], completions: int, new_tokens: int
) -> int:
    """Bytes that a rollout reads after its prompts are done.

    The prompts' pass gives the first token, so ``new_tokens - 1`` steps follow; in step ``s`` each
    row sees ``s`` tokens of its own.

    Args:
        decoder: what is read.
        prompt_lengths: tokens of each prompt, pictures included.
        completions: G, of each prompt.
        new_tokens: T, of each completion.
    """
    kinds = Counter(decoder.windows)
    rows = completions * len(prompt_lengths)
    total = 0
    for own in range(1, new_tokens):
        tokens = 0
        for window, layers in kinds.items():
            shared = [_seen(length, own, window) for length in prompt_lengths]
            tokens += layers * (sum(shared) + rows * min(own, window or own))
        total += decoder.weight_bytes + tokens * decoder.kv_bytes
    return total


def copy_bandwidth(device: torch.device, repeats: int = 10) -> float | None:
    """Bytes a second of a copy of 4 GiB on the device, read and written; None on a CPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(4 * GIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    milliseconds = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    bandwidth = 2 * source.nbytes / (median(milliseconds) / 1e3)
    del source, target
    torch.cuda.empty_cache()
    return bandwidth


def _seen(prompt_length: int, own: int, window: int | None) -> int:
    """Tokens of the prompt that a row with ``own`` tokens of its own still sees."""
    return prompt_length if window is None else min(prompt_length, max(0, window - own))


def _head_width(config: Any) -> int:
    width = getattr(config, "head_dim", None)
    return width or config.hidden_size // config.num_attention_heads


def _layer_types(config: Any) -> Sequence[str]:
    named = getattr(config, "layer_types", None)
    return named or ["full_attention"] * config.num_hidden_layers
