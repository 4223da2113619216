"""What decoded tokens put into a layer, kept by row and step: one place each, found by the device.

``kept_SLD[first_B + cached_B, layer] = x_BD``. The tensor's address and the rows' places are read
from the device, so captured graphs hold wherever it lies. In the fused decode step
``decode_fused.residual_norm`` writes it on its way; elsewhere :func:`keep_rows` does.
"""

# Type checkers do not know how Triton kernels are launched.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveal.kernels.decode_attention import triton_type

NOWHERE = -(1 << 30)
"""In ``first_B``: a row that is not kept, however many tokens it has."""


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Where the rows of a batch are kept; tensors at fixed addresses."""

    address: Tensor
    """int64 ``[1]``: where ``kept_SLD`` begins."""
    first_B: Tensor
    """int32: place along S of each row's first own token, were it kept there; negative places,
    of :data:`NOWHERE`, are not written."""
    cached_B: Tensor
    """int32: own tokens before this one."""
    layers: int
    """L."""
    dtype: torch.dtype
    """Of ``kept_SLD``."""

    def batch(self, rows: int) -> KeptRows:
        """The same for the first rows alone."""
        return replace(self, first_B=self.first_B[:rows], cached_B=self.cached_B[:rows])


def keep_rows_reference(
    kept_SLD: Tensor, layer: int, first_B: Tensor, cached_B: Tensor, x_BD: Tensor
) -> None:
    """The specification of :func:`keep_rows`, in a tensor that is at hand."""
    at_B = (first_B + cached_B).long()
    kept_SLD[at_B[at_B >= 0], layer] = x_BD[at_B >= 0].to(kept_SLD.dtype)


def keep_rows(kept: KeptRows, layer: int, x_BD: Tensor) -> None:
    """Write the stream ``[B, D]`` of one new token a row into its place."""
    import triton

    from foveal.kernels.kept_rows_triton import keep_rows_kernel

    B, D = x_BD.shape
    keep_rows_kernel[(B,)](
        x_BD.contiguous(),
        kept.address,
        kept.first_B,
        kept.cached_B,
        layer * D,
        kept.layers * D,
        D,
        KEPT=triton_type(kept.dtype),
        BLOCK_D=triton.next_power_of_2(D),
        num_warps=4,
    )
