"""How a batch is arranged in whole groups, and what is refused before anything is loaded."""

from __future__ import annotations

import pytest

from foveal import GRPOConfig


def config(**given):
    return GRPOConfig(**{"output_dir": "unused", "use_cpu": True, "report_to": "none", **given})


def shape(**given):
    """(batch, accumulation, groups a micro-step, steps a generation, steps a pass, pass rows)."""
    made = config(**given)
    return (
        made.per_device_train_batch_size,
        made.gradient_accumulation_steps,
        made.prompts_per_micro_step,
        made.steps_per_generation,
        made.optimizer_steps_per_pass,
        made.pass_rows,
    )


@pytest.mark.parametrize(
    ("batch", "accumulation", "group", "expected"),
    [
        pytest.param(8, 1, 8, (8, 1, 1, 1, 1, 8), id="a group a step"),
        pytest.param(16, 2, 8, (16, 2, 2, 2, 1, 16), id="two groups a micro-step"),
        pytest.param(4, 4, 8, (8, 2, 1, 2, 1, 4), id="half a group a micro-step"),
        pytest.param(1, 8, 8, (8, 1, 1, 1, 1, 1), id="a row a micro-step"),
        pytest.param(3, 8, 8, (8, 3, 1, 3, 1, 3), id="no divisor of a group"),
        pytest.param(12, 2, 8, (8, 3, 1, 3, 1, 12), id="one and a half groups"),
    ],
)
def test_micro_steps_are_whole_groups_and_the_optimizer_step_keeps_its_rows(
    batch, accumulation, group, expected
):
    sizes = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_generations": group,
    }
    assert shape(**sizes) == expected
    assert expected[0] * expected[1] == batch * accumulation
    assert config(**sizes).generation_batch_size == batch * accumulation


@pytest.mark.parametrize(
    ("given", "rows", "slots", "steps"),
    [
        # 4 rows x 2 an optimizer step; 8 micro-steps of 4 rows are 32: four optimizer steps.
        ({"steps_per_generation": 8}, 32, 8, 4),
        ({"generation_batch_size": 16}, 16, 4, 2),
        ({}, 8, 2, 1),
    ],
)
def test_a_rollout_may_serve_several_optimizer_steps(given, rows, slots, steps):
    made = config(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4, **given
    )
    assert made.generation_batch_size == rows
    assert made.steps_per_generation == slots
    assert made.optimizer_steps_per_pass == steps
    assert made.steps_scored_ahead == range(1, steps)


def test_steps_per_generation_counts_the_micro_steps_that_were_asked_for():
    """Two rows a micro-step, eight of them a rollout: 16 rows, that is four groups of four."""
    made = config(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_generations=4,
        steps_per_generation=8,
    )
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (4, 1)
    assert (made.generation_batch_size, made.steps_per_generation) == (16, 4)


def test_what_training_has_anyway_is_not_computed_before():
    """The first optimizer step trains the weights that made the rollout."""
    assert not config(num_generations=8).steps_scored_ahead
    assert not config(num_generations=8, num_iterations=2).steps_scored_ahead
    # Which entropies count is known only when all are.
    ahead = config(num_generations=8, top_entropy_quantile=0.2).steps_scored_ahead
    assert ahead == range(1)


def test_a_batch_that_is_no_multiple_of_a_group_is_told_with_numbers_and_remedy():
    with pytest.raises(ValueError) as error:
        config(per_device_train_batch_size=4, gradient_accumulation_steps=3, num_generations=8)
    said = str(error.value)
    assert "4 (per_device_train_batch_size) x 3 (gradient_accumulation_steps) = 12" in said
    assert "num_generations=8" in said
    assert "set gradient_accumulation_steps=2 or per_device_train_batch_size=8" in said
    # The remedies work.
    config(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=8)
    config(per_device_train_batch_size=8, gradient_accumulation_steps=3, num_generations=8)


BATCH = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (BATCH | {"steps_per_generation": 3}, "12 completions a rollout, no multiple of the 8"),
        (BATCH | {"generation_batch_size": 20}, "generation_batch_size asks for 20 completions"),
        (BATCH | {"steps_per_generation": 0}, "steps_per_generation asks for 0 completions"),
        (
            BATCH | {"steps_per_generation": 2, "generation_batch_size": 8},
            "generation_batch_size or steps_per_generation, not both",
        ),
        ({"num_generations": 1}, "num_generations is 1; a group needs at least 2"),
        ({"num_generations_eval": 0}, "num_generations_eval is 0; give a positive number"),
        ({"num_iterations": 0}, "num_iterations is 0; it must be at least 1"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0; give a positive number, or None"),
        ({"max_completion_length": 0}, "max_completion_length is 0"),
        ({"rollout_rows": 0}, "rollout_rows is 0; give a positive number, or None"),
        ({"temperature": 0.0}, "temperature is 0: every completion of a group would be the same"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"min_p": 1.0}, "min_p is 1.0"),
        ({"loss_type": "gspo"}, "loss_type is 'gspo'; known ones are grpo, bnpo, dr_grpo"),
        ({"importance_sampling_level": "group"}, "'token' or 'sequence'"),
        ({"scale_rewards": "groups"}, "scale_rewards is 'groups'; it must be one of group, batch"),
        ({"reference": "adapter"}, "reference is 'adapter'; it must be one of auto, off, start"),
        ({"training_pass": "fast"}, "training_pass is 'fast'; it must be one of group, plain"),
        ({"curriculum": "on"}, "curriculum is 'on'; it must be one of off, pass_rate"),
        ({"curriculum_band": [0.3]}, "curriculum_band is [0.3]; give two pass rates"),
        ({"skip_solved_after": 0}, "skip_solved_after is 0; it must be at least 1"),
        ({"stream_buffer": 0}, "stream_buffer is 0; give a positive number"),
        ({"picture_cache_mib": -1}, "picture_cache_mib is -1; 0 keeps none"),
        (
            {"answer_coordinates": "pixels"},
            "answer_coordinates is 'pixels'; it must be one of None",
        ),
        ({"pass_tokens": 0}, "pass_tokens is 0; give a positive number, or None"),
        ({"multi_objective_aggregation": "sum"}, "multi_objective_aggregation is 'sum'"),
        ({"vllm_importance_sampling_mode": "mask"}, "vllm_importance_sampling_mode is 'mask'"),
        ({"gradient_checkpointing": "host"}, "gradient_checkpointing is 'host'"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"epsilon": float("nan")}, "epsilon_low is nan"),
        ({"loss_type": "cispo", "delta": 2.0}, "delta is 2.0"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name_and_value(given, message):
    with pytest.raises(ValueError) as error:
        config(**given)
    assert message in str(error.value)


def test_an_unknown_setting_is_no_setting():
    with pytest.raises(TypeError, match="num_generation"):
        config(num_generation=4)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ("unsloth", "offload"),
        ("offload", "offload"),
        ("selective",) * 2,
        ("auto",) * 2,
        (True, True),
        (False, False),
    ],
)
def test_checkpointing_has_one_name_for_each_policy(asked, kept):
    assert config(gradient_checkpointing=asked).gradient_checkpointing == kept


@pytest.mark.parametrize(("asked", "kept"), [(True, "group"), (False, "none"), ("batch", "batch")])
def test_older_spellings_of_reward_scaling_are_read(asked, kept):
    assert config(scale_rewards=asked).scale_rewards == kept


def test_the_upper_clip_is_the_lower_one_unless_given():
    assert config(epsilon=0.1).loss_spec().epsilon_high == 0.1
    both = config(epsilon=3e-4, epsilon_high=4e-4).loss_spec()
    assert (both.epsilon_low, both.epsilon_high) == (3e-4, 4e-4)


def test_sampling_is_what_was_asked_for_and_evaluation_has_its_seed():
    made = config(temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, max_completion_length=64)
    sampling = made.sampling_params(5)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 20)
    assert (sampling.min_p, sampling.max_tokens, sampling.seed) == (0.1, 64, 5)
    assert config().sampling_params().seed is None
