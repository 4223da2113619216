"""Attention inside segments of one packed sequence, all segments in one call.

A vision tower that attends within windows or pictures packs their tokens after one another.
A call for each segment is a launch for each segment: 225 windows of one 840 px picture in each
of 32 layers. Here offsets say where segments begin, and one kernel sees them all.

``varlen_attention_reference`` is the specification, and what runs on a CPU.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Literal["flash", "efficient", "reference"]

FLASH_CAPABILITY = (8, 0)
"""The least compute capability that torch's flash attention runs on (Ampere)."""
FLASH_WIDTH = 256
"""The widest head that it takes."""
WIDTH_MULTIPLE = 8
"""Both CUDA kernels load rows of a head in steps of 16 bytes: 8 values of 16 bits."""


def varlen_attention(
    query_NHC: Tensor,
    key_NHC: Tensor,
    value_NHC: Tensor,
    offsets: Tensor,
    longest: int,
    scale: float | None = None,
) -> Tensor:
    """Each token attends to all tokens of its own segment and to no others.

    Args:
        query_NHC: queries of all segments, one after another, ``[N, H, C]``.
        key_NHC: keys, ``[N, H, C]``.
        value_NHC: values, ``[N, H, C]``.
        offsets: where each segment begins, and N: ``[segments + 1]``, int32, rising, on the
            device of the queries.
        longest: tokens of the longest segment; the CUDA kernels size their work by it.
        scale: factor on the scores; by default ``C ** -0.5``.

    Returns:
        ``[N, H, C]``, differentiable in queries, keys and values.

    Raises:
        ValueError: if the shapes differ, or (on a CPU) if offsets do not run from 0 to N.
    """
    if not query_NHC.shape == key_NHC.shape == value_NHC.shape or query_NHC.ndim != 3:
        raise ValueError(
            f"queries, keys and values are {[*query_NHC.shape]}, {[*key_NHC.shape]} and "
            f"{[*value_NHC.shape]}; all must be [tokens, heads, width], with equal numbers"
        )
    kernel = choose_kernel(query_NHC)
    if kernel == "reference":
        return varlen_attention_reference(query_NHC, key_NHC, value_NHC, offsets, scale)
    width = query_NHC.shape[-1]
    chosen_scale = width**-0.5 if scale is None else scale
    # Columns of zeros change no score, and give columns of zeros that are cut off again.
    query, key, value = (_pad_width(x) for x in (query_NHC, key_NHC, value_NHC))
    offsets = offsets.to(torch.int32)
    run = _flash if kernel == "flash" else _efficient
    output = run(query, key, value, offsets, longest, chosen_scale)
    return output if output.shape[-1] == width else output[..., :width]


def varlen_attention_reference(
    query_NHC: Tensor,
    key_NHC: Tensor,
    value_NHC: Tensor,
    offsets: Tensor,
    scale: float | None = None,
) -> Tensor:
    """The specification of :func:`varlen_attention`: segments of equal length form a batch."""
    bounds, tokens = offsets.tolist(), query_NHC.shape[0]
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != tokens or min(lengths, default=0) < 0:
        raise ValueError(
            f"offsets run from {bounds[0]} to {bounds[-1]} over {tokens} packed tokens; they must "
            f"rise from 0 to {tokens}"
        )
    parts, places = [], []
    for length in sorted({n for n in lengths if n}):
        starts = [start for start, n in zip(bounds, lengths, strict=False) if n == length]
        at = torch.tensor(starts)[:, None] + torch.arange(length)
        at_N = at.flatten().to(query_NHC.device)
        query, key, value = (
            x[at_N].unflatten(0, (len(starts), length)).transpose(1, 2)
            for x in (query_NHC, key_NHC, value_NHC)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=scale)
        parts.append(attended.transpose(1, 2).flatten(0, 1))
        places.append(at_N)
    if not parts:
        return value_NHC
    return torch.cat(parts)[torch.cat(places).argsort()]


def choose_kernel(query_NHC: Tensor) -> Kernel:
    """Which kernel takes these queries.

    Flash attention on CUDA in 16 bit from Ampere on; the memory-efficient kernel for float32 and
    for float16 on older GPUs; the reference for all else, such as a CPU, float64, and bfloat16 on
    a GPU that does not compute in it.
    """
    if query_NHC.device.type != "cuda":
        return "reference"
    dtype, capability = query_NHC.dtype, torch.cuda.get_device_capability(query_NHC.device)
    ampere = capability >= FLASH_CAPABILITY
    half = dtype == torch.float16 or (dtype == torch.bfloat16 and ampere)
    built = torch.backends.cuda.is_flash_attention_available()
    if half and ampere and built and query_NHC.shape[-1] <= FLASH_WIDTH:
        return "flash"
    return "efficient" if half or dtype == torch.float32 else "reference"


def _flash(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scale: float
) -> Tensor:
    # Positional as in torch's own nested tensors (torch/nested/_internal/sdpa.py): the names of
    # what follows have changed between versions, the order of these has not.
    no_dropout, causal, debug = 0.0, False, False
    outputs = torch.ops.aten._flash_attention_forward(
        query, key, value, offsets, offsets, longest, longest, no_dropout, causal, debug,
        scale=scale,
    )  # fmt: skip
    return outputs[0]


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, longest: int, scale: float
) -> Tensor:
    # The backward pass reads the log-sum-exp.
    bias, no_dropout, no_mask, keep_logsumexp = None, 0.0, 0, True
    outputs = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], bias, offsets, offsets, longest, longest,
        no_dropout, no_mask, keep_logsumexp, scale=scale,
    )  # fmt: skip
    return outputs[0][0]


def _pad_width(x_NHC: Tensor) -> Tensor:
    missing = -x_NHC.shape[-1] % WIDTH_MULTIPLE
    return F.pad(x_NHC, (0, missing)) if missing else x_NHC
