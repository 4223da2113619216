"""What tests of a decode step need: sequences made by hand, and the step's attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from foveal.kernels.decode_attention import PagedRows, decode_attention_reference
from foveal.kernels.decode_fused import write_cache
from foveal.models.decoder import Attend, Decoder
from foveal.types import PAGE


def request(prompt_tokens: int, pages: list[int], base_position: int = 0) -> Any:
    payload = SimpleNamespace(base_position=base_position)
    return SimpleNamespace(prompt_tokens=prompt_tokens, prefix_pages=pages, payload=payload)


def sequence(of: Any, cached: int, pages: list[int], last_token: int = 1) -> Any:
    """A row of a request that has ``cached`` tokens in the cache and is fed ``last_token``."""
    ids = [0] * cached + [last_token]
    return SimpleNamespace(request=of, ids=ids, cached=cached, pages=pages)


def arena_for(decoder: Decoder, pages: int, seed: int | None = None) -> Tensor:
    """A cache of zeros, or of numbers of a seed."""
    shape = (pages, len(decoder.layers), 2, decoder.kv_heads, PAGE, decoder.width)
    if seed is None:
        return torch.zeros(shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attend_in_torch(decoder: Decoder, rows: PagedRows, arena: Tensor) -> Attend:
    """Attention of one ``plain_step`` on the CPU."""

    def attend(layer: int, q_BHC: Tensor, k_BKC: Tensor, v_BKC: Tensor) -> Tensor:
        write_cache(arena, layer, rows, k_BKC, v_BKC)
        return decode_attention_reference(
            q_BHC, arena, layer, rows, scale=decoder.scale, window=decoder.layers[layer].window,
            softcap=decoder.score_softcap,
        )  # fmt: skip

    return attend
