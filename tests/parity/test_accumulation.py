"""How a step is cut into pieces is a matter of memory: the update must not depend on it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from foveal.rl import AGGREGATION
from foveal.train import scoring
from foveal.train import trainer as trainer_module
from foveal.train.scoring import PASSES
from tests.parity.our_side import (
    OurScript,
    assert_same,
    gradients,
    our_model,
    our_trainer,
    values,
)
from tests.samples import picture

GROUPS, GENERATIONS = 8, 3
WHOLE = (GROUPS * GENERATIONS, 1)
"""per_device_train_batch_size, gradient_accumulation_steps: all groups at once."""
SPLITS = {
    "1 group x 8": (3, 8),
    "2 groups x 4": (6, 4),
    "2 and 1 of a group's 3 rows": (2, 12),
}
NOT_COMPARED = ("time/", "rollout_time/", "memory/", "tokens_per_second/", "step_time", "epoch")


def data(count: int) -> list[dict[str, Any]]:
    """Every fourth prompt has no picture, and neighbours differ in length."""
    return [
        {
            "prompt": [{"role": "user", "content": f"How many{' now' * (i % 3)}?"}],
            "images": [picture(i, 56, 56)] if i % 4 else [],
            "number": i,
        }
        for i in range(count)
    ]


def script(prompt_ids: Any, eos_token_id: int) -> list[list[int]]:
    """Lengths from 1 to 8; about half of the completions are truncated."""
    generator = random.Random(repr(prompt_ids))
    answers = []
    for _ in range(GENERATIONS):
        ids = [generator.randrange(250) for _ in range(generator.randint(1, 8))]
        answers.append([*ids[:-1], eos_token_id] if generator.random() < 0.5 else ids)
    return answers


def remainder(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
    return [float((sum(ids) + n) % 5) for ids, n in zip(completion_ids, number, strict=True)]


class GradientsOfSteps(TrainerCallback):
    """Keeps what each optimizer step is given."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.steps.append(gradients(self.model))


@dataclass
class Run:
    gradients: list[dict[str, Tensor]]
    values: dict[str, Tensor]
    logs: list[dict[str, float]]


def run(
    folder: Path, split: tuple[int, int], *, family: str = "qwen2_5_vl", **settings: Any
) -> Run:
    """A few optimizer steps of 8 groups each, cut as ``split`` says."""
    model, processor = our_model(family, vision=settings.pop("vision", False))
    trainer = our_trainer(
        model,
        processor,
        folder,
        data(2 * GROUPS),
        backend=OurScript(processor.tokenizer, script=script),
        reward_funcs=[remainder],
        **{
            "per_device_train_batch_size": split[0],
            "gradient_accumulation_steps": split[1],
            "num_generations": GENERATIONS,
            "max_steps": 2,
            # Adam would blow rounding up wherever a gradient is close to 0, and clipping would
            # hide a gradient that is scaled as a whole.
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "learning_rate": 0.05,
            **settings,
        },
    )
    seen = GradientsOfSteps(model)
    trainer.add_callback(seen)
    trainer.train()
    return Run(
        seen.steps, values(model), [log for log in trainer.state.log_history if "loss" in log]
    )


def assert_same_run(run_: Run, whole: Run) -> None:
    assert len(run_.gradients) == len(whole.gradients)
    for ours, expected in zip(run_.gradients, whole.gradients, strict=True):
        assert_same(ours, expected, tolerance=1e-5)
    for name, value in whole.values.items():
        torch.testing.assert_close(run_.values[name], value, atol=1e-7, rtol=1e-6)
    for log, expected in zip(run_.logs, whole.logs, strict=True):
        compared = {k: v for k, v in expected.items() if not k.startswith(NOT_COMPARED)}
        assert {k: log[k] for k in compared} == pytest.approx(compared, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("loss_type", list(AGGREGATION))
def test_every_loss_gives_the_same_update_however_its_step_is_cut(tmp_path, loss_type):
    """Both steps use one rollout: the second is off policy, and tokens are clipped."""
    settings = {"loss_type": loss_type, "num_iterations": 2, "epsilon": 0.01}
    if loss_type == "cispo":
        settings["epsilon_high"] = 1.01
    whole = run(tmp_path, WHOLE, **settings)
    if "clip_ratio/region_mean" in whole.logs[1]:
        assert whole.logs[1]["clip_ratio/region_mean"] > 0
    for name in ("1 group x 8", "2 and 1 of a group's 3 rows"):
        assert_same_run(run(tmp_path, SPLITS[name], **settings), whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "dapo", "generation_batch_size": 2 * GROUPS * GENERATIONS},
        {"loss_type": "bnpo", "mask_truncated_completions": True, "beta": 0.04},
        {"loss_type": "dapo", "entropy_coef": 0.05, "top_entropy_quantile": 0.4},
    ],
    ids=["two rollouts", "a rollout of two steps", "masked rows and KL", "entropy"],
)
def test_settings_that_look_at_a_whole_step_see_all_of_it(tmp_path, settings):
    if settings.get("beta"):
        settings = {**settings, "reference": "off"}
    whole = run(tmp_path, WHOLE, **settings)
    for name in ("2 groups x 4", "2 and 1 of a group's 3 rows"):
        assert_same_run(run(tmp_path, SPLITS[name], **settings), whole)


def test_every_family_with_a_trained_tower_gives_the_same_update(tmp_path, family):
    """Pieces that share a picture each send a gradient through the tower."""
    settings = {"family": family, "vision": True, "max_steps": 1}
    whole = run(tmp_path, WHOLE, **settings)
    assert_same_run(run(tmp_path, SPLITS["2 and 1 of a group's 3 rows"], **settings), whole)


@pytest.mark.parametrize(
    ("family", "split", "level"),
    [
        ("qwen2_5_vl", "1 group x 8", "sequence"),
        ("qwen2_5_vl", "2 and 1 of a group's 3 rows", "token"),
        ("qwen3_vl", "2 and 1 of a group's 3 rows", "token"),
        ("gemma3", "2 and 1 of a group's 3 rows", "token"),
    ],
)
def test_the_first_pass_over_a_rollout_has_a_ratio_of_exactly_1(tmp_path, family, split, level):
    """With a clip range of no width, one wrong bit of one token counts as clipped."""
    settings = {"family": family, "importance_sampling_level": level, "epsilon": 0.0}
    logs = run(tmp_path, SPLITS[split], num_iterations=2, **settings).logs
    first, second = ([log[f"clip_ratio/{end}_mean"] for end in ("low", "high")] for log in logs)
    assert first == [0.0, 0.0]
    assert min(second) > 0.1, "after a step most ratios differ from 1"


@pytest.mark.parametrize("training_pass", ["group", "plain"])
def test_rows_scored_before_training_get_the_bits_of_their_own_pass(
    tmp_path, monkeypatch, training_pass
):
    """Of two optimizer steps a rollout the second is scored ahead; nothing changes before it here,
    and with a clip range of no width one wrong bit would be clipped."""
    scored = []
    score = PASSES[training_pass].score

    def counted(model, rows, *rest, **named):
        scored.append(len(rows))
        return score(model, rows, *rest, **named)

    monkeypatch.setattr(PASSES[training_pass], "score", counted)
    whole = GROUPS * GENERATIONS
    settings = {"generation_batch_size": 2 * whole, "training_pass": training_pass}
    logs = run(tmp_path, SPLITS["2 groups x 4"], epsilon=0.0, learning_rate=0.0, **settings).logs
    assert scored == [whole]
    for log in logs:
        assert (log["clip_ratio/low_mean"], log["clip_ratio/high_mean"]) == (0.0, 0.0)


@pytest.mark.parametrize("loss_type", ["grpo", "cispo"])
def test_what_is_not_scored_ahead_changes_no_update(tmp_path, monkeypatch, loss_type):
    settings: dict[str, Any] = {
        "loss_type": loss_type, "generation_batch_size": 2 * GROUPS * GENERATIONS,
        "num_iterations": 2, "max_steps": 4, "epsilon": 0.01,
    }  # fmt: skip
    ours = run(tmp_path / "ours", SPLITS["2 groups x 4"], **settings)

    def score_all(model, window, config, cache):
        for row, logprob, _ in scoring.score_steps(model, window, config, cache, range(2)):
            row.old_logprob = logprob

    monkeypatch.setattr(trainer_module, "score_old", score_all)
    assert_same_run(ours, run(tmp_path / "all", SPLITS["2 groups x 4"], **settings))


@pytest.mark.parametrize("loss_type", ["dapo", "cispo", "vespo"])
def test_stored_old_log_probabilities_leave_the_first_update_bit_for_bit(tmp_path, loss_type):
    settings = {"loss_type": loss_type, "max_steps": 1}
    once = run(tmp_path, SPLITS["2 groups x 4"], **settings)
    twice = run(tmp_path, SPLITS["2 groups x 4"], num_iterations=2, **settings)
    assert twice.gradients[0].keys() == once.gradients[0].keys()
    for name, gradient in once.gradients[0].items():
        assert torch.equal(twice.gradients[0][name], gradient), name
        assert torch.equal(twice.values[name], once.values[name]), name
