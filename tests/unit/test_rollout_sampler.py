"""The sampler: settings, suppressed tokens, seen tokens, and independence of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveal.kernels import row_seed
from foveal.rollout.sampler import Sampler, mark_seen, seen_rows
from foveal.types import SamplingParams

WORDS = 40


def sampler(never_ids=(), words=WORDS, **settings: Any):
    return Sampler(SamplingParams(max_tokens=8, **settings), never_ids, words, "cpu")


def toy_logits(row, step):
    """Logits that depend on the completion and on nothing else."""
    generator = torch.Generator().manual_seed(row_seed(9, row, step) % 2**63)
    return torch.randn(WORDS, generator=generator)


def sample(draw, rows, start=0, steps=12):
    """Completions by row number, each started ``start`` batch steps after the one before it."""
    ids = {row: [] for row in rows}
    logprobs = {row: [] for row in rows}
    starts = {row: start * place for place, row in enumerate(rows)}
    for now in range(steps + max(starts.values())):
        live = [row for row in rows if 0 <= now - starts[row] < steps]
        firsts = [now - starts[row] for row in live]
        uniform_SB = draw.uniforms([row_seed(5, row, 0) for row in live], firsts, 3)
        token_B, logprob_B = draw(
            torch.stack([toy_logits(row, len(ids[row])) for row in live]),
            uniform_SB[0],
            seen_rows([ids[row] for row in live], WORDS, "cpu"),
        )
        for row, token, logprob in zip(live, token_B.tolist(), logprob_B.tolist(), strict=True):
            ids[row].append(token)
            logprobs[row].append(logprob)
    return ids, logprobs


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 9, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3}]
)
def test_a_completion_is_the_same_alone_reordered_and_beside_others_at_other_steps(settings):
    draw = sampler(temperature=0.9, **settings)
    together, together_logprobs = sample(draw, [0, 1, 2, 3])
    staggered, staggered_logprobs = sample(draw, [3, 1, 0, 2], start=2)
    alone, _ = sample(draw, [2])
    assert together == staggered
    assert together_logprobs == staggered_logprobs
    assert alone[2] == together[2]
    assert len({tuple(row) for row in together.values()}) == 4


def test_placeholders_and_the_settings_own_tokens_are_never_drawn():
    draw = sampler(never_ids=(3, 4), suppress_token_ids=(4, 39), temperature=2.0)
    logits_BV = torch.zeros(4000, WORDS)
    logits_BV[:, [3, 4, 39]] = 30.0
    token_B, _ = draw(logits_BV, draw.uniforms(range(4000), [0] * 4000, 1)[0])
    assert set(token_B.tolist()) == set(range(WORDS)) - {3, 4, 39}


def test_greedy_looks_at_no_seed_and_repeats_itself():
    logits_BV = torch.randn(5, WORDS, generator=torch.Generator().manual_seed(0))
    draw = sampler(temperature=0.0)
    results = [
        draw(logits_BV, draw.uniforms([seed] * 5, [seed] * 5, 1)[0])[0].tolist() for seed in (0, 1)
    ]
    assert results == [logits_BV.argmax(-1).tolist()] * 2


def test_each_setting_reaches_the_draw():
    """A setting that is dropped on the way leaves more than one word, or the likeliest one."""
    logits_BV = torch.linspace(1.0, 4.0, WORDS).expand(500, -1)
    uniform_B = sampler().uniforms([0] * 500, range(500), 1)[0]
    each: list[dict[str, Any]] = [
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 0.999},
        {"temperature": 1e-3},
    ]
    for settings in each:
        token_B, _ = sampler(**settings)(logits_BV, uniform_B)
        assert set(token_B.tolist()) == {WORDS - 1}, settings
    seen_BV = seen_rows([[WORDS - 1]] * 500, WORDS, "cpu")
    draw = sampler(repetition_penalty=1e6, top_k=1)
    assert draw.needs_seen and not sampler().needs_seen
    token_B, _ = draw(logits_BV, uniform_B, seen_BV)
    assert set(token_B.tolist()) == {WORDS - 2}


def test_seen_tokens_grow_in_place_row_by_row():
    seen_BV = seen_rows([[1, 1, 5], [], [0, WORDS, WORDS + 7]], WORDS, "cpu")
    address = seen_BV.data_ptr()
    mark_seen(seen_BV, torch.tensor([2, 39, 0]))
    assert [row.nonzero()[:, 0].tolist() for row in seen_BV] == [[1, 2, 5], [39], [0]]
    assert seen_BV.data_ptr() == address


def test_results_go_where_the_caller_wants_them():
    token_B, logprob_B = torch.full((2,), -1), torch.zeros(2)
    arguments = (torch.randn(2, WORDS), torch.tensor([0.2, 0.9]))
    sampler()(*arguments, out_token_B=token_B, out_logprob_B=logprob_B)
    expected_B, expected_logprob_B = sampler()(*arguments)
    assert token_B.tolist() == expected_B.tolist()
    assert logprob_B.tolist() == expected_logprob_B.tolist()


def test_mistakes_are_named_before_the_first_draw():
    with pytest.raises(ValueError, match=r"ids \[-1, 40\] lie outside the vocabulary of 40"):
        sampler(never_ids=(40,), suppress_token_ids=(-1, 7))
    with pytest.raises(ValueError, match="all 3 tokens are suppressed"):
        sampler(never_ids=(0, 1, 2), words=3)
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="logits have 41 words, the sampler was built for 40"):
        sampler()(torch.zeros(1, 41), one)
    with pytest.raises(ValueError, match="needs seen_BV"):
        sampler(repetition_penalty=1.1)(torch.zeros(1, WORDS), one)


def test_numbers_computed_ahead_are_those_of_the_token_and_not_of_the_call():
    draw = sampler()
    whole = torch.cat([draw.uniforms([7, 8], [at, at + 5], 10) for at in range(0, 200, 10)])
    other = sampler()
    other.uniforms([8], [0], 1)
    pieces = [other.uniforms([8], [at + 5], 1)[:, 0] for at in range(200)]
    assert torch.equal(whole[:, 1], torch.cat(pieces))
    assert len(set(whole[:, 0].tolist())) > 190
