"""The rotation of a vision tower's queries and keys against the reference, in the interpreter.

Run by test_kernels_vision_rotary.py in a Python of its own; see tests/interpret.py.
"""

from __future__ import annotations

import torch

from foveal.kernels.vision_rotary import rotate_fused, rotate_reference


def equals(heads: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    # A view into the product with the values, as the towers have it. The two halves of the angles
    # differ, so that neither may stand for the other.
    qkv = torch.randn(5, 3, heads, width, generator=generator).to(dtype).requires_grad_()
    cos_NC, sin_NC = torch.randn(2, 5, width, generator=generator)
    upstream = torch.randn(5, 2, heads, width, generator=generator).to(dtype)
    results = []
    for function in (rotate_fused, rotate_reference):
        y_N2HC = function(qkv[:, :2], cos_NC, sin_NC)
        (gradient,) = torch.autograd.grad(y_N2HC, qkv, upstream)
        assert y_N2HC.dtype == dtype and not gradient[:, 2].any()
        results.append((y_N2HC, gradient))
    bound = 2e-2 if dtype == torch.float16 else 1e-5
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=bound / 4, rtol=bound / 4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float16):
        equals(16, 80, dtype)
        equals(3, 18, dtype)
