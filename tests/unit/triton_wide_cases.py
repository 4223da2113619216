"""The Triton kernels beside the vendor's products against the references, in the interpreter.

Run by test_kernels_wide_mlp.py in a Python of its own; see tests/interpret.py.
"""

from __future__ import annotations

import math

import torch

from foveal.kernels.skinny_linear import Factors, small_products
from foveal.kernels.wide_mlp import (
    WideMLP,
    WideRoom,
    adapted_gate_,
    adapted_gate_reference,
    gate_tiles,
    wide_mlp_reference,
)

HALF = torch.float16


def numbers(*shape, scale=1.0, seed=0, dtype=HALF, device="cpu"):
    generator = torch.Generator(device).manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)


def layers(K, N, D, ranks, **options):
    """Weights and factors of gate, up and down; ``ranks`` of the pair and of down."""
    weights, factors = [], []
    for seed, (n, k, rank) in enumerate(((N, K, ranks[0]), (N, K, ranks[0]), (D, N, ranks[1]))):
        weights.append(numbers(n, k, scale=k**-0.5, seed=seed, **options))
        a_RK = numbers(rank, k, scale=k**-0.5, seed=10 + seed, **options)
        b_NR = numbers(n, rank, scale=0.7 * max(rank, 1) ** -0.5, seed=20 + seed, **options)
        factors.append(Factors(a_RK, b_NR) if rank else None)
    return weights, factors


def room_for(mlp, dtype=HALF, device="cpu"):
    """Filled with nan: nothing may be read before it is written."""
    return WideRoom(
        **{
            name: torch.full(
                shape, math.nan, dtype=torch.float32 if "low" in name else dtype, device=device
            )
            for name, shape in mlp.shapes.items()
        }
    )


def whole_layers():
    """Odd sizes, several programs of rows and columns, adapters of both, of one, and of none."""
    cases = [
        # rows, K, N, D, ranks, gelu
        (33, 72, 300, 70, (16, 16), False),
        (40, 200, 130, 130, (32, 32), True),
        (48, 64, 50, 33, (0, 0), False),
        (35, 64, 144, 20, (0, 16), True),
        (35, 64, 144, 20, (16, 0), False),
        (65, 48, 200, 16, (64, 128), False),
    ]
    for rows, K, N, D, ranks, gelu in cases:
        x_BK = numbers(rows, K)
        weights, factors = layers(K, N, D, ranks)
        mlp = WideMLP(weights, factors, rows, gelu=gelu)
        out_1BD = mlp(x_BK, room_for(mlp))
        assert out_1BD.shape == (1, rows, D) and out_1BD.dtype == HALF
        expected_BD = wide_mlp_reference(x_BK, weights, factors, gelu)
        torch.testing.assert_close(out_1BD[0].float(), expected_BD, atol=8e-3, rtol=8e-3)
        for some in ([None, None, factors[2]], [*factors[:2], None]):
            other_BD = wide_mlp_reference(x_BK, weights, some, gelu)
            least = 0.1 if some != factors else 0.0
            assert (other_BD - expected_BD).abs().max() >= least, "each adapter must matter here"
        other_BD = wide_mlp_reference(x_BK, weights, factors, not gelu)
        assert (other_BD - expected_BD).abs().max() > 0.05, "the two gates must differ here"


def parts_of_k():
    """x A' of both, side by side, in as many parts as K gives, none of them empty."""
    for rows, K, parts in ((37, 328, 6), (33, 1200, 10)):
        _, factors = layers(K, 40, 16, (16, 0))
        low = small_products(factors[:2], rows)
        assert low.parts == parts and low.total == 32
        low_SBR = torch.full((parts, rows, 32), math.nan)
        x_BK = numbers(rows, K)
        low(x_BK, low_SBR)
        a_RK = torch.cat([factor.a_RK for factor in factors[:2]])
        expected_BR = x_BK.float() @ a_RK.float().T
        torch.testing.assert_close(low_SBR.sum(0), expected_BR, atol=1e-4, rtol=1e-4)
        assert low_SBR.abs().amax((1, 2)).min() > 0.1, "an empty part is read for nothing"


def prompts():
    """Higher tiles of many rows, small products in 16 bit and in one part, as prompts have them."""
    for rows, N, rank, gelu in ((300, 300, 16, False), (260, 200, 128, True), (257, 40, 0, False)):
        tiles = gate_tiles(rows, N, rank)
        assert tiles.block_b == 64 and tiles.steps == (4 if rank == 128 else 2)
        gate_BN, up_BN = numbers(rows, N, scale=2.0), numbers(rows, N, seed=1)
        given = {}
        if rank:
            given = {
                "low_SBR": numbers(1, rows, 2 * rank, scale=0.3),
                "b_gate_NR": numbers(N, rank, seed=1),
                "b_up_NR": numbers(N, rank, seed=2),
            }
        expected_BN = adapted_gate_reference(gate_BN, up_BN, gelu=gelu, **given)
        adapted_gate_(gate_BN, up_BN, gelu=gelu, **given)
        # A last bit of gate moves a last bit of the product, times up.
        torch.testing.assert_close(gate_BN, expected_BN, atol=1e-2, rtol=4e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts_of_k()
    whole_layers()
    prompts()
