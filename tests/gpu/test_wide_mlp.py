"""Gate, up and down of many rows on a GPU, replayed from a graph, at a real model's sizes."""

from __future__ import annotations

import pytest
import torch

from foveal.kernels.wide_mlp import (
    WideMLP,
    adapted_gate_,
    adapted_gate_reference,
    wide_mlp_reference,
)
from tests.unit.triton_wide_cases import layers, numbers, room_for

pytestmark = pytest.mark.gpu

HIDDEN, INNER = 3584, 18944
half_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def unrounded(x_BK, weights, factors, gelu):
    """What the layers compute if nothing is rounded."""

    def product(x, i):
        y = x @ weights[i].double().T
        factor = factors[i]
        return y if factor is None else y + x @ factor.a_RK.double().T @ factor.b_NR.double().T

    gate = product(x_BK.double(), 0)
    act = torch.nn.functional.gelu(gate, approximate="tanh") if gelu else gate * gate.sigmoid()
    return product(act * product(x_BK.double(), 1), 2)


@half_types
@pytest.mark.parametrize(
    ("rows", "ranks", "gelu"),
    [(64, (16, 16), False), (128, (16, 16), True), (40, (32, 32), False), (128, (0, 0), False),
     (96, (128, 128), False)],
)  # fmt: skip
def test_a_replayed_graph_is_as_near_the_truth_as_the_reference(
    rows, ranks, gelu, dtype, without_tf32
):
    device = {"device": "cuda", "dtype": dtype}
    weights, factors = layers(HIDDEN, INNER, HIDDEN, ranks, **device)
    mlp = WideMLP(weights, factors, rows, gelu=gelu)
    x_BK, room = numbers(rows, HIDDEN, **device), room_for(mlp, **device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        mlp(x_BK, room)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_1BD = mlp(x_BK, room)
    # Other numbers than those of the capture, and twice: nothing is left over from before.
    for seed in (1, 2):
        x_BK.copy_(numbers(rows, HIDDEN, seed=seed, **device))
        graph.replay()
        truth = unrounded(x_BK, weights, factors, gelu)
        reference = wide_mlp_reference(x_BK, weights, factors, gelu).to(dtype)
        far, reference_far = ((y.double() - truth).norm() for y in (out_1BD[0], reference))
        # One rounding more, of products before their adapters are added: 1.2 on a CPU.
        assert far < 1.5 * reference_far, (far / truth.norm(), reference_far / truth.norm())
    if ranks[0]:
        bare = unrounded(x_BK, weights, [None] * 3, gelu)
        assert (bare - truth).norm() > 0.1 * truth.norm(), "the adapters must matter here"


@half_types
@pytest.mark.parametrize("rank", [0, 16, 64])
def test_the_gate_of_prompts_equals_its_reference(rank, dtype, without_tf32):
    N, device = 3001, {"device": "cuda", "dtype": dtype}
    gate_BN, up_BN = numbers(N, INNER, **device), numbers(N, INNER, seed=1, **device)
    given = {}
    if rank:
        given = {
            "low_SBR": numbers(1, N, 2 * rank, scale=rank**-0.5, **device),
            "b_gate_NR": numbers(INNER, rank, seed=2, **device),
            "b_up_NR": numbers(INNER, rank, seed=3, **device),
        }
    expected_BN = adapted_gate_reference(gate_BN, up_BN, gelu=False, **given)
    adapted_gate_(gate_BN, up_BN, gelu=False, **given)
    # Sums in another order: a last bit of gate and of up.
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(gate_BN, expected_BN, atol=8 * rounding, rtol=4 * rounding)
