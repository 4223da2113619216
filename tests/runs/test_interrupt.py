"""Ctrl-C ends a run after the step in hand, with a checkpoint that the run goes on from."""

from __future__ import annotations

import os
import signal

import pytest

from foveal.train import checkpoint as checkpoints
from tests.runs.tiny_run import (
    assert_same,
    lines,
    mean_byte,
    parameters,
    steps_logged,
    trainer,
)

CONFIG = {"max_steps": 3, "log_completions": True}


class CtrlC:
    """A reward function in the middle of which the user presses Ctrl-C, perhaps repeatedly."""

    __name__ = mean_byte.__name__

    def __init__(self, at_step, presses=1):
        self.at_step, self.presses = at_step, presses

    def __call__(self, completion_ids, trainer_state, **_):
        if trainer_state.global_step == self.at_step:
            for _ in range(self.presses):
                os.kill(os.getpid(), signal.SIGINT)
        return mean_byte(completion_ids)


@pytest.fixture
def handler():
    """A handler of the user's own, so that putting back the default one would show."""

    def own(*_):
        raise AssertionError("Ctrl-C reached the handler that training had replaced")

    before = signal.signal(signal.SIGINT, own)
    yield own
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_finishes_the_step_saves_and_the_resumed_run_equals_one_without(
    tmp_path, capsys, handler
):
    stopped = trainer(tmp_path / "cut", reward_funcs=CtrlC(1), **CONFIG)
    stopped.train()
    assert stopped.state.global_step == 2
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Stopping after this step" in capsys.readouterr().out
    saved = tmp_path / "cut" / "checkpoint-2"
    assert checkpoints.checkpoints(tmp_path / "cut") == [saved]
    assert checkpoints.damage(saved) is None

    resumed = trainer(tmp_path / "cut", **CONFIG)
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "whole", **CONFIG)
    whole.train()
    assert_same(parameters(resumed.model), parameters(whole.model))
    assert steps_logged(tmp_path / "cut") == steps_logged(tmp_path / "whole")
    assert lines(tmp_path / "cut/rollouts.jsonl") == lines(tmp_path / "whole/rollouts.jsonl")


def test_the_stop_is_not_remembered_by_the_next_run_of_the_same_trainer(tmp_path, handler):
    run = trainer(tmp_path, reward_funcs=CtrlC(0), max_steps=2)
    run.train()
    assert run.state.global_step == 1
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 2


def test_a_second_ctrl_c_stops_at_once_and_puts_the_handler_back(tmp_path, handler):
    run = trainer(tmp_path, reward_funcs=CtrlC(0, presses=2), max_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.state.global_step == 0
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_in_training_puts_the_handler_back(tmp_path, handler):
    def broken(completions, **_):
        raise OSError("judge is down")

    with pytest.raises(RuntimeError, match="judge is down"):
        trainer(tmp_path, reward_funcs=broken, max_steps=1).train()
    assert signal.getsignal(signal.SIGINT) is handler
