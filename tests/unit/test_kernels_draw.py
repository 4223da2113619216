"""Drawing tokens: against transformers' own processors, exact frequencies and known answers."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foveal.kernels import draw, draw_reference, head_logprob, philox_uniform, row_seed
from foveal.kernels.draw import processed_logits
from foveal.kernels.philox import _splitmix64, philox_words
from tests.aot import CAPABILITIES, SHARED_BYTES, compile_for
from tests.interpret import run_interpreted

HIGHEST = 1 - 2.0**-24


def mask(words, ids):
    suppress_V = torch.zeros(words, dtype=torch.bool)
    suppress_V[list(ids)] = True
    return suppress_V


# ------------------------------------------------------------------------------ random numbers


@pytest.mark.parametrize(
    ("filled_with", "expected"),
    [
        (0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
    ids=["zeros", "ones"],
)
def test_philox_gives_the_published_answers(filled_with, expected):
    word = torch.tensor([filled_with])
    assert tuple(int(w) for w in philox_words((word, word, word, word), (word, word))) == expected


def test_all_bits_of_seed_and_step_count_and_the_highest_number_is_below_one():
    assert philox_uniform(torch.tensor([0]), torch.tensor([0])).item() == 0x6627E8 * 2.0**-24
    pairs = itertools.product((0, 1, 1 << 31, 1 << 32, 1 << 40, -(2**63)), repeat=2)
    seed_B, step_B = torch.tensor(list(pairs)).T
    assert len(set(philox_uniform(seed_B, step_B).tolist())) == 36
    many_B = philox_uniform(torch.full((1 << 16,), -7), torch.arange(1 << 16))
    assert 0 <= many_B.min() < 1e-4 and 1 - 1e-4 < many_B.max() < 1


def test_philox_refuses_seeds_that_would_be_cut():
    with pytest.raises(ValueError, match=r"step_B is torch.int32 \[2\]"):
        philox_uniform(torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32))


def test_no_two_completions_share_a_seed():
    """A sum or an xor of the three numbers would give (0, 1) and (1, 0) the same seed."""
    assert _splitmix64(0) == 0xE220A8397B1DCDAF
    numbers = (-1, 0, 1, 2, 3, 1 << 62)
    seeds = {row_seed(*parts) for parts in itertools.product(numbers, repeat=3)}
    assert len(seeds) == len(numbers) ** 3
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert min(seeds) < 0 < max(seeds)


# ------------------------------------------------------------------- the distribution drawn from


def random_settings(rng, words):
    """About half of the settings on, values at their ends included."""
    return {
        "temperature": rng.choice([0.3, 1.0, 1.7]),
        "top_k": rng.choice([0, 0, 1, 3, words, words + 5]),
        "top_p": rng.choice([1.0, 1.0, 1e-9, 0.3, 0.5, 0.9, 0.999]),
        "min_p": rng.choice([0.0, 0.0, 0.05, 0.5, 0.99]),
        "repetition_penalty": rng.choice([1.0, 1.3, 0.7]),
        "suppress": rng.sample(range(words), rng.choice([0, 1, words // 2])),
    }


def stock_processed(ids_BL, logits_BV, settings):
    """The list that ``generate`` builds for these settings, after the processors of a call."""
    processors = LogitsProcessorList()
    if settings["suppress"]:
        processors.append(SuppressTokensLogitsProcessor(settings["suppress"]))
    if settings["repetition_penalty"] != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    processors.append(TemperatureLogitsWarper(settings["temperature"]))
    if settings["top_k"]:
        processors.append(TopKLogitsWarper(settings["top_k"]))
    if settings["top_p"] < 1.0:
        processors.append(TopPLogitsWarper(settings["top_p"]))
    if settings["min_p"]:
        processors.append(MinPLogitsWarper(settings["min_p"]))
    return processors(ids_BL, logits_BV)


def test_the_distribution_is_that_of_transformers_with_ties_and_all_settings_combined():
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    cut = 0
    for trial in range(400):
        words = rng.choice([2, 5, 40])
        logits_BV = torch.randn(3, words, generator=generator) * 3
        if trial % 2:
            logits_BV = logits_BV.round()
        ids_BL = torch.randint(0, words, (3, 4), generator=generator)
        settings = random_settings(rng, words)
        expected_BV = stock_processed(ids_BL, logits_BV.clone(), settings)
        suppressed = settings.pop("suppress")
        actual_BV = processed_logits(
            logits_BV,
            seen_BV=torch.zeros(3, words, dtype=torch.bool).scatter(1, ids_BL, True),
            suppress_V=mask(words, suppressed) if suppressed else None,
            **settings,
        )
        assert torch.equal(actual_BV.isinf(), expected_BV.isinf()), settings
        torch.testing.assert_close(actual_BV.softmax(-1), expected_BV.softmax(-1))
        cut += int(actual_BV.isinf().sum())
    assert cut > 1000


DRAWS = 20_000
SPREAD = torch.linspace(-2.0, 2.0, 24)[
    torch.randperm(24, generator=torch.Generator().manual_seed(1))
]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.5, "min_p": 0.2},
        {"temperature": 1.0, "repetition_penalty": 1.8},
        {"temperature": 1.0, "suppress": [0, 3, 23]},
    ],
    ids=lambda settings: next(reversed(settings)),
)
def test_frequencies_over_the_steps_of_one_row_are_the_exact_distribution(settings):
    settings = dict(settings)
    suppressed = settings.pop("suppress", [])
    seen_V = mask(24, range(0, 24, 2))
    kept = stock_processed(
        torch.arange(0, 24, 2)[None],
        SPREAD[None].clone(),
        {"suppress": suppressed, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        | settings,
    )[0]
    uniform_B = philox_uniform(torch.full((DRAWS,), row_seed(3, 1, 4)), torch.arange(DRAWS))
    token_B, _ = draw(
        SPREAD.expand(DRAWS, -1),
        uniform_B,
        seen_BV=seen_V.expand(DRAWS, -1),
        suppress_V=mask(24, suppressed),
        **settings,
    )
    count_V = torch.bincount(token_B, minlength=24)
    probability_V = kept.double().softmax(-1)
    alive_V = probability_V > 0
    assert count_V[~alive_V].sum() == 0
    expected = probability_V[alive_V] * DRAWS
    assert chisquare(count_V[alive_V].numpy(), expected.numpy()).pvalue > 1e-4


# ------------------------------------------------------------------------------------- the draw


def test_a_word_is_drawn_from_its_lower_edge_to_just_below_its_upper():
    edges = torch.tensor([0.0, 0.25 - 2**-24, 0.25, 0.5, 0.75 - 2**-24, 0.75, HIGHEST])
    token_B, logprob_B = draw(torch.zeros(7, 4), edges, temperature=1.0)
    assert token_B.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert token_B.dtype == torch.int64 and logprob_B.dtype == torch.float32
    assert logprob_B.exp().tolist() == pytest.approx([0.25] * 7)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("words", [7, 50_001])
def test_a_suppressed_word_is_never_drawn_at_the_ends_of_u_or_with_the_largest_logit(
    words, temperature
):
    """Also when it stands first (u = 0) and last (u near 1), and by -inf as by the mask."""
    never = [0, 1, words // 2, words - 2, words - 1]
    logits_BV = torch.randn(3, words, generator=torch.Generator().manual_seed(2))
    logits_BV[:, never] = 500.0
    uniform_B = torch.tensor([0.0, 0.5, HIGHEST])
    token_B, logprob_B = draw(
        logits_BV, uniform_B, temperature=temperature, suppress_V=mask(words, never)
    )
    assert not set(token_B.tolist()) & set(never)
    # The policy itself, unsuppressed, would hardly ever have said this word.
    assert (logprob_B < -400).all()
    logits_BV[:, never] = -torch.inf
    assert draw(logits_BV, uniform_B, temperature=temperature)[0].tolist() == token_B.tolist()


def test_small_weights_at_the_end_of_a_long_vocabulary_are_told_apart():
    """A running sum in float32 has the same value at sixteen of these words on end."""
    large, small = 150_000, 150_000
    logits_V = torch.cat([torch.zeros(large), torch.full((small,), -6.9)])
    uniform_B = torch.linspace(large / (large + 151.0), HIGHEST, 40)
    token_B, _ = draw(logits_V.expand(40, -1), uniform_B, temperature=1.0)
    weight = logits_V[-1].exp().item()
    expected_B = (uniform_B.double() * (large + small * weight) - large) / weight
    assert torch.equal(token_B, large + expected_B.floor().long())


def test_rows_without_a_meaning_stay_in_the_vocabulary():
    """Past its end the next embedding lookup would bring the device down."""
    for value in (float("nan"), -torch.inf, torch.inf):
        for temperature in (0.0, 1.0):
            logits_BV = torch.full((2, 9), value)
            token_B, _ = draw(logits_BV, torch.tensor([0.0, HIGHEST]), temperature=temperature)
            assert ((token_B >= 0) & (token_B < 9)).all()


def test_greedy_takes_the_first_of_equals_after_suppression_and_penalty():
    logits_BV = torch.tensor([[5.0, 4.0, 4.0, -1.0], [5.0, 4.0, 4.0, 4.5]])
    seen_BV = torch.tensor([[False, False, False, False], [False, False, False, True]])
    token_B, logprob_B = draw(
        logits_BV,
        None,
        temperature=0.0,
        repetition_penalty=2.0,
        seen_BV=seen_BV,
        suppress_V=mask(4, [0]),
        # generate does not truncate either when it does not sample.
        top_k=1,
    )
    assert token_B.tolist() == [1, 1]
    assert logprob_B.tolist() == pytest.approx(logits_BV.log_softmax(-1)[:, 1].tolist())


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_the_logprob_is_the_trainers_whatever_suppression_penalty_and_truncation_do(temperature):
    logits_BV = torch.randn(5, 30, generator=torch.Generator().manual_seed(3)).bfloat16()
    token_B, logprob_B = draw(
        logits_BV,
        torch.linspace(0.1, 0.9, 5),
        temperature=temperature,
        top_k=9,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.5,
        seen_BV=torch.ones(5, 30, dtype=torch.bool),
        suppress_V=mask(30, [1, 2]),
    )
    expected_B, _ = head_logprob(
        logits_BV.float(), torch.eye(30), token_B, temperature=temperature or 1.0
    )
    torch.testing.assert_close(logprob_B, expected_B, atol=1e-6, rtol=1e-6)


def test_results_are_written_into_columns_of_a_table():
    token_BT, logprob_BT = torch.full((4, 3), -1), torch.zeros(4, 3)
    arguments = (torch.randn(4, 9), torch.rand(4))
    out: dict[str, Any] = {"out_token_B": token_BT[:, 2], "out_logprob_B": logprob_BT[:, 2]}
    draw(*arguments, temperature=1.0, **out)
    token_B, logprob_B = draw_reference(*arguments, temperature=1.0)
    assert token_BT.tolist() == [[-1, -1, t] for t in token_B.tolist()]
    assert logprob_BT[:, 2].tolist() == logprob_B.tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 3, "top_p": 0.9, "min_p": 0.1}])
def test_nothing_waits_for_the_device(truncation: dict[str, Any], temperature: float):
    """Meta tensors have no values: reading one, or indexing by a mask, raises."""
    with torch.device("meta"):
        token_B, _ = draw(
            torch.zeros(4, 9),
            philox_uniform(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)),
            temperature=temperature,
            repetition_penalty=1.2,
            seen_BV=torch.zeros(4, 9, dtype=torch.bool),
            suppress_V=torch.zeros(9, dtype=torch.bool),
            **truncation,
        )
    assert token_B.shape == (4,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"uniform_B": None}, "uniform_B is None at temperature 1.0"),
        ({"uniform_B": torch.zeros(3)}, r"uniform_B has shape \[3\]"),
        ({"repetition_penalty": 1.1}, "needs seen_BV"),
        ({"seen_BV": torch.zeros(2, 6, dtype=torch.bool)}, r"seen_BV has shape \[2, 6\]"),
        ({"suppress_V": torch.zeros(2, 5, dtype=torch.bool)}, r"suppress_V has shape \[2, 5\]"),
        ({"logits_BV": torch.zeros(2, 5, dtype=torch.int64)}, "must be floats"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"logits_BV": torch.zeros(2, 5), "uniform_B": torch.zeros(2), "temperature": 1.0}
    with pytest.raises(ValueError, match=message):
        draw(**(arguments | change))


# ----------------------------------------------------------------------------- Triton kernels


def test_triton_kernels_equal_the_reference():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_draw_cases")


@pytest.mark.parametrize("greedy", [False, True], ids=["sampling", "greedy"])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_and_fit_on_every_card(capability, greedy):
    pytest.importorskip("triton")
    from foveal.kernels import draw_triton

    # Sampling with suppression from 16-bit logits, greedy without it from float32.
    half = "*fp16" if capability == 75 else "*bf16"
    types = {
        "logits_ptr": "*fp32" if greedy else half,
        "suppress_ptr": None if greedy else "*i1",
        "uniform_ptr": None if greedy else "*fp32",
        "best_ptr": "*i32" if greedy else None,
        "stats_ptr": "*fp32",
        "token_ptr": "*i64",
        "logprob_ptr": "*fp32",
        "temperature": "fp32",
        **dict.fromkeys(("row_stride", "token_stride", "logprob_stride"), "i32"),
        **dict.fromkeys(("words", "blocks"), "i32"),
    }
    fixed = {"GREEDY": greedy, "BLOCK": draw_triton.BLOCK_WORDS, "BLOCKS": 128}
    for kernel in (draw_triton.block_stats_kernel, draw_triton.pick_kernel):
        named = {name: types[name] for name in kernel.arg_names if name in types}
        absent = {name: None for name, kind in named.items() if kind is None}
        signature = {name: kind for name, kind in named.items() if kind is not None}
        constants = {name: fixed[name] for name in kernel.arg_names if name in fixed}
        compiled = compile_for(
            kernel, signature, absent | constants, capability, **draw_triton.LAUNCH
        )
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        assert compiled.metadata.shared <= SHARED_BYTES[capability]
    compile_for(
        draw_triton.philox_uniform_kernel,
        {"seed_ptr": "*i64", "step_ptr": "*i64", "out_ptr": "*fp32", "rows": "i32"},
        {"BLOCK": 256},
        capability,
    )
