"""The draw's Triton kernels against the reference, in Triton's interpreter.

Run by test_kernels_draw.py in a Python of its own; see tests/interpret.py.
"""

from __future__ import annotations

import math

import torch

from foveal.kernels.draw import draw_reference, processed_logits
from foveal.kernels.draw_triton import BLOCK_WORDS, draw_triton, philox_uniform_triton
from foveal.kernels.philox import philox_uniform_reference

HIGHEST = 1 - 2.0**-24


def logits(rows, words, dtype, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, words, generator=generator) * scale).to(dtype)


def uniforms(rows, seed):
    """The two ends and numbers between."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.tensor([0.0, HIGHEST]), torch.rand(rows - 2, generator=generator)])


def assert_equal_to_reference(logits_BV, uniform_B, temperature, suppress_V):
    settings = {"temperature": temperature, "suppress_V": suppress_V}
    token_B, logprob_B = draw_triton(logits_BV, uniform_B, **settings)
    expected_B, _ = draw_reference(logits_BV, uniform_B, **settings)
    all_logprob_BV = torch.log_softmax(logits_BV.float() / (temperature or 1.0), -1)
    torch.testing.assert_close(
        logprob_B, all_logprob_BV.gather(1, token_B[:, None])[:, 0], atol=1e-5, rtol=1e-5
    )
    if temperature == 0:
        assert token_B.tolist() == expected_B.tolist()
        return
    probability_BV = processed_logits(logits_BV, **settings).double().softmax(-1)
    running_BV = probability_BV.cumsum(-1)
    drawn_B1 = token_B[:, None]
    assert (probability_BV.gather(1, drawn_B1) > 0).all(), token_B
    # u lies inside the drawn word's interval, or within 1e-6 of its edges: never a wrong word.
    upper_B = running_BV.gather(1, drawn_B1)[:, 0]
    lower_B = upper_B - probability_BV.gather(1, drawn_B1)[:, 0]
    assert (uniform_B < upper_B + 1e-6).all() and (uniform_B > lower_B - 1e-6).all()
    edge_B = (running_BV - uniform_B.double()[:, None]).abs().amin(-1) < 1e-6
    same_B = token_B == expected_B
    assert (same_B | edge_B).all(), (token_B, expected_B)


def random_cases():
    seed = 0
    types = ((torch.float32, 0.0), (torch.float32, 1.0), (torch.bfloat16, 0.7))
    # One word, less than a block, whole blocks, and a last block of one word and of all but one.
    for words in (1, 37, BLOCK_WORDS, 2 * BLOCK_WORDS + 1, 3 * BLOCK_WORDS - 1):
        for dtype, temperature in types:
            for suppressed in (False, words > 1):
                seed += 1
                logits_BV = logits(5, words, dtype, seed)
                suppress_V = None
                if suppressed:
                    logits_BV[2:4, ::3] = -torch.inf
                    suppress_V = torch.arange(words) % 5 == 0
                    suppress_V[-1] = True
                assert_equal_to_reference(logits_BV, uniforms(5, seed), temperature, suppress_V)


def whole_blocks_without_a_word():
    """Blocks that are suppressed or -inf throughout, at the start, between and at the end."""
    words = 5 * BLOCK_WORDS
    suppress_V = torch.ones(words, dtype=torch.bool)
    suppress_V[BLOCK_WORDS + 7] = suppress_V[3 * BLOCK_WORDS + 9] = False
    for temperature in (0.0, 1.0):
        for masked in (False, True):
            logits_BV = logits(4, words, torch.float32, 1)
            if masked:
                logits_BV = logits_BV.masked_fill(suppress_V, -torch.inf)
            assert_equal_to_reference(
                logits_BV, uniforms(4, 1), temperature, None if masked else suppress_V
            )


def suppressed_word_of_a_huge_logit():
    """Its weight pushes all others to zero unless allowed words have a maximum of their own."""
    logits_BV = logits(3, 2 * BLOCK_WORDS, torch.float32, 2)
    logits_BV[:, 11] = 1000.0
    suppress_V = torch.zeros(2 * BLOCK_WORDS, dtype=torch.bool)
    suppress_V[11] = True
    for temperature in (0.0, 1.0):
        assert_equal_to_reference(logits_BV, uniforms(3, 2), temperature, suppress_V)


def ties_go_to_the_first_word():
    logits_BV = torch.zeros(2, 3 * BLOCK_WORDS)
    logits_BV[:, [BLOCK_WORDS + 5, BLOCK_WORDS + 9, 2 * BLOCK_WORDS]] = 4.0
    assert draw_triton(logits_BV, None, temperature=0.0)[0].tolist() == [BLOCK_WORDS + 5] * 2
    suppress_V = torch.zeros(3 * BLOCK_WORDS, dtype=torch.bool)
    suppress_V[BLOCK_WORDS + 5] = True
    token_B, _ = draw_triton(logits_BV, None, temperature=0.0, suppress_V=suppress_V)
    assert token_B.tolist() == [BLOCK_WORDS + 9] * 2


def edges_belong_to_the_word_above():
    """Between words, and between blocks; all sums here are exact."""
    logits_BV = torch.zeros(5, 4 * BLOCK_WORDS)
    uniform_B = torch.tensor([0.0, 0.25, 0.25 - 2**-24, 0.5 + 3 / (4 * BLOCK_WORDS), HIGHEST])
    token_B, _ = draw_triton(logits_BV, uniform_B, temperature=1.0)
    quarter, end = BLOCK_WORDS, 4 * BLOCK_WORDS
    assert token_B.tolist() == [0, quarter, quarter - 1, 2 * quarter + 3, end - 1]


def strided_rows_and_columns():
    """Rows apart in memory, words apart in memory, results into columns of a table."""
    wide_BV = logits(4, 2 * BLOCK_WORDS, torch.float32, 3)
    for view_BV in (wide_BV[:, 100:5000], wide_BV[:, ::2], wide_BV[::2], wide_BV[:1].expand(3, -1)):
        rows = len(view_BV)
        token_BT = torch.full((rows, 3), -1)
        logprob_BT = torch.full((rows, 3), math.nan)
        uniform_B = torch.linspace(0.1, 0.9, 2 * rows)[::2]
        draw_triton(
            view_BV,
            uniform_B,
            temperature=1.0,
            out_token_B=token_BT[:, 1],
            out_logprob_B=logprob_BT[:, 1],
        )
        expected_B, logprob_B = draw_reference(view_BV, uniform_B, temperature=1.0)
        assert token_BT[:, 1].tolist() == expected_B.tolist()
        assert (token_BT[:, [0, 2]] == -1).all() and logprob_BT[:, [0, 2]].isnan().all()
        torch.testing.assert_close(logprob_BT[:, 1], logprob_B, atol=1e-5, rtol=1e-5)


def rows_without_a_meaning_stay_in_the_vocabulary():
    words = BLOCK_WORDS + 1
    for value in (math.nan, -math.inf, math.inf):
        for temperature in (0.0, 1.0):
            # numpy, under the interpreter, refuses the maximum of nothing but NaN.
            logits_BV = logits(2, words, torch.float32, 4)
            logits_BV[:, :: 2 if math.isnan(value) else 1] = value
            token_B, _ = draw_triton(
                logits_BV, torch.tensor([0.0, HIGHEST]), temperature=temperature
            )
            assert ((token_B >= 0) & (token_B < words)).all()


def philox_is_the_reference_bit_by_bit():
    generator = torch.Generator().manual_seed(4)
    ends = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 2**32, 2**32 - 1])
    random = torch.randint(-(2**63), 2**63 - 1, (300,), generator=generator)
    seed_B, step_B = torch.cat([ends, random]), torch.cat([ends.flip(0), random.flip(0)])
    assert torch.equal(
        philox_uniform_triton(seed_B, step_B), philox_uniform_reference(seed_B, step_B)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    random_cases()
    whole_blocks_without_a_word()
    suppressed_word_of_a_huge_logit()
    ties_go_to_the_first_word()
    edges_belong_to_the_word_above()
    strided_rows_and_columns()
    rows_without_a_meaning_stay_in_the_vocabulary()
    philox_is_the_reference_bit_by_bit()
