"""AdamW over float32 copies of 16-bit weights.

bfloat16 has 8 significant bits: an update below 1/256 of a weight is lost when it is added to it,
and at usual learning rates nearly all are. So the sums are kept in float32, as in mixed-precision
training (arXiv:1710.03740, section 3.1); the model computes with what they round to, which is also
what rollouts and checkpoints see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class MasterAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` whose parameters are float32 copies of the model's 16-bit ones.

    Weights of other types are updated as they are. Gradients are cast when the step is made; until
    then they are the model's, for clipping and accumulation.

    Args:
        groups: parameter groups of the model's weights.
        given: as of ``torch.optim.AdamW``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **given: Any) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        """Weight of the model and its master."""
        super().__init__([self._mastered(group) for group in groups], **given)

    def _mastered(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**group, "params": [self._master(weight) for weight in group["params"]]}

    def _master(self, weight: Tensor) -> Tensor:
        if weight.element_size() > 2:
            return weight
        master = weight.detach().to(torch.float32).requires_grad_()
        self._pairs.append((weight, master))
        return master

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight, _ in self._pairs:
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        assert closure is None, "gradients are those of the last backward pass"
        used = [(weight, master) for weight, master in self._pairs if weight.grad is not None]
        for weight, master in used:
            assert weight.grad is not None
            master.grad = weight.grad.to(torch.float32)
        result = super().step()
        for weight, master in used:
            weight.copy_(master)
            # The next step's gradient is new memory; this one's must not outlive its use.
            master.grad = None
        return result

    def state_dict(self) -> dict[str, Any]:
        """AdamW's, and ``masters``: what the weights of a checkpoint are rounded from."""
        return {**super().state_dict(), "masters": [master for _, master in self._pairs]}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; sets the model's weights, too.

        Raises:
            ValueError: for the state of another optimizer.
        """
        masters = state_dict.get("masters")
        if masters is None or len(masters) != len(self._pairs):
            found = "none" if masters is None else str(len(masters))
            raise ValueError(
                f"the optimizer's state holds {found} of the {len(self._pairs)} float32 masters; "
                "resume with the float32_masters, dtype and trained weights that the checkpoint "
                "was made with"
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "masters"})
        for (weight, master), saved in zip(self._pairs, masters, strict=True):
            master.copy_(saved)
            weight.copy_(master)
