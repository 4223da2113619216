"""Whole rows through the stock decoder, their keys and values into a paged cache on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from foveal.kernels.arithmetic import mm_float32, product_dtype
from foveal.kernels.decode_attention import PAGE
from foveal.models.family import family_of, final_softcap, stock_model
from foveal.models.forward import FeatureCache, hidden_states
from foveal.models.rows import RowBatch, make_rows
from foveal.types import Prompt


@dataclass(frozen=True, slots=True)
class Fill:
    """One row to compute and where its keys and values go.

    ``pages`` hold the tokens from ``first`` on; earlier ones are in the cache already and are
    computed again only because later ones attend to them.
    """

    prompt: Prompt
    completion: Sequence[int]
    pages: Sequence[int]
    first: int


class _ArenaWriter(DynamicCache):
    """A cache that keeps nothing: it puts what it is handed into pages and hands it back."""

    def __init__(self, arena: Tensor, fills: Sequence[Fill]) -> None:
        super().__init__()
        self._arena = arena
        rows, columns, pages, slots = [], [], [], []
        for row, fill in enumerate(fills):
            count = len(fill.prompt.ids) + len(fill.completion) - fill.first
            at = torch.arange(count)
            rows.append(torch.full((count,), row))
            columns.append(at + fill.first)
            pages.append(torch.tensor(fill.pages)[at // PAGE])
            slots.append(at % PAGE)
        self._where = [torch.cat(x).to(arena.device) for x in (rows, columns, pages, slots)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        row, column, page, slot = self._where
        for part, states_BKLC in enumerate((key_states, value_states)):
            found_NKC = states_BKLC[row, :, column]
            if self._arena.dtype == torch.float8_e4m3fn:
                found_NKC = found_NKC.float().clamp(-448, 448)
            self._arena[page, layer_idx, part, :, slot] = found_NKC.to(self._arena.dtype)
        return key_states, value_states


def prefill(
    model: nn.Module, fills: Sequence[Fill], arena: Tensor, features: FeatureCache
) -> Tensor:
    """Fill pages and return the logits ``[B, V]`` that follow each row's last token.

    Args:
        model: stock model or its PEFT wrapper, in evaluation mode.
        fills: B rows; all go through at once, padded to the longest.
        arena: ``[pages, layers, 2, K, PAGE, C]``.
        features: pictures seen before, and where new ones are kept.
    """
    stock = stock_model(model)
    batch: RowBatch = make_rows(
        family_of(model),
        stock.config,
        [fill.prompt for fill in fills],
        [fill.completion for fill in fills],
        image_token_id=stock.config.image_token_id,
    ).to(stock.device)
    found = features.get(model, batch.images)
    hidden_BLD = hidden_states(model, batch, found, keys_values=_ArenaWriter(arena, fills))
    last = [len(f.prompt.ids) + len(f.completion) - 1 for f in fills]
    last_B = torch.tensor(last, device=stock.device)
    hidden_BD = hidden_BLD[torch.arange(len(fills), device=stock.device), last_B]
    return head_logits(model, hidden_BD)


def head_logits(model: nn.Module, hidden_BD: Tensor) -> Tensor:
    """Logits ``[B, V]`` as the model defines them, the final cap included, in float32.

    Factors of 16 bit stay so, but not their product: between 16 and 32 the neighbours of a logit
    in bfloat16 are an eighth of a nat away, and all that rounding would be in log-probabilities.
    """
    head = stock_model(model).get_output_embeddings()
    if type(head) is nn.Linear and head.bias is None:
        dtype = product_dtype(hidden_BD)
        logits_BV = mm_float32(hidden_BD.to(dtype), head.weight.to(dtype).T)
    else:
        logits_BV = head(hidden_BD).float()
    softcap = final_softcap(model)
    return logits_BV if softcap is None else softcap * torch.tanh(logits_BV / softcap)
