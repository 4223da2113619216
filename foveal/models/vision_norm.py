"""Root-mean-square norms of a vision tower in two passes over memory instead of eight.

    norms = fast_vision_norms(model)      # at loading; does nothing the second time
    stock_vision_norms(model)             # back to what transformers does

Transformers spells the norm out: to float32, square, mean, add, root, multiply, back to 16 bit,
times the weight. Each step is a pass over all patches. Torch's own norm does all but the last in
one, in float32 inside; it gets no weight, so that the result is rounded before the weight comes
in, as it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from foveal.kernels.arithmetic import as_typed
from foveal.models.family import family_of, stock_model
from foveal.models.state import state_of


def fast_vision_norms(model: nn.Module) -> int:
    """Let the root-mean-square norms of the vision tower pass over memory twice.

    Args:
        model: stock model or its PEFT wrapper.

    Returns:
        How many norms are changed; 0 for towers of other norms, which torch fuses already.
    """
    norms = _norms(model)
    for norm in norms:
        # A forward that somebody else has put there has its reasons.
        if "forward" not in vars(norm):
            norm.forward = FusedNorm(norm)
    changed = sum(_is_changed(norm) for norm in norms)
    if changed:
        line = f"{changed} norms of the vision tower are computed by torch's own"
        state_of(model).record("vision norms", line)
    return changed


def stock_vision_norms(model: nn.Module) -> int:
    """Undo :func:`fast_vision_norms`; returns how many norms were switched back."""
    changed = [norm for norm in _norms(model) if _is_changed(norm)]
    for norm in changed:
        del norm.forward
    state_of(model).record("vision norms", None)
    return len(changed)


@dataclass(eq=False, slots=True)
class FusedNorm:
    """Stands in for ``forward`` on one instance, and is copied and pickled along with it."""

    norm: Any

    def __call__(self, x_ND: Tensor) -> Tensor:
        norm = self.norm
        # Autocast might widen the result.
        with as_typed(x_ND):
            y_ND = F.rms_norm(x_ND, x_ND.shape[-1:], None, norm.variance_epsilon)
        return norm.weight * y_ND


def _norms(model: nn.Module) -> list[Any]:
    """Norms of Qwen2.5-VL's kind; the name tells them from those that add 1 to the weight."""
    tower = stock_model(model).get_submodule(family_of(model).FAMILY.vision_paths[0])
    return [module for module in tower.modules() if type(module).__name__ == "Qwen2_5_VLRMSNorm"]


def _is_changed(norm: nn.Module) -> bool:
    return isinstance(vars(norm).get("forward"), FusedNorm)
