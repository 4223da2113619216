"""The steps between two products of a training pass, forward and backward one launch each.

``rms_norm``        root-mean-square norm of rows (arXiv:1910.07467)
``add_rms_norm``    the residual stream with a branch added, and its norm
``rotary``          rotation of queries and keys by their positions (arXiv:2104.09864)
``gated``           ``act(gate) * up``; ``gated_backward_`` is its gradient

The references are the stock modules' formulas, round where those round, and are what runs on a
CPU: there autograd differentiates them. The kernels keep less: of a norm its input and one number
a row, of a rotation the angles alone.
"""

# Type checkers do not know how Triton kernels are launched.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
"""By the names that transformers' configs give them."""

_KERNEL_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_TILE = 2048
"""Elements that a program holds of narrow rows."""


def _takes_kernel(*tensors: Tensor) -> bool:
    return all(x.is_cuda and x.dtype in _KERNEL_TYPES for x in tensors)


# ---------------------------------------------------------------------------------------- norms


def rms_norm_reference(
    x_ND: Tensor, weight_D: Tensor, eps: float, *, offset: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """The specification of :func:`rms_norm`."""
    wide = x_ND.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if offset:
        y = (wide * (1.0 + weight_D.float())).to(x_ND.dtype)
    else:
        y = weight_D * wide.to(x_ND.dtype)
    return y if dtype is None else y.to(dtype)


def rms_norm(
    x_ND: Tensor, weight_D: Tensor, eps: float, *, offset: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """``weight * x / rms(x)``, or ``(1 + weight) * x / rms(x)``.

    Args:
        x_ND: rows of any number of leading axes.
        weight_D: of any type; its gradient is computed if it asks for one.
        eps: added to the mean square.
        offset: as in Gemma: one is added to the weight, and the product is rounded once. Otherwise
            as in Qwen: the normed row is rounded before it is multiplied.
        dtype: of the result; None for the stock module's.

    Returns:
        In the shape of ``x_ND``.
    """
    if not _takes_kernel(x_ND, weight_D):
        return rms_norm_reference(x_ND, weight_D, eps, offset=offset, dtype=dtype)
    dtype = _norm_dtype(x_ND, weight_D, offset) if dtype is None else dtype
    _, y_ND = _norm(x_ND, None, weight_D, eps, offset, dtype)
    return y_ND


def add_rms_norm(
    residual_ND: Tensor,
    branch_ND: Tensor | None,
    weight_D: Tensor,
    eps: float,
    *,
    offset: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The stream behind a branch, and its norm: ``(residual + branch, rms_norm(of it))``.

    Both results come from one node, so that the gradients of stream and norm are summed where the
    norm's is computed. For that it is worth calling without a branch, too.

    Args:
        residual_ND: stream; the sum is rounded to its type.
        branch_ND: what is added, in this type or a narrower one; None for nothing.
        weight_D: as of :func:`rms_norm`, and so are the rest.
    """
    tensors = (residual_ND, weight_D) if branch_ND is None else (residual_ND, branch_ND, weight_D)
    if _takes_kernel(*tensors):
        dtype = _norm_dtype(residual_ND, weight_D, offset) if dtype is None else dtype
        return _norm(residual_ND, branch_ND, weight_D, eps, offset, dtype)
    if branch_ND is not None:
        residual_ND = (residual_ND + branch_ND).to(residual_ND.dtype)
    return residual_ND, rms_norm_reference(residual_ND, weight_D, eps, offset=offset, dtype=dtype)


def _norm_dtype(x_ND: Tensor, weight_D: Tensor, offset: bool) -> torch.dtype:
    return x_ND.dtype if offset else torch.promote_types(x_ND.dtype, weight_D.dtype)


def _norm(
    x_ND: Tensor, branch_ND: Tensor | None, weight_D: Tensor, eps: float, offset: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    D = x_ND.shape[-1]
    if weight_D.shape != (D,) or (branch_ND is not None and branch_ND.shape != x_ND.shape):
        branch = None if branch_ND is None else tuple(branch_ND.shape)
        raise ValueError(
            f"rows are {tuple(x_ND.shape)}, the branch {branch} and the weight "
            f"{tuple(weight_D.shape)}; branch and rows must have one shape, the weight their width"
        )
    found: Any = _Norm.apply(x_ND, branch_ND, weight_D, eps, offset, dtype)
    return found


def _norm_tile(rows: int, D: int) -> tuple[int, int, int, int]:
    """Rows of a tile, its width, the number of tiles, and warps for one."""
    import triton

    block = triton.next_power_of_2(D)
    height = max(1, _TILE // block)
    return height, block, triton.cdiv(rows, height), min(16, max(4, height * block // 512))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, branch_ND: Tensor | None, weight_D: Tensor, eps: float,
        offset: bool, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from foveal.kernels.train_fused_triton import norm_kernel

        x, weight = x_ND.contiguous(), weight_D.contiguous()
        branch = x if branch_ND is None else branch_ND.contiguous()
        D = x.shape[-1]
        rows = x.numel() // D
        stream = x_ND if branch_ND is None else torch.empty_like(x)
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        rstd_N = torch.empty(rows, dtype=torch.float32, device=x.device)
        height, block, tiles, warps = _norm_tile(rows, D)
        if rows:
            norm_kernel[(tiles,)](
                x, branch, stream, y, rstd_N, weight, rows, D, eps, BRANCH=branch_ND is not None,
                ADD_ONE=offset, ROWS=height, BLOCK_D=block, num_warps=warps,
            )  # fmt: skip
        ctx.offset = offset
        ctx.branch_dtype = None if branch_ND is None else branch_ND.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(stream, rstd_N, weight_D)
        return stream, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        dstream, dy = upstream
        x_ND, rstd_N, weight_D = ctx.saved_tensors
        if dy is None:
            dbranch = None if dstream is None or ctx.branch_dtype is None else dstream
            return dstream, None if dbranch is None else dbranch.to(ctx.branch_dtype), *[None] * 4
        dx, dbranch, dweight = _norm_gradients(
            dy, dstream, x_ND, rstd_N, weight_D, offset=ctx.offset, branch=ctx.branch_dtype,
            into_weight=ctx.needs_input_grad[2],
        )  # fmt: skip
        return dx, dbranch, dweight, None, None, None


def _norm_gradients(
    dy: Tensor, dstream: Tensor | None, x_ND: Tensor, rstd_N: Tensor, weight_D: Tensor, *,
    offset: bool, branch: torch.dtype | None, into_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """In the stream before the addition, in the branch (type ``branch``), and in the weight."""
    from foveal.kernels.train_fused_triton import norm_backward_kernel

    x, dy, weight = x_ND.contiguous(), dy.contiguous(), weight_D.contiguous()
    dstream = None if dstream is None else dstream.contiguous()
    D = x.shape[-1]
    rows = x.numel() // D
    dx = torch.empty_like(x)
    apart = branch is not None and branch != x.dtype
    dbranch = torch.empty(x.shape, dtype=branch, device=x.device) if apart else dx
    height, block, tiles, warps = _norm_tile(rows, D)
    # With few programs each sums many rows of the weight's gradient, and few sums are written.
    programs = min(tiles, 512) if into_weight else tiles
    dweight_PD = torch.empty(
        programs if into_weight else 0, D, dtype=torch.float32, device=x.device
    )
    if rows:
        norm_backward_kernel[(programs,)](
            dy, dy if dstream is None else dstream, x, rstd_N, weight, dx, dbranch, dweight_PD,
            rows, D, tiles, DSTREAM=dstream is not None, DBRANCH=apart, DWEIGHT=into_weight,
            ADD_ONE=offset, ROWS=height, BLOCK_D=block, num_warps=warps,
        )  # fmt: skip
    dweight = dweight_PD.sum(0).to(weight_D.dtype) if into_weight else None
    return dx, None if branch is None else dbranch, dweight


# --------------------------------------------------------------------------------------- rotary


def rotary_reference(
    q_NHC: Tensor, k_NKC: Tensor, cos_NC: Tensor, sin_NC: Tensor
) -> tuple[Tensor, Tensor]:
    """The specification of :func:`rotary`: ``x * cos + rotate_half(x) * sin``."""

    def turned(x_NHC: Tensor) -> Tensor:
        first, second = x_NHC.chunk(2, dim=-1)
        half = torch.cat([-second, first], dim=-1)
        return (x_NHC * cos_NC[:, None] + half * sin_NC[:, None]).to(x_NHC.dtype)

    return turned(q_NHC), turned(k_NKC)


def rotary(q_NHC: Tensor, k_NKC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated in the half-split layout, each in its own type.

    Args:
        q_NHC: queries.
        k_NKC: keys.
        cos_NC: cosine of each token's angles; no gradient goes there.
        sin_NC: sine likewise.

    Raises:
        ValueError: for shapes that do not fit together, or an odd width.
    """
    N, _, C = q_NHC.shape
    if k_NKC.shape[::2] != (N, C) or cos_NC.shape != (N, C) or sin_NC.shape != (N, C) or C % 2:
        shapes = [tuple(x.shape) for x in (q_NHC, k_NKC, cos_NC, sin_NC)]
        raise ValueError(
            f"q, k, cos and sin are {shapes}; they must be [N, H, C], [N, K, C], [N, C] and "
            "[N, C] with an even C"
        )
    if not _takes_kernel(q_NHC, k_NKC, cos_NC, sin_NC):
        return rotary_reference(q_NHC, k_NKC, cos_NC, sin_NC)
    found: Any = _Rotary.apply(q_NHC, k_NKC, cos_NC.contiguous(), sin_NC.contiguous())
    return found


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.heads = (q.shape, k.shape, q.dtype, k.dtype)
        return _rotated(q, k, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *_rotated(*upstream, *ctx.saved_tensors, back=True), None, None


def _rotated(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, back: bool
) -> tuple[Tensor, Tensor]:
    import triton

    from foveal.kernels.train_fused_triton import rotary_kernel

    q, k = q.contiguous(), k.contiguous()
    N, H, C = q.shape
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    if N:
        rotary_kernel[(N,)](
            q, k, cos, sin, q_out, k_out, HEADS=H, KV=k.shape[1],
            BLOCK_H=triton.next_power_of_2(H), BLOCK_K=triton.next_power_of_2(k.shape[1]),
            HALF_C=C // 2, BLOCK_C=triton.next_power_of_2(C // 2), BACK=back,
            # Angles wider than the heads widen the stock module's products.
            ROUND=not back and cos.element_size() <= q.element_size(), num_warps=4,
        )  # fmt: skip
    return q_out, k_out


# ------------------------------------------------------------- gated activation, without autograd


def _activated(act: str, gate_NF: Tensor) -> Tensor:
    return F.silu(gate_NF) if act == "silu" else F.gelu(gate_NF, approximate="tanh")


def gated_reference(gate_NF: Tensor, up_NF: Tensor, act: str) -> Tensor:
    """The specification of :func:`gated`."""
    return _activated(act, gate_NF).mul_(up_NF)


def gated(gate_NF: Tensor, up_NF: Tensor, act: str) -> Tensor:
    """``act(gate) * up``; autograd does not see it.

    Args:
        gate_NF: any shape.
        up_NF: same shape and type.
        act: "silu" or "gelu_pytorch_tanh".
    """
    _check_gated(act, gate_NF, up_NF)
    if not _takes_kernel(gate_NF, up_NF):
        return gated_reference(gate_NF, up_NF, act)
    from foveal.kernels.train_fused_triton import gated_kernel

    gate, up = gate_NF.contiguous(), up_NF.contiguous()
    product = torch.empty_like(gate)
    if gate.numel():
        gated_kernel[_blocks(gate)](
            gate, up, product, gate.numel(), BLOCK=_BLOCK, GELU=act != "silu", num_warps=4
        )
    return product


def gated_backward_reference_(
    dproduct_NF: Tensor, gate_NF: Tensor, up_NF: Tensor, act: str, *, product: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The specification of :func:`gated_backward_`."""
    dup_NF = _activated(act, gate_NF)
    product_NF = dup_NF * up_NF if product else None
    dup_NF.mul_(dproduct_NF)
    d = dproduct_NF.mul_(up_NF)
    if act == "silu":
        torch.ops.aten.silu_backward.grad_input(d, gate_NF, grad_input=d)
    else:
        torch.ops.aten.gelu_backward.grad_input(d, gate_NF, approximate="tanh", grad_input=d)
    return d, dup_NF, product_NF


def gated_backward_(
    dproduct_NF: Tensor,
    gate_NF: Tensor,
    up_NF: Tensor,
    act: str,
    *,
    product: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients in gate and up, and ``act(gate) * up`` again if asked for.

    Args:
        dproduct_NF: gradient in the product; the first result takes its memory.
        gate_NF: as of :func:`gated`.
        up_NF: likewise.
        act: likewise.
        product: compute the product again as well.
        overwrite: gate and up are needed no more; the other results may take their memory.

    Returns:
        ``(dgate_NF, dup_NF, product_NF or None)``.
    """
    _check_gated(act, dproduct_NF, gate_NF, up_NF)
    if not _takes_kernel(dproduct_NF, gate_NF, up_NF):
        return gated_backward_reference_(dproduct_NF, gate_NF, up_NF, act, product=product)
    from foveal.kernels.train_fused_triton import gated_backward_kernel

    d, gate, up = dproduct_NF.contiguous(), gate_NF.contiguous(), up_NF.contiguous()
    dup = up if overwrite else torch.empty_like(up)
    again = None
    if product:
        again = gate if overwrite else torch.empty_like(gate)
    if d.numel():
        gated_backward_kernel[_blocks(d)](
            d, gate, up, d, dup, d if again is None else again, d.numel(),
            BLOCK=_BLOCK, GELU=act != "silu", PRODUCT=product, num_warps=4,
        )  # fmt: skip
    return d, dup, again


_BLOCK = 1024
"""Elements a program: eight for each of 128 threads, one load of 16 bytes in 16 bit."""


def _blocks(x: Tensor) -> tuple[int]:
    return (-(-x.numel() // _BLOCK),)


def _check_gated(act: str, *tensors: Tensor) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; the activations known here are {', '.join(ACTIVATIONS)}")
    kinds = {(tuple(x.shape), x.dtype) for x in tensors}
    if len(kinds) > 1:
        raise ValueError(f"gate, up and gradient differ: {sorted(map(str, kinds))}; they must not")
