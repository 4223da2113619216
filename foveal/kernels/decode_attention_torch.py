"""The CPU form of :mod:`foveal.kernels.decode_attention`: what is equal for all layers of a step is
computed once, pages are fetched as whole rows, and a prompt's keys meet all queries of a chunk in
one product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.kernels.decode_attention import PagedRows
from foveal.types import PAGE


@dataclass(frozen=True, slots=True)
class _Part:
    """Keys of one kind (prompts, or rows' own) as the queries of one step see them."""

    pages: Tensor
    """Page numbers, flat: ``[R * P]``."""
    shape: tuple[int, int]
    hidden: Tensor
    """``[R, queries or 1, 1, P, PAGE]``: True where a key is not seen."""


class TorchAttention:
    """Attention of one step, called layer by layer.

    Args:
        rows: where keys lie; on the CPU, and not changed during the step.
        window: of the sliding layers, 0 for none; layers say whether they slide.
    """

    def __init__(self, rows: PagedRows, window: int) -> None:
        self.rows = rows
        chunks = int((rows.chunk_length_X > 0).sum())
        used = int((rows.chunk_rows_XR[:chunks] >= 0).sum(1).max()) if chunks else 0
        self.chunk_rows_XR = rows.chunk_rows_XR[:chunks, :used].long()
        self._taken_XR = self.chunk_rows_XR.clamp(min=0)
        live = self.chunk_rows_XR.flatten() >= 0
        self._live = live.nonzero()[:, 0]
        self._row_of_live = self.chunk_rows_XR.flatten()[self._live]
        self._parts = {0: self._both(0)}
        if window:
            self._parts[window] = self._both(window)

    def __call__(self, q_BHC: Tensor, arena: Tensor, layer: int, *, scale: float, window: int = 0,
                 softcap: float = 0.0) -> Tensor:  # fmt: skip
        """``[B, H, C]``; arguments as of ``decode_attention_reference``."""
        B, H, C = q_BHC.shape
        K = arena.shape[3]
        q_BKGC = (q_BHC.float() * scale).view(B, K, H // K, C)
        prefix, own = self._parts[window]
        X, R = self.chunk_rows_XR.shape
        q_XKQC = q_BKGC[self._taken_XR].transpose(1, 2).reshape(X, K, -1, C)
        out_XKQC, top_XKQ, sum_XKQ = _attend(q_XKQC, arena, layer, prefix, softcap)
        G = H // K
        # Prompt parts from chunks back to rows.
        rows = (x.view(X, K, R, G, -1).transpose(1, 2).flatten(0, 1)[self._live]
                for x in (out_XKQC, top_XKQ, sum_XKQ))  # fmt: skip
        # A row without a prompt (padding) has a part of no weight.
        out, top, total = (
            x.new_full((B, *x.shape[1:]), empty).index_copy_(0, self._row_of_live, x)
            for x, empty in zip(rows, (0.0, -1e30, 0.0), strict=True)
        )
        own_out, own_top, own_total = _attend(q_BKGC, arena, layer, own, softcap)
        own_top, own_total = own_top[..., None], own_total[..., None]
        # Joined by their log-sum-exp (arXiv:2402.05099).
        higher = torch.maximum(top, own_top)
        fade, own_fade = (top - higher).exp(), (own_top - higher).exp()
        joined = (out * fade + own_out * own_fade) / (total * fade + own_total * own_fade)
        return joined.view(B, H, C).to(q_BHC.dtype)

    def _both(self, window: int) -> tuple[_Part, _Part]:
        r = self.rows
        prompt_pages = -(-int(r.chunk_length_X.max()) // PAGE)
        own_pages = int(r.cached_B.max()) // PAGE + 1
        X = self.chunk_rows_XR.shape[0]
        at = torch.arange(prompt_pages * PAGE)
        hidden_XT = at >= r.chunk_length_X[:X, None]
        hidden = hidden_XT[:, None]
        if window:
            oldest_B = r.prompt_length_B + r.cached_B - window
            hidden = hidden | (at <= oldest_B[self._taken_XR][:, :, None])
        own_at = torch.arange(own_pages * PAGE)
        own_hidden = own_at > r.cached_B[:, None]
        if window:
            own_hidden = own_hidden | (own_at <= r.cached_B[:, None] - window)
        return (
            _Part(
                r.chunk_table_XP[:X, :prompt_pages].flatten().long(),
                (X, prompt_pages),
                hidden.view(X, 1, -1, 1, prompt_pages * PAGE),
            ),
            _Part(
                r.suffix_table_BP[:, :own_pages].flatten().long(),
                (r.cached_B.shape[0], own_pages),
                own_hidden.view(-1, 1, 1, 1, own_pages * PAGE),
            ),
        )


def _attend(
    q_RKQC: Tensor, arena: Tensor, layer: int, part: _Part, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Unnormalised output ``[R, K, Q, C]``, largest score and sum of weights ``[R, K, Q]``."""
    R, pages = part.shape
    layers, K, C = arena.shape[1], arena.shape[3], arena.shape[5]
    # Whole rows of a matrix: a plain copy each.
    flat = arena.view(arena.shape[0] * layers, -1).index_select(0, part.pages * layers + layer)
    found = flat.view(R, pages, 2, K, PAGE, C).float()
    if pages == 1:
        k_RKTC, v_RKTC = found[:, 0, 0], found[:, 0, 1]
    else:
        merged = found.permute(2, 0, 3, 1, 4, 5).reshape(2, R, K, pages * PAGE, C)
        k_RKTC, v_RKTC = merged[0], merged[1]
    score_RKQT = q_RKQC @ k_RKTC.transpose(-1, -2)
    if softcap:
        score_RKQT = softcap * torch.tanh(score_RKQT / softcap)
    queries = part.hidden.shape[2]
    by_row = score_RKQT.view(R, K, queries, -1, pages * PAGE)
    by_row.masked_fill_(part.hidden, float("-inf"))
    top = score_RKQT.amax(-1)
    # A query that sees none of these keys must not compute inf - inf.
    weight = (score_RKQT - top.clamp(min=-1e30)[..., None]).exp_()
    return weight @ v_RKTC, top.clamp(min=-1e30), weight.sum(-1)
