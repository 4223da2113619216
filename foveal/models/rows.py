"""Rows for a padded pass: prompts followed by completions, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foveal.types import ImageInput, Prompt


@dataclass(frozen=True, slots=True)
class RowBatch:
    """B rows of at most L tokens. Padding lies on the right, so positions need no offset."""

    ids_BL: Tensor
    real_BL: Tensor
    """True where a token is, False where padding is."""
    image_BL: Tensor
    """True at the placeholders of the prompt. A placeholder that a completion holds is False."""
    positions_ABL: Tensor
    """Rotary positions along A axes: 3 with multimodal rotary embedding, otherwise 1."""
    prompt_lengths: tuple[int, ...]
    completion_lengths: tuple[int, ...]
    images: tuple[ImageInput, ...]
    """Pictures in the order in which their placeholders occur, row by row."""

    def to(self, device: torch.device | str) -> RowBatch:
        moved = {
            name: getattr(self, name).to(device)
            for name in ("ids_BL", "real_BL", "image_BL", "positions_ABL")
        }
        return replace(self, **moved)

    def completion_index(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the completion tokens, ``[N]`` each, row by row."""
        rows, columns = [], []
        for row, (start, count) in enumerate(
            zip(self.prompt_lengths, self.completion_lengths, strict=True)
        ):
            rows.append(torch.full((count,), row))
            columns.append(torch.arange(start, start + count))
        device = self.ids_BL.device
        return torch.cat(rows).to(device), torch.cat(columns).to(device)


def make_rows(
    family: Any,
    config: Any,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[int]],
    *,
    image_token_id: int,
    pad_id: int = 0,
) -> RowBatch:
    """Lay prompts and completions out as rows.

    Args:
        family: module of the model's family (``foveal.models.family``).
        config: the model's config.
        prompts: one a row; the same prompt may stand in several rows.
        completions: token ids to append to each prompt; may be empty.
        image_token_id: the placeholder in prompts.
        pad_id: any id inside the vocabulary; padding is masked.
    """
    rows = [[*p.ids, *c] for p, c in zip(prompts, completions, strict=True)]
    longest = max(len(row) for row in rows)
    shape = (len(rows), longest)
    ids_BL = torch.full(shape, pad_id, dtype=torch.long)
    real_BL = torch.zeros(shape, dtype=torch.bool)
    image_BL = torch.zeros(shape, dtype=torch.bool)
    positions = []
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids_BL[i, : len(row)] = torch.tensor(row)
        real_BL[i, : len(row)] = True
        image_BL[i, : len(prompt.ids)] = torch.tensor(prompt.ids) == image_token_id
        positions.append(family.row_positions(config, prompt, longest))
    return RowBatch(
        ids_BL=ids_BL,
        real_BL=real_BL,
        image_BL=image_BL,
        positions_ABL=torch.stack(positions, dim=1),
        prompt_lengths=tuple(len(p.ids) for p in prompts),
        completion_lengths=tuple(len(c) for c in completions),
        images=tuple(image for p in prompts for image in p.images),
    )
