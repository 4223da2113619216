"""Layer inputs of a rollout: where they lie, what they take, and when they are refused. That their
gradients are right is in tests/parity/test_captured.py."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from foveal.memory.layer_bytes import captured_bytes
from foveal.memory.planner import GIB, PromptPass, predict
from foveal.models.decoder import Decoder
from foveal.models.layer_inputs import LayerInputs, Run
from foveal.rollout import budget
from foveal.rollout.capture import BLOCK_PLACES, Capture, Demand
from foveal.rollout.engine import Engine
from foveal.rollout.pages import PagePool
from foveal.rollout.scheduler import Request, Scheduler
from foveal.testing import tiny
from foveal.train.captured import LEAST_COSINE, Agreement
from foveal.train.planning import TrainingPlanner
from foveal.train.window_file import _fields
from foveal.types import Completion, SamplingParams
from tests.runs.tiny_run import adapted, trainer
from tests.samples import ragged_prompts
from tests.unit.test_memory_planner import QWEN_7B, ROWS
from tests.unit.test_train_planning import gpu

SAMPLED = SamplingParams(max_tokens=6, seed=3)


# -------------------------------------------------------------------------------- where they lie


@pytest.mark.parametrize("all_long", [False, True])
@pytest.mark.parametrize(("rows", "tokens", "at_once", "burst"), [
    (1, 1, 1, 16), (7, 2, 3, 16), (40, 220, 32, 16), (160, 300, 128, 16), (5, 90, 5, 4),
])  # fmt: skip
def test_every_token_has_its_own_place_and_no_rollout_takes_more_than_its_demand(
    rows, tokens, at_once, burst, all_long
):
    """Rows of any length, let in as others end, through the real scheduler."""
    decoder: Any = type("Decoder", (), {
        "layers": [None], "hidden": 1, "residual_dtype": torch.float32,
        "device": torch.device("cpu"),
    })  # fmt: skip
    capture = Capture(decoder, torch.zeros(at_once, dtype=torch.int32))
    demand = Demand.of([(rows, tokens)], burst, at_once)
    capture.begin(demand)
    scheduler = Scheduler(PagePool(4000), at_once, burst)
    request = Request(index=0, prompt_tokens=5, n=rows, max_tokens=tokens)
    scheduler.add(request)
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(1, tokens + 1, (rows,), generator=generator).tolist()
    if all_long:
        ends = [tokens] * rows
    places: set[tuple[int, int]] = set()
    for _ in range(10**6):
        if not scheduler.unfinished:
            break
        work = scheduler.schedule()

        def advance(row: Any, count: int) -> None:
            scheduler.advance(row, [(0, 0.0)] * count, lambda r: len(r.ids) == ends[r.sample])

        for row in work.start:
            advance(row, 1)
        decode = [row for row in work.decode if not row.finished]
        if not decode or not work.steps:
            continue
        capture.burst(decode, len(decode), work.steps)
        for row, first in zip(decode, capture.rows.first_B.tolist(), strict=False):
            assert first + row.cached >= 0
            assert first + row.cached + work.steps <= len(capture._block)  # pyright: ignore
        for row in decode:
            advance(row, work.steps)
    blocks = {}
    for row in request.sequences:
        inputs = capture.take(row, len(row.ids) - 1)
        assert inputs.tokens == len(row.ids) - 1 == ends[row.sample] - 1
        for run in inputs.runs:
            blocks[id(run.block_SLD)] = len(run.block_SLD)
            for place in range(run.first, run.first + run.tokens):
                key = (id(run.block_SLD), place)
                assert key not in places, "two tokens in one place"
                places.add(key)
    assert sum(blocks.values()) <= demand.places
    # Not much more is asked for than the longest completions need.
    assert demand.places <= 1.25 * rows * (tokens - 1) + rows * burst + BLOCK_PLACES / 8


def test_without_being_asked_nothing_is_kept_and_a_step_is_the_plain_one():
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    sampler = Engine(model, processor.tokenizer)
    before = sampler.generate(prompts, 2, SAMPLED)
    assert not any(keeping for _, keeping in sampler._runner.steps._steps)  # pyright: ignore
    with sampler.keeping_layer_inputs():
        kept = sampler.generate(prompts, 2, SAMPLED)
    assert sampler.generate(prompts, 2, SAMPLED) == kept == before
    assert all(c.layer_inputs is None for g in before for c in g.completions)
    steps = sampler._runner.steps  # pyright: ignore
    assert {keeping for _, keeping in steps._steps} == {False, True}
    assert steps.capture._block is None, "the engine holds on to what completions carry"
    tokens = [c.layer_inputs.tokens for g in kept for c in g.completions]
    assert tokens == [len(c.ids) - 1 for g in kept for c in g.completions]


def test_a_copy_of_a_completion_copies_no_gigabytes_and_a_file_holds_none():
    inputs = LayerInputs((Run(torch.zeros(3, 2, 4), 0, 3),))
    completion = Completion((1, 2, 3, 4), "", "stop", layer_inputs=inputs)
    assert copy.deepcopy(completion).layer_inputs is inputs
    assert Completion(**_fields(completion)) == completion
    assert _fields(completion)["layer_inputs"] is None


# ------------------------------------------------------------------------------ what they take


def test_a_rollout_whose_layer_inputs_do_not_fit_is_refused_with_numbers(monkeypatch):
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    sampler = Engine(model, processor.tokenizer)
    decoder = Decoder(model)
    token_bytes = len(decoder.layers) * decoder.hidden * 4
    places = Demand.of([(64, 2000)] * len(prompts), 4, 128).places
    long = replace(SAMPLED, max_tokens=2000)
    monkeypatch.setattr(budget, "CPU_BYTES", places * token_bytes - 1)
    wanted = f"{places * token_bytes / GIB:.2f} GiB, but .* lower max_completion_length"
    with sampler.keeping_layer_inputs(), pytest.raises(ValueError, match=wanted):
        sampler.generate(prompts, 64, long)
    # One byte more, and it is the cache that has no room beside them.
    monkeypatch.setattr(budget, "CPU_BYTES", places * token_bytes)
    with sampler.keeping_layer_inputs(), pytest.raises(ValueError, match="of layer inputs; lower"):
        sampler.generate(prompts, 64, long)


def test_a_larger_cache_gives_way_to_layer_inputs():
    model, processor = tiny("qwen2_5_vl")
    prompts = ragged_prompts(model, processor)
    sampler = Engine(model, processor.tokenizer)
    sampler.generate(prompts, 9, SAMPLED)
    large = sampler._scheduler.pool.size  # pyright: ignore
    with sampler.keeping_layer_inputs():
        sampler.generate(prompts, 2, SAMPLED)
    assert sampler._scheduler.pool.size < large  # pyright: ignore


def test_the_plan_lists_what_was_kept_and_keeps_nothing_of_completions_itself(
    monkeypatch, capsys, tmp_path
):
    layout = [PromptPass((1010,), (ROWS,))]
    assert captured_bytes(QWEN_7B, ROWS.fed) == 8 * 1023 * 28 * 3584 * 2
    full, captured = (predict(QWEN_7B, layout, policy) for policy in (True, "captured"))
    assert captured.terms["kept of completions"] == 0 < full.terms["kept of completions"]
    assert captured.peak_bytes < full.peak_bytes
    gpu(monkeypatch, [GIB] * 2)
    run = trainer(tmp_path, model=adapted(use_gradient_checkpointing="captured"), max_steps=2)
    run.train()
    assert "checkpointing captured" in (out := capsys.readouterr().out), out
    assert "GiB of the rollout's layer inputs" in out
    assert isinstance(run.planner, TrainingPlanner) and run.planner.asked == "captured"


# ---------------------------------------------------------------------------- when it is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_iterations": 2}, "2 optimizer steps.*set num_iterations=1"),
        ({"steps_per_generation": 2}, "2 optimizer steps.*steps_per_generation=1"),
        ({"training_pass": "plain"}, "training_pass=\"group\", not 'plain'"),
        ({"script": lambda prompt, n: [[1, 2]] * n}, "a ScriptedBackend; leave rollout_backend"),
    ],
)
def test_what_captured_inputs_cannot_train_is_refused_at_set_up(tmp_path, settings, message):
    made = adapted(use_gradient_checkpointing=None)
    with pytest.raises(ValueError, match=f"{message}.* or set gradient_checkpointing=True"):
        trainer(tmp_path, model=made, gradient_checkpointing="captured", **settings)


def test_a_cache_that_rounds_what_is_sampled_keeps_nothing():
    model, processor = tiny("qwen2_5_vl")
    sampler = Engine(model, processor.tokenizer, cache_dtype=torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"float8_e4m3fn.*cache_dtype None"):
        sampler.keeping_layer_inputs().__enter__()


def test_a_run_whose_gradients_point_apart_ends_before_a_step(tmp_path, monkeypatch):
    from foveal.train import captured

    found = Agreement({"layer 0": 1.0, "layer 1": LEAST_COSINE - 1e-4})
    monkeypatch.setattr(captured, "agreement", lambda model, rows, learn: found)
    run = trainer(tmp_path, model=adapted(use_gradient_checkpointing="captured"), max_steps=2)
    with pytest.raises(ValueError, match=r"layer 1 .*0\.998900.*below 0\.999.*=True"):
        run.train()
    assert run.state.global_step == 0


def test_a_window_without_a_gradient_is_not_the_one_that_is_compared(tmp_path, capsys):
    """Equal rewards in the first window: the comparison waits for the second."""
    calls = []

    def reward(completion_ids: Any, **_: Any) -> list[float]:
        calls.append(len(completion_ids))
        return [float(len(calls) > 1 and i % 2) for i in range(len(completion_ids))]

    run = trainer(
        tmp_path, model=adapted(use_gradient_checkpointing="captured"), max_steps=3,
        reward_funcs=reward,
    )  # fmt: skip
    run.train()
    assert capsys.readouterr().out.count("captured layer inputs: cosine") == 1
    assert run.captured.agreement is not None and run.captured.agreement.cosines
    window = run._window
    assert window is not None and all(c.layer_inputs is None for c in window.completions)
    assert all(row.completion.layer_inputs is None for row in window.rows)
    assert len(calls) == 3
