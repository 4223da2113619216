"""The Triton kernels of a training pass against the references and their autograd, interpreted.

Run by test_kernels_train_fused.py in a Python of its own, see tests/interpret.py; and by
tests/gpu/test_training_cuda.py on a GPU, with other values of the constants.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from foveal.kernels import train_fused
from foveal.kernels.train_fused import (
    ACTIVATIONS,
    add_rms_norm,
    gated,
    gated_backward_,
    gated_backward_reference_,
    gated_reference,
    rms_norm,
    rotary,
)
from foveal.models import training_layer
from tests.unit.test_models_training_layer import Case, assert_same, train_norms

EPS = 1e-6
WIDE, HALF = torch.float32, torch.float16
NEAR = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DEVICE = "cpu"


def numbers(*shape, seed=0, dtype=WIDE, scale=1.0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def both(function: Any, *inputs: torch.Tensor) -> list[list[torch.Tensor]]:
    """Results and gradients: of the kernels, then of the reference."""
    found = []
    for kernels in (True, False):
        train_fused._takes_kernel = lambda *_, kernels=kernels: kernels
        leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        outputs = function(*leaves)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        upstream = [numbers(*y.shape, seed=9, dtype=y.dtype) for y in outputs]
        wanted = [x for x in leaves if x.requires_grad]
        assert any(y.grad_fn is not None for y in outputs)
        grads = torch.autograd.grad(outputs, wanted, upstream)
        found.append([y.detach() for y in outputs] + list(grads))
    return found


def assert_near(found: list[list[torch.Tensor]], case: Any) -> None:
    for number, (ours, expected) in enumerate(zip(*found, strict=True)):
        assert ours.dtype == expected.dtype and ours.shape == expected.shape, case
        # Sums are taken in another order; autograd rounds what comes between in 16 bit.
        near = NEAR[HALF if HALF in case else expected.dtype]
        largest = expected.float().abs().max().item()
        torch.testing.assert_close(
            ours.float(), expected.float(), atol=near * max(1.0, largest), rtol=0,
            msg=lambda text, number=number: f"{case}, tensor {number}: {text}",
        )  # fmt: skip


def norms():
    """Narrow and wide rows, no power of two, trained weights or frozen ones."""
    kinds = ((WIDE, WIDE), (HALF, HALF), (WIDE, HALF))
    for (rows, D), offset, trained, (stream, half) in itertools.product(
        ((37, 24), (3, 2500)), (False, True), (False, True), kinds
    ):
        weight = numbers(D, seed=1, dtype=half).requires_grad_(trained)
        x = numbers(rows, D, seed=2, dtype=stream, scale=3.0).requires_grad_()
        case = (rows, D, offset, trained, stream, half)

        def norm(x, weight, offset=offset, half=half):
            return rms_norm(x.view(-1, 1, x.shape[-1]), weight, EPS, offset=offset, dtype=half)

        assert_near(both(norm, x, weight), case)
        assert_near(
            both(lambda x, w, o=offset: add_rms_norm(x, None, w, EPS, offset=o), x, weight), case
        )
        branch = numbers(rows, D, seed=3, dtype=half).requires_grad_()
        for used in (slice(0, 2), slice(0, 1), slice(1, 2)):

            def joint(x, branch, weight, used=used, offset=offset, half=half):
                return add_rms_norm(x, branch, weight, EPS, offset=offset, dtype=half)[used]

            if used == slice(0, 1) and trained:
                continue  # the weight takes no part
            assert_near(both(joint, x, branch, weight), (*case, used))


def many_tiles():
    """More tiles of rows than programs sum the weight's gradient."""
    weight = numbers(24, seed=1).requires_grad_()
    x = numbers(520 * 64 + 3, 24).requires_grad_()
    assert_near(both(lambda x, w: rms_norm(x, w, EPS, offset=False), x, weight), ("tiles",))


def rotations():
    """Angles of their own in both halves; heads of no power of two; angles wider than heads."""
    for (H, K, C), kind, angle in itertools.product(
        ((3, 2, 16), (5, 1, 12)), (WIDE, HALF), (WIDE, HALF)
    ):
        if kind == WIDE and angle == HALF:
            continue
        q = numbers(7, H, C, dtype=kind).requires_grad_()
        k = numbers(7, K, C, dtype=kind).requires_grad_()
        cos, sin = numbers(7, C, seed=4, dtype=angle), numbers(7, C, seed=5, dtype=angle)
        found = both(rotary, q, k, cos, sin)
        assert_near(found, (H, K, C, kind, angle))
        if kind == HALF and DEVICE == "cpu":
            # Forward it rounds where the stock module rounds, to the bit. (A compiled kernel may
            # fuse a product with the sum.)
            assert all(torch.equal(a, b) for a, b in zip(found[0][:2], found[1][:2], strict=True))


def gates():
    for act, kind, N, overwrite in itertools.product(
        ACTIVATIONS, (WIDE, HALF), (3, 41), (False, True)
    ):
        gate, up, d = (numbers(N, 37, seed=s, dtype=kind, scale=3.0) for s in (1, 2, 3))
        gate[0, :2] = torch.tensor([-20.0, 20.0], device=DEVICE)
        train_fused._takes_kernel = lambda *_: True
        case = (act, kind, N, overwrite)
        assert_near([[gated(gate, up, act)], [gated_reference(gate, up, act)]], case)
        for product in (False, True):
            expected = gated_backward_reference_(d.clone(), gate, up, act, product=product)
            ours = [d.clone(), gate.clone(), up.clone()]
            found = gated_backward_(*ours, act, product=product, overwrite=overwrite)
            assert found[0] is ours[0] and (found[2] is not None) == product
            assert_near([[x for x in f if x is not None] for f in (found, expected)], case)
            assert torch.equal(ours[2], up) != overwrite and torch.isfinite(found[0]).all()
            assert torch.equal(ours[1], gate) != (overwrite and product)


def whole_layers():
    """Views, types and arguments as a layer passes them on."""
    training_layer.FUSED_ON = {DEVICE}
    for family, policy in itertools.product(("qwen3_vl", "gemma3"), (False, True, "selective")):
        case = Case(family, tokens=5, device=DEVICE)
        train_norms(case)
        found = []
        for kernels in (True, False):
            train_fused._takes_kernel = lambda *_, kernels=kernels: kernels
            found.append(case.results(policy))
        assert_same(*found)


def empty():
    train_fused._takes_kernel = lambda *_: True
    x = torch.empty(0, 24, requires_grad=True, device=DEVICE)
    rms_norm(x, torch.ones(24, device=DEVICE), EPS, offset=False).sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 24)
    assert gated(x.detach(), x.detach(), "silu").shape == (0, 24)
    q, cos = torch.empty(0, 2, 4, device=DEVICE), torch.empty(0, 4, device=DEVICE)
    assert rotary(q, q, cos, cos)[0].shape == q.shape


CASES = (norms, many_tiles, rotations, gates, whole_layers, empty)

if __name__ == "__main__":
    for each in CASES:
        each()
