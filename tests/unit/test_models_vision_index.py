"""Indices joined from single pictures are those that transformers makes of all at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from foveal.models.qwen2_5_vl import packed_index, window_index

GRIDS = [(1, 8, 8), (1, 14, 28), (1, 4, 4), (1, 8, 8), (1, 10, 6), (1, 2, 30), (1, 26, 20)]


@pytest.mark.parametrize("window", [56, 112])
@pytest.mark.parametrize("count", [1, 2, len(GRIDS)])
def test_pictures_side_by_side_keep_their_own_windows_and_places(window, count):
    config = SimpleNamespace(spatial_merge_size=2, window_size=window, patch_size=14)
    grid_I3 = torch.tensor(GRIDS[:count])
    for _ in range(2):  # made, and then known
        ours = packed_index(grid_I3, config) | window_index(grid_I3, config)
        order, offsets = get_vision_window_index(grid_I3, 2, window, 14)
        assert torch.equal(ours["window_index"], order)
        assert torch.equal(ours["cu_window_seqlens"], offsets)
        assert ours["cu_window_seqlens"].dtype == offsets.dtype == torch.int32
        assert ours["max_window_seqlen"] == offsets.diff().max()
        assert torch.equal(ours["position_ids"], get_vision_position_ids(grid_I3, 2))
