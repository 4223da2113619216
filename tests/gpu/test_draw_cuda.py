"""The draw on a GPU: equal to the reference, recorded in a graph, without a wait."""

from __future__ import annotations

import pytest
import torch

from foveal.kernels import draw, draw_reference, philox_uniform
from foveal.kernels.philox import philox_uniform_reference

pytestmark = pytest.mark.gpu

ROWS, WORDS = 64, 151_936
TRUNCATED = {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}


def inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    logits_BV = (torch.randn(ROWS, WORDS, generator=generator) * 3).to(dtype)
    seed_B = torch.randint(-(2**63), 2**63 - 1, (ROWS,), generator=generator)
    suppress_V = torch.arange(WORDS) % 7 == 0
    seen_BV = torch.rand(ROWS, WORDS, generator=generator) < 0.01
    return [value.cuda() for value in (logits_BV, seed_B, torch.arange(ROWS), suppress_V, seen_BV)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_kernels_equal_the_reference(dtype, temperature):
    logits_BV, seed_B, step_B, suppress_V, _ = inputs(dtype)
    uniform_B = philox_uniform(seed_B, step_B)
    assert torch.equal(uniform_B.cpu(), philox_uniform_reference(seed_B.cpu(), step_B.cpu()))
    settings = {"temperature": temperature, "suppress_V": suppress_V}
    token_B, logprob_B = draw(logits_BV, uniform_B, **settings)
    expected_B, _ = draw_reference(logits_BV, uniform_B, **settings)
    all_BV = torch.log_softmax(logits_BV.float() / (temperature or 1.0), -1)
    torch.testing.assert_close(
        logprob_B, all_BV.gather(1, token_B[:, None])[:, 0], atol=1e-5, rtol=1e-5
    )
    if temperature == 0:
        assert torch.equal(token_B, expected_B)
        return
    probability_BV = logits_BV.double().div(temperature).masked_fill(suppress_V, -torch.inf)
    running_BV = probability_BV.softmax(-1).cumsum(-1)
    # Where the edge of a word lies within rounding of u, either neighbour is right.
    edge_B = (running_BV - uniform_B.double()[:, None]).abs().amin(-1) < 1e-6
    assert ((token_B == expected_B) | edge_B).all()
    assert not suppress_V[token_B].any()


def test_greedy_ties_go_to_the_first_word():
    """Sixteen-bit logits tie often; the interpreter cannot show which one the card takes."""
    logits_BV = torch.zeros(4, WORDS, device="cuda", dtype=torch.bfloat16)
    for row in range(4):
        logits_BV[row, 5000 + 100 * row :: 3] = 2.0
    token_B, _ = draw(logits_BV, None, temperature=0.0)
    assert token_B.tolist() == [5000, 5100, 5200, 5300]


@pytest.mark.parametrize("settings", [{}, TRUNCATED], ids=["plain", "truncated"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_step_runs_without_a_wait_and_in_a_graph(settings, temperature):
    logits_BV, seed_B, step_B, suppress_V, seen_BV = inputs(torch.bfloat16)
    settings = {**settings, "suppress_V": suppress_V, "temperature": temperature}
    if "repetition_penalty" in settings:
        settings["seen_BV"] = seen_BV
    token_B = torch.zeros(ROWS, dtype=torch.int64, device="cuda")

    def step():
        draw(logits_BV, philox_uniform(seed_B, step_B), out_token_B=token_B, **settings)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    step_B += 1
    graph.replay()
    replayed_B = token_B.clone()
    step()
    assert torch.equal(replayed_B, token_B)
