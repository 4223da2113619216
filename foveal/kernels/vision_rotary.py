"""Queries and keys of a vision tower rotated in one pass over memory.

Spelled out, a rotation widens queries and keys to float32 and passes over them seven times each:
at 3,600 patches 490 MB a layer, where 37 MB have to be moved. ``rotate_reference`` is the
specification, and what runs on a CPU.
"""

# pyright: reportCallIssue=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate(x_N2HC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
    """``x * cos + rotate_half(x) * sin`` in float32, rounded once (arXiv:2104.09864).

    Args:
        x_N2HC: queries and keys; a view into their product with the values will do.
        cos_NC: cosines of each token, without gradients.
        sin_NC: sines.

    Returns:
        ``[N, 2, H, C]`` in the type of ``x_N2HC``, differentiable in it.

    Raises:
        ValueError: if the shapes do not fit, or the width is odd.
    """
    tokens, parts, _, width = x_N2HC.shape
    if parts != 2 or width % 2 or not cos_NC.shape == sin_NC.shape == (tokens, width):
        raise ValueError(
            f"x is {[*x_N2HC.shape]}, cosines and sines {[*cos_NC.shape]} and {[*sin_NC.shape]}; "
            "they must be [tokens, 2, heads, even width] and [tokens, width]"
        )
    if x_N2HC.device.type != "cuda" or x_N2HC.dtype == torch.float64:
        return rotate_reference(x_N2HC, cos_NC, sin_NC)
    return rotate_fused(x_N2HC, cos_NC, sin_NC)


def rotate_reference(x_N2HC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
    """The specification of :func:`rotate`."""
    x = x_N2HC.float()
    cos, sin = (angle_NC.float()[:, None, None] for angle_NC in (cos_NC, sin_NC))
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x_N2HC.dtype)


def rotate_fused(x_N2HC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
    """:func:`rotate` by the Triton kernel."""
    return _Rotate.apply(x_N2HC, cos_NC.float().contiguous(), sin_NC.float().contiguous())  # pyright: ignore[reportReturnType]


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_N2HC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
        ctx.save_for_backward(cos_NC, sin_NC)
        return _launch(x_N2HC, cos_NC, sin_NC, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return _launch(upstream[0], *ctx.saved_tensors, back=True), None, None


def _launch(x_N2HC: Tensor, cos_NC: Tensor, sin_NC: Tensor, *, back: bool) -> Tensor:
    import triton

    from foveal.kernels.vision_rotary_triton import rotate_kernel

    tokens, parts, heads, width = x_N2HC.shape
    if x_N2HC.stride()[2:] != (width, 1):
        x_N2HC = x_N2HC.contiguous()
    out_N2HC = torch.empty(x_N2HC.shape, dtype=x_N2HC.dtype, device=x_N2HC.device)
    if tokens:
        rotate_kernel[(tokens, parts)](
            x_N2HC,
            out_N2HC,
            cos_NC,
            sin_NC,
            x_N2HC.stride(0),
            x_N2HC.stride(1),
            HEADS=heads,
            C=width,
            BLOCK_H=triton.next_power_of_2(heads),
            BLOCK_C=triton.next_power_of_2(width // 2),
            BACK=back,
            num_warps=4,
        )
    return out_N2HC
