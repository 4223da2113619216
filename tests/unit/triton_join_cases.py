"""The Triton join of two attention parts against the reference, in the interpreter.

Run by test_kernels_prefix_attention.py in a Python of its own; see tests/interpret.py.
"""

from __future__ import annotations

import torch

from foveal.kernels.prefix_attention import join_fused, join_reference


def numbers(*shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parts_of_any_shape():
    """Heads and widths of no power of two; a part that weighs next to nothing."""
    for (N, H, C), dtype, tolerance in (
        ((5, 6, 24), torch.float32, 1e-6),
        ((3, 4, 16), torch.float16, 1e-3),
        ((1, 1, 72), torch.float32, 1e-6),
    ):
        outs = [numbers(N, H, C, seed=s, dtype=dtype) for s in (1, 2)]
        lses = [numbers(H, N, seed=s) * 20 for s in (3, 4)]
        # A log-sum-exp that a kernel hands out may be a view.
        lses[0] = lses[0].T.contiguous().T
        found = join_fused(outs[0], lses[0], outs[1], lses[1])
        expected = join_reference(outs[0], lses[0], outs[1], lses[1])
        for ours, value in zip(found, expected, strict=True):
            assert ours.dtype == value.dtype
            torch.testing.assert_close(ours, value, atol=tolerance, rtol=tolerance)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts_of_any_shape()
