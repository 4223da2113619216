"""A run of TRL 1.16's trainer and one of ours on the same completions: they end at one policy."""

from __future__ import annotations

import pytest

from tests.parity.our_side import SHAPES, assert_same, our_model, our_trainer, rows, values
from tests.parity.trl_side import trl_trainer


@pytest.mark.parametrize(
    ("loss_type", "level", "iterations"),
    [
        ("dapo", "token", 1),
        ("dr_grpo", "token", 2),
        ("grpo", "sequence", 2),
        ("vespo", "token", 2),
    ],
)
def test_a_run_ends_at_trls_weights(tmp_path, loss_type, level, iterations):
    """Two micro-steps a step; a second pass over a rollout compares with the weights before."""
    data = rows(4)
    settings = {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "num_iterations": iterations,
        "per_device_train_batch_size": len(SHAPES),
        "gradient_accumulation_steps": 2,
        "max_steps": 1 + iterations,
        "optim": "sgd",
        "learning_rate": 0.05,
        "max_grad_norm": 0.0,
        "beta": 0.04,
    }
    oracle = trl_trainer("qwen2_5_vl", tmp_path / "trl", data, **settings)
    oracle.train()
    model, processor = our_model("qwen2_5_vl")
    start = values(model)
    trainer = our_trainer(model, processor, tmp_path / "our", data, reference="off", **settings)
    trainer.train()

    def moved(side):
        return {name: value - start[name] for name, value in values(side).items()}

    assert_same(moved(model), moved(oracle.model), tolerance=1e-3)
    theirs, ours = (
        [(log["loss"], log["grad_norm"]) for log in side.state.log_history if "loss" in log]
        for side in (oracle, trainer)
    )
    assert len(ours) == len(theirs) == 1 + iterations
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-5)
