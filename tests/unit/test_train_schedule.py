"""Which prompts each micro-step works on."""

from __future__ import annotations

import pytest

from foveal.train.schedule import Schedule


def schedule(indices, **given):
    settings = {"prompts_per_slot": 2, "slots": 2, "iterations": 1, "shuffle": False, "seed": 0}
    return Schedule(indices, **{**settings, **given})


def test_a_window_passes_through_its_slots_and_then_again():
    made = schedule(range(10, 19), iterations=2)
    # Nine prompts are two windows of four; the ninth has no window.
    assert (made.windows, len(made)) == (2, 8)
    steps = [(m.window, m.iteration, m.slot) for m in made.loader()]
    assert steps == [(w, i, s) for w in (0, 1) for i in (0, 1) for s in (0, 1)]
    assert {m.prompt_indices for m in made.loader()} == {(10, 11, 12, 13), (14, 15, 16, 17)}


def test_every_prompt_that_fits_a_window_is_answered_once_an_epoch():
    made = schedule(range(8), shuffle=True)
    for epoch in range(3):
        made.epoch = epoch
        windows = {m.window: m.prompt_indices for m in made.loader()}
        assert sorted(i for prompts in windows.values() for i in prompts) == list(range(8))


def test_epochs_and_seeds_shuffle_differently_and_always_alike():
    def orders(seed):
        made = schedule(range(100), shuffle=True, seed=seed)
        for epoch in (0, 1, 0):
            made.epoch = epoch
            yield tuple(m.prompt_indices for m in made.loader())

    first, second, again = orders(0)
    assert first == again != second
    assert (first, second, again) == tuple(orders(0))
    assert next(orders(1)) != first


def test_micro_steps_of_two_epochs_belong_to_different_windows():
    made = schedule(range(4))
    first = made[0].window_id
    made.epoch = 1
    assert made[0].window_id != first


def test_too_few_prompts_for_a_rollout_is_told_with_numbers_and_remedy():
    with pytest.raises(ValueError) as error:
        schedule(range(3))
    said = str(error.value)
    assert "one rollout takes 4 prompts, but the training set has 3" in said
    assert "lower per_device_train_batch_size" in said


def test_a_step_beyond_the_epoch_is_an_index_error():
    made = schedule(range(4))
    for index in (2, -1):
        with pytest.raises(IndexError):
            made[index]
