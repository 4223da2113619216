"""Decode attention on a CPU while the rows of a batch stay the same.

Pages scatter a row's keys, and on a CPU fetching them again for each layer and step costs more
than the products with them. Here they are fetched once for a batch, into one block a layer, and
the block grows by a column a step. A prompt's keys still exist once for all rows of its group and
meet their queries in one product.

Own tokens end at the same column in every row (shorter rows begin with columns that nobody sees),
so the new token of all rows is one slice, and who sees what depends on the column and the step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from foveal.kernels.decode_attention import PagedRows
from foveal.types import PAGE

NEVER = -(1 << 30)
"""Age of what is no token: older than any window reaches."""


class DenseAttention:
    """Attention of B rows for up to ``room`` steps from the moment when it is made.

    Args:
        rows: where keys lie then; every row belongs to a chunk.
        arena: the cache ``[pages, layers, 2, K, PAGE, C]``, float32, on the CPU. Keys of the steps
            are written to it too (:meth:`finish`), so it is complete at any time.
        heads: H.
        windows: of the layers, 0 for none.
        room: steps that there is place for.
    """

    def __init__(
        self, rows: PagedRows, arena: Tensor, heads: int, windows: Iterable[int], room: int = PAGE
    ) -> None:
        self.rows, self.arena, self.room = rows, arena, room
        self.heads, self.kv_heads, self.width = heads, arena.shape[3], arena.shape[5]
        self.steps = 0
        """Steps taken; the columns of own tokens are ``first + steps``."""
        self._windows = sorted({*windows})
        self._mask: dict[int, Tensor] = {}
        """``[B, 1, T]`` by window: 0 where a key is seen, else -inf."""
        self._index_chunks()
        self._age_BT = torch.cat([self._fetch_prompts(), self._fetch_own()], dim=1)

    def _index_chunks(self) -> None:
        r = self.rows
        chunks = int((r.chunk_length_X > 0).sum())
        used = int((r.chunk_rows_XR[:chunks] >= 0).sum(1).max())
        row_Y = r.chunk_rows_XR[:chunks, :used].flatten().long()
        live = (row_Y >= 0).nonzero()[:, 0]
        self._chunks = chunks
        self._taken_Y = row_Y.clamp(min=0)
        """Row at each place of each chunk, any row where there is none."""
        self._place_B = torch.empty_like(live).index_copy_(0, row_Y[live], live)
        self._regular = torch.equal(row_Y, torch.arange(len(r.cached_B)))
        """Chunks are full and in the order of rows: nothing has to be moved."""

    def _fetch_prompts(self) -> Tensor:
        """Copy the prompts' keys; the age ``[B, T]`` of each to each row's first new token."""
        r, X = self.rows, self._chunks
        length_X1 = r.chunk_length_X[:X, None].long()
        self.prompt_columns = int(length_X1.max())
        at_T = torch.arange(self.prompt_columns)
        real_XT = at_T < length_X1
        page_XT = r.chunk_table_XP[:X].long()[:, at_T // PAGE].where(real_XT, 0)
        # [X, T, L, 2, K, C] -> [2, L, K, X, T, C]
        found = self.arena[page_XT, :, :, :, at_T % PAGE].permute(3, 2, 4, 0, 1, 5).contiguous()
        self._prompt_k, self._prompt_v = found.flatten(2, 3).unbind(0)
        self._prompt_k = self._prompt_k.transpose(-1, -2)
        length_B1 = r.prompt_length_B[:, None].long()
        return (at_T - length_B1 - r.cached_B[:, None]).where(at_T < length_B1, NEVER)

    def _fetch_own(self) -> Tensor:
        """Copy the rows' own keys to the columns before :attr:`first`; their age as above."""
        r, K = self.rows, self.kv_heads
        cached_B1 = r.cached_B[:, None].long()
        B, layers = len(cached_B1), self.arena.shape[1]
        self.first = int(cached_B1.max())
        age_T = torch.arange(self.first + self.room) - self.first
        t_BT = cached_B1 + age_T[: self.first]
        real_BT = t_BT >= 0
        t_BT = t_BT.clamp(min=0)
        page_BT = r.suffix_table_BP.long().gather(1, t_BT // PAGE)
        # [B, T, L, 2, K, C] -> [L, 2, K, B, T, C]
        found = self.arena[page_BT, :, :, :, t_BT % PAGE].permute(2, 3, 4, 0, 1, 5)
        shape = (layers, 2, K, B, self.first + self.room, self.width)
        self._own = torch.empty(shape)
        self._own[..., : self.first, :] = found
        self._own_k, self._own_v = self._own.flatten(2, 3).unbind(1)
        later_BT = torch.ones(B, self.room, dtype=torch.bool)
        return age_T.where(torch.cat([real_BT, later_BT], dim=1), NEVER)

    def begin(self) -> None:
        """Work out who sees what in the next step.

        Raises:
            RuntimeError: if there is no room for another step.
        """
        if self.steps == self.room:
            raise RuntimeError(f"there was room for {self.room} steps; fetch the keys again")
        self._column = self.first + self.steps
        age_BT = self._age_BT[:, : self.prompt_columns + self._column + 1]
        for window in self._windows:
            oldest = self.steps - window if window else NEVER
            hidden_BT = age_BT <= oldest
            self._mask[window] = torch.zeros_like(hidden_BT, dtype=torch.float32).masked_fill_(
                hidden_BT, float("-inf")
            )[:, None]

    def __call__(
        self, q_BHC: Tensor, kv_BNC: Tensor, layer: int, *, scale: float, window: int = 0,
        softcap: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """``[B, H C]``.

        Args:
            q_BHC: rotated queries of the new tokens.
            kv_BNC: their rotated keys and their values, N = 2 K.
            layer: its number.
            scale: of the scores.
            window: one of the windows given before.
            softcap: of the scores, 0 for none.
        """
        B, K, G, C = len(q_BHC), self.kv_heads, self.heads // self.kv_heads, self.width
        prompt, end = self.prompt_columns, self._column + 1
        self._own[layer, ..., self._column, :] = kv_BNC.view(B, 2, K, C).permute(1, 2, 0, 3)
        q_KBGC = q_BHC.new_empty(K, B, G, C)
        torch.mul(q_BHC.view(B, K, G, C).transpose(0, 1), scale, out=q_KBGC)
        by_chunk = self._to_chunks(q_KBGC).view(K * self._chunks, -1, C)
        prompt_score = self._to_rows(
            torch.bmm(by_chunk, self._prompt_k[layer]).view(K, -1, G, prompt)
        )
        own_k, own_v = self._own_k[layer][:, :end], self._own_v[layer][:, :end]
        own_score = torch.bmm(q_KBGC.view(K * B, G, C), own_k.transpose(1, 2))
        score_KBGT = torch.cat([prompt_score, own_score.view(K, B, G, end)], dim=-1)
        if softcap:
            score_KBGT = score_KBGT.div_(softcap).tanh_().mul_(softcap)
        weight = score_KBGT.add_(self._mask[window]).softmax(-1)
        by_chunk = self._to_chunks(weight[..., :prompt]).reshape(K * self._chunks, -1, prompt)
        out = torch.bmm(by_chunk, self._prompt_v[layer]).view(K, -1, G, C)
        out = self._to_rows(out).view(K * B, G, C)
        out.baddbmm_(weight[..., prompt:].view(K * B, G, end), own_v)
        return out.view(K, B, G * C).transpose(0, 1).reshape(B, -1)

    def finish(self) -> None:
        """Write the new tokens of all layers to the pages."""
        r = self.rows
        at_B = r.cached_B.long()
        page_B = r.suffix_table_BP.gather(1, (at_B // PAGE)[:, None]).long()[:, 0]
        new = self._own[..., self._column, :]
        self.arena[page_B, :, :, :, at_B % PAGE] = new.permute(3, 0, 1, 2, 4)
        self.steps += 1

    def _to_chunks(self, x_KBGT: Tensor) -> Tensor:
        return x_KBGT if self._regular else x_KBGT.index_select(1, self._taken_Y)

    def _to_rows(self, x_KYGT: Tensor) -> Tensor:
        return x_KYGT if self._regular else x_KYGT.index_select(1, self._place_B)
