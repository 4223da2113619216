"""What a run logs: every name that TRL 1.16 logs, and its values on the same completions."""

from __future__ import annotations

import math
from typing import Any

import pytest

from foveal.rollout import TransformersBackend
from tests.parity.our_side import our_model, our_trainer, rows
from tests.parity.trl_side import ScriptedTRL, trl, trl_trainer

TIMES = {
    *("step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"),
    *("eval_runtime", "eval_samples_per_second"),
}
"""Names that both log, with values of the machine."""
NOT_IN_EVALUATION = {
    "eval_loss": "an evaluation is a rollout and its rewards; it makes no training pass",
    "eval_steps_per_second": "an evaluation counts prompts and has no steps",
    "eval_entropy": "of the training pass",
    "eval_kl": "of the training pass",
    "eval_policy_loss": "of the training pass",
    **{
        f"eval_clip_ratio/{name}": "of the training pass"
        for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")
    },
}


def digits(completion_ids, digit, log_metric, log_extra, **_):
    """Spread within the first group, none within the second."""
    log_metric("longest", float(max(map(len, completion_ids))))
    log_extra("lengths", [len(ids) for ids in completion_ids])
    pairs = zip(completion_ids, digit, strict=True)
    return [sum(ids) % 7 / d if d % 2 else 1.0 for ids, d in pairs]


async def sometimes(completion_ids, digit, **_):
    """Nothing to say about single tokens."""
    pairs = zip(completion_ids, digit, strict=True)
    return [None if len(ids) == 1 else float(len(ids) > 4) * (d % 2) for ids, d in pairs]


def logs(trainer: Any) -> dict[str, float]:
    """All that was logged, as one table: a later step's values under ``name@step``."""
    merged: dict[str, float] = {}
    for log in trainer.state.log_history:
        for name, value in log.items():
            merged[name if name not in merged else f"{name}@{log['step']}"] = value
    return merged


def run_both(folder, *, scripted: bool = True, evaluate: bool = False, **settings):
    """What TRL's run and ours log."""
    data = rows(2)
    settings = {
        "reward_funcs": [digits, sometimes],
        "reward_weights": [1.0, 0.5],
        "per_device_eval_batch_size": 8,
        "max_steps": 1,
        **settings,
    }
    trainer_class = ScriptedTRL if scripted else trl.GRPOTrainer
    theirs = trl_trainer(
        "qwen2_5_vl", folder / "trl", data, trainer_class=trainer_class, **settings
    )
    theirs.train()
    if evaluate:
        theirs.evaluate(theirs.train_dataset)
    model, processor = our_model("qwen2_5_vl")
    backend = None if scripted else TransformersBackend(model, processor.tokenizer)
    if settings.get("beta"):
        settings["reference"] = "off"
    ours = our_trainer(model, processor, folder / "our", data, backend=backend, **settings)
    ours.train()
    if evaluate:
        ours.evaluate(data)
    return logs(theirs), logs(ours)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dapo"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.04},
        {"loss_type": "cispo", "entropy_coef": 0.01, "epsilon_high": 1.01},
        {"loss_type": "sapo", "scale_rewards": "none"},
        {"loss_type": "vespo"},
    ],
    ids=lambda settings: settings["loss_type"],
)
def test_every_metric_of_a_run_equals_trls(tmp_path, settings):
    theirs, ours = run_both(
        tmp_path,
        max_steps=2,
        num_iterations=2,
        optim="sgd",
        learning_rate=0.05,
        epsilon=0.01,
        **settings,
    )
    assert "loss@2" in theirs, "the second step is off policy"
    assert theirs.keys() <= ours.keys()
    compared = [name for name in theirs if name.partition("@")[0] not in TIMES]
    expected = {name: theirs[name] for name in compared}
    assert {name: ours[name] for name in compared} == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert expected["frac_reward_zero_std"] == 0.5 and expected["longest"] > 5
    assert expected["completions/clipped_ratio"] == 0.5 and expected["reward_std"] > 0
    moved = {"cispo": "cispo_clip_ratio", "sapo": "entropy", "vespo": "vespo/phi_seq_mean"}
    name = moved.get(settings["loss_type"], "clip_ratio/region_mean")
    assert expected[name] != expected[f"{name}@2"]


def test_an_evaluation_logs_trls_names(tmp_path):
    theirs, ours = run_both(tmp_path, evaluate=True, loss_type="grpo", beta=0.04, entropy_coef=0.01)
    theirs = {name: value for name, value in theirs.items() if name.startswith("eval_")}
    assert theirs.keys() - ours.keys() == NOT_IN_EVALUATION.keys()
    compared = theirs.keys() - NOT_IN_EVALUATION.keys() - TIMES
    expected = {name: theirs[name] for name in compared}
    assert {name: ours[name] for name in compared} == pytest.approx(expected, rel=1e-4)


def test_a_run_with_sampled_completions_logs_trls_names(tmp_path):
    theirs, ours = run_both(tmp_path, scripted=False, max_completion_length=6, beta=0.04)
    assert theirs.keys() <= ours.keys()
    assert all(math.isfinite(ours[name]) for name in theirs)
    assert ours["completions/max_length"] <= 6 and ours["grad_norm"] > 0
    # What a sampler of our own says about its tokens is compared with the trainer's view of them.
    assert ours["sampling/sampling_logp_difference/max"] < 1e-4
