"""How much arithmetic a training pass asks for, counted from shapes.

A FLOP is one addition or one multiplication.

    counted                         forward   backward
    linear layers of the decoder    2         2: gradient of the input; weights are frozen
    their adapters                  2         4: of the input and of the weights
    attention, per pair seen        4 C H     8 C H; done: 10, since scores are computed again
    head, completion tokens only    2         2; done: 4, since logits are computed again

Products with weights are FLOP per weight and token. "Useful" is forward and backward with each
prompt computed once for all its completions, whoever measures. "Done" is what the pass itself
computes: layers again in the backward pass where only their inputs are kept, the head's logits
again, and in the plain pass each prompt for each completion and padding.

Left out: norms, rotation, activations, softmax, the loss, the optimizer; embeddings; pairs that
a kernel computes and masks; in Gemma's prompts, image tokens that see later ones. The input of
the first layer's query, key and value asks for no gradient and none is counted. A completion's
last token is not fed. What checkpointing spares by stopping behind the last value that backward
needs (a part of the last product of a layer) is counted as done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from foveal.types import Prompt

RECOMPUTED = {"none": 0, "full": 1, "offload": 1}
"""How often the layers' forward pass is done again, by policy; others are not known."""
HEAD_PRODUCTS_DONE = 3
"""Products of ``foveal.kernels.head_logprob`` with a frozen head: logits, again, gradient."""
MATRIX_EDGE = 8192


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that pass the layers together, causal among themselves."""

    new: int
    seen: int = 0
    """Tokens before them, computed elsewhere, that all of them see."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a pass sends through the layers, and how many tokens through the head."""

    segments: tuple[Segment, ...]
    head_tokens: int


@dataclass(frozen=True, slots=True)
class Products:
    """Weights that a token meets, by what happens to them."""

    linear: int
    """Frozen, in the decoder's layers."""
    linear_without_input_gradient: int
    """Of those: query, key and value of the first layer."""
    adapter: int
    adapter_without_input_gradient: int
    head: int
    attention_width: int
    """C H."""
    windows: tuple[int, ...]
    """Of each layer; 0 sees all."""

    @classmethod
    def of(cls, model: nn.Module) -> Products:
        from foveal.models.decoder import Decoder

        decoder = Decoder(model)
        first = decoder.layers[0]
        pairs = [_weights(linear) for group in decoder.products for linear in group]
        blind = [_weights(linear) for linear in (first.q, first.k, first.v)]
        return cls(
            linear=sum(base for base, _, _ in pairs),
            linear_without_input_gradient=sum(base for base, _, _ in blind),
            adapter=sum(down + up for _, down, up in pairs),
            adapter_without_input_gradient=sum(down for _, down, _ in blind),
            head=decoder.vocabulary * decoder.hidden,
            attention_width=decoder.heads * decoder.width,
            windows=tuple(layer.window for layer in decoder.layers),
        )


def shared_layout(prompts: Sequence[int], completions: Sequence[Sequence[int]]) -> Layout:
    """The layout that computes each prompt once.

    Args:
        prompts: tokens of each.
        completions: for each prompt, the tokens of its completions.
    """
    segments = [Segment(length) for length in prompts]
    for length, group in zip(prompts, completions, strict=True):
        segments += [Segment(tokens - 1, length) for tokens in group if tokens > 1]
    return Layout(tuple(segments), sum(map(sum, completions)))


def row_layout(
    prompts: Sequence[int], completions: Sequence[Sequence[int]], rows_at_once: int
) -> Layout:
    """The layout of the plain pass: a row for each completion, padded to the longest beside it."""
    rows = [
        length + tokens
        for length, group in zip(prompts, completions, strict=True)
        for tokens in group
    ]
    segments = []
    for start in range(0, len(rows), rows_at_once):
        piece = rows[start : start + rows_at_once]
        segments += [Segment(max(piece))] * len(piece)
    return Layout(tuple(segments), sum(map(sum, completions)))


def useful_flop(products: Products, layout: Layout) -> int:
    """Forward and backward, nothing twice."""
    layers = _layers(products, layout, attention_backward=8, times_forward=1)
    return layers + 2 * 2 * products.head * layout.head_tokens


def done_flop(products: Products, layout: Layout, policy: str) -> int | None:
    """What is computed under a checkpointing policy; None where ``RECOMPUTED`` does not tell."""
    if policy not in RECOMPUTED:
        return None
    forwards = 1 + RECOMPUTED[policy]
    layers = _layers(products, layout, attention_backward=10, times_forward=forwards)
    return layers + 2 * HEAD_PRODUCTS_DONE * products.head * layout.head_tokens


def seen_pairs(segment: Segment, window: int = 0) -> int:
    """How many keys the queries of a segment see, all together."""
    first, last = segment.seen + 1, segment.seen + segment.new
    inside = last if not window else min(last, window)
    # Positions up to the window see all before them; those behind it see the window.
    growing = max(0, inside - first + 1)
    return growing * (first + inside) // 2 + (segment.new - growing) * window


def vision_flop(model: nn.Module, prompts: Sequence[Prompt]) -> int:
    """The tower's forward pass over the prompts' pictures, counted by torch as it runs.

    On a CPU torch does not count the tower's attention.
    """
    from foveal.models.forward import FeatureCache
    from foveal.models.precision import evaluating

    counter = FlopCounterMode(display=False)
    with evaluating(model), counter:
        FeatureCache().get(model, [image for prompt in prompts for image in prompt.images])
    return counter.get_total_flops()


def matrix_rate(device: torch.device, repeats: int = 20) -> float | None:
    """FLOP a second of a large bf16 matrix product of random numbers; None on a CPU."""
    if device.type != "cuda":
        return None
    a, b = (
        torch.randn(MATRIX_EDGE, MATRIX_EDGE, dtype=torch.bfloat16, device=device) for _ in "ab"
    )
    out = a @ b
    milliseconds = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mm(a, b, out=out)
        end.record()
        end.synchronize()
        milliseconds.append(start.elapsed_time(end))
    del a, b, out
    torch.cuda.empty_cache()
    return 2 * MATRIX_EDGE**3 / (median(milliseconds) / 1e3)


def _layers(
    products: Products, layout: Layout, *, attention_backward: int, times_forward: int
) -> int:
    tokens = sum(segment.new for segment in layout.segments)
    forward = 2 * (products.linear + products.adapter)
    backward = (
        2 * (products.linear - products.linear_without_input_gradient)
        + 2 * (products.adapter - products.adapter_without_input_gradient)
        + 2 * products.adapter
    )
    pairs = sum(seen_pairs(s, window) for s in layout.segments for window in products.windows)
    attention = products.attention_width * pairs * (4 * times_forward + attention_backward)
    return tokens * (forward * times_forward + backward) + attention


def _weights(linear: Any) -> tuple[int, int, int]:
    """Weights of a linear layer, and of its adapter's way down and up."""
    down = [part.weight.numel() for part in getattr(linear, "lora_A", {}).values()]
    up = [part.weight.numel() for part in getattr(linear, "lora_B", {}).values()]
    base = getattr(linear, "base_layer", linear)
    return base.in_features * base.out_features, sum(down), sum(up)
