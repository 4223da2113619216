"""A run that was cut off goes on as if it had not been, and never from half a checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import TrainerCallback

from foveal.rewards.call import RewardError
from foveal.train import checkpoint as checkpoints
from foveal.train.trainer import GRPOTrainer
from tests.runs.tiny_run import (
    adapted,
    assert_same,
    lines,
    mean_byte,
    parameters,
    questions,
    steps_logged,
    trainer,
)

# Windows of two prompts, three an epoch.
PLAIN = {"max_steps": 4, "log_completions": True}
# Windows of four prompts, one an epoch; each serves two passes of two optimizer steps of two
# micro-steps. Old and reference log-probabilities and entropies are kept from step to step.
REUSED = {
    "max_steps": 5,
    "log_completions": True,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "beta": 0.1,
    "reference": "start",
    "top_entropy_quantile": 0.5,
}
# The old log-probabilities of the first optimizer step are those that its own pass has left.
NOTED = {name: value for name, value in REUSED.items() if name != "top_entropy_quantile"}
REDRAWN = {"max_steps": 3, "log_completions": True, "dynamic_sampling": True}


def even_byte(completion_ids, **_):
    """Two values, so that groups without spread occur."""
    return [float(ids[0] % 2) for ids in completion_ids]


# Configuration, rows, reward, and the step after which the power is cut.
RUNS = {
    "plain": (PLAIN, 6, mean_byte, 3),
    "reused": (REUSED, 4, mean_byte, 4),
    "noted": (NOTED, 4, mean_byte, 3),
    "redrawn": (REDRAWN, 6, even_byte, 2),
}


class DiesAfter:
    """A reward function that fails once so many optimizer steps are done."""

    def __init__(self, reward, step):
        self.reward, self.step = reward, step
        self.__name__ = reward.__name__

    def __call__(self, completion_ids, trainer_state, **columns):
        if trainer_state.global_step >= self.step:
            raise OSError("the power is cut")
        return self.reward(completion_ids, **columns)


def start(folder, name, reward=None, **more):
    config, count, own_reward, _ = RUNS[name]
    return trainer(
        folder, rows=questions(count), reward_funcs=reward or own_reward, **config, **more
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By name: a run that went through, and its folder beside that of the same run cut off."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            whole = start(folder / "whole", name)
            whole.train()
            reward, last = RUNS[name][2:]
            saving = {"save_strategy": "steps", "save_steps": 1}
            with pytest.raises(RewardError, match="power is cut"):
                start(folder / "cut", name, DiesAfter(reward, last), **saving).train()
            made[name] = whole, folder
        return made[name]

    return make


@pytest.mark.parametrize(
    ("name", "step"),
    [
        pytest.param("plain", 2, id="within an epoch"),
        pytest.param("plain", 3, id="between epochs"),
        pytest.param("reused", 1, id="within a pass over a window"),
        pytest.param("reused", 2, id="between passes over a window"),
        pytest.param("reused", 3, id="within the second pass"),
        pytest.param("redrawn", 1, id="with redrawn groups"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, folders, name, step):
    whole, folder = folders(name)
    shutil.copytree(folder / "cut", tmp_path, dirs_exist_ok=True)
    resumed = start(tmp_path, name)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))

    assert_same(parameters(resumed.model), parameters(whole.model))
    assert_same(optimizer_values(resumed), optimizer_values(whole))
    assert resumed.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()
    # Metrics and completions too: no step twice, none missing, none different.
    entries = steps_logged(tmp_path)
    assert [entry["step"] for entry in entries] == list(range(1, whole.state.max_steps + 1))
    assert entries == steps_logged(folder / "whole")
    assert lines(tmp_path / "rollouts.jsonl") == lines(folder / "whole/rollouts.jsonl")


def test_the_runs_above_shuffle_redraw_and_use_a_window_for_several_steps(folders):
    """Without it, some of those equalities would hold for want of a difference."""
    plain = lines(folders("plain")[1] / "whole" / "rollouts.jsonl")
    rows = [[line["row"] for line in plain if line["step"] == step] for step in range(4)]
    assert sorted(row for step in rows[:3] for row in step) == sorted([*range(6)] * 2)
    assert rows[3] != rows[0], "the second epoch has an order of its own"
    redrawn = steps_logged(folders("redrawn")[1] / "whole")
    assert any("dynamic_sampling/redrawn_groups" in entry for entry in redrawn)
    reused = steps_logged(folders("reused")[1] / "whole")
    assert ["reward" in entry for entry in reused] == [True, False, False, False, True]
    assert all(entry["grad_norm"] > 0 for entry in reused)
    # The second window begins with its own policy, four updates away from the start.
    assert reused[0]["kl"] < 1e-9 and reused[4]["kl"] > 1e-3


def optimizer_values(run):
    state = run.optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, values in state.items() for name, value in values.items()}


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A run folder with checkpoints of steps 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    trainer(folder, max_steps=3, save_strategy="steps", save_steps=1).train()
    return folder


@pytest.mark.parametrize("function", ["write_manifest", "_save_rng_state"])
def test_a_crash_while_saving_leaves_no_half_checkpoint(tmp_path, monkeypatch, saved_run, function):
    def full(*_):
        raise OSError("no space left on device")

    config = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    shutil.copytree(saved_run / "checkpoint-1", tmp_path / "checkpoint-1")
    owner = checkpoints if function == "write_manifest" else GRPOTrainer
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, full)
        with pytest.raises(OSError, match="no space left"):
            trainer(tmp_path, **config).train(resume_from_checkpoint=True)
    assert checkpoints.checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]
    assert checkpoints.damage(tmp_path / "checkpoint-1") is None
    leftover = tmp_path / checkpoints.STAGING / "checkpoint-2"
    assert leftover.is_dir(), "the crash came while a checkpoint was written"
    (leftover / "rollout.pt").write_text("of another run")

    trainer(tmp_path, **config).train(resume_from_checkpoint=True)
    assert not (tmp_path / checkpoints.STAGING).exists()
    assert not (tmp_path / "checkpoint-2" / "rollout.pt").exists()
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        ours, whole = (f / "checkpoint-3" / name for f in (tmp_path, saved_run))
        assert ours.read_bytes() == whole.read_bytes()


def truncate(folder):
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    return "optimizer.pt has"


def flip(folder):
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return "adapter_model.safetensors has other contents"


def delete(folder):
    (folder / "trainer_state.json").unlink()
    return "trainer_state.json is missing"


def unlist(folder):
    (folder / checkpoints.MANIFEST).unlink()
    return "manifest.json is missing"


@pytest.mark.parametrize("harm", [truncate, flip, delete, unlist])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_this_is_said(
    tmp_path, capsys, saved_run, harm
):
    shutil.copytree(saved_run, tmp_path, dirs_exist_ok=True)
    what = harm(tmp_path / "checkpoint-3")
    run = trainer(tmp_path, max_steps=3)
    capsys.readouterr()
    run.train(resume_from_checkpoint=True)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'checkpoint-3'} is damaged: {what}" in said
    assert "resuming from checkpoint-2 instead" in said
    entries = [entry["step"] for entry in steps_logged(tmp_path)]
    assert entries == [1, 2, 3], "step 3 was forgotten and made again"


def test_a_named_checkpoint_gives_way_to_an_earlier_one_only(tmp_path, saved_run):
    shutil.copytree(saved_run, tmp_path, dirs_exist_ok=True)
    what = flip(tmp_path / "checkpoint-2")
    run = trainer(tmp_path, max_steps=2)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert what and [entry["step"] for entry in steps_logged(tmp_path)] == [1, 2]


def test_no_whole_checkpoint_at_all_names_the_damage_of_each(tmp_path, saved_run):
    shutil.copytree(saved_run, tmp_path, dirs_exist_ok=True)
    reasons = [harm(tmp_path / f"checkpoint-{i}") for i, harm in ((1, flip), (2, delete))]
    reasons.append(truncate(tmp_path / "checkpoint-3"))
    before = adapted()
    run = trainer(tmp_path, model=before, max_steps=3)
    with pytest.raises(ValueError, match="no checkpoint to resume from is whole") as error:
        run.train(resume_from_checkpoint=True)
    assert all(reason in str(error.value) for reason in reasons)


def test_resuming_where_nothing_was_saved_says_so(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        trainer(tmp_path, max_steps=1).train(resume_from_checkpoint=True)


def test_a_line_cut_short_by_a_crash_does_not_stop_a_resume(tmp_path, saved_run):
    shutil.copytree(saved_run, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoint-3")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    trainer(tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in steps_logged(tmp_path)] == [1, 2, 3]


def test_the_best_checkpoint_outlives_the_rotation_and_is_loaded(tmp_path):
    quality = {0: 0.0, 1: 0.2, 2: 0.9, 3: 0.5, 4: 0.4}

    def reward(completion_ids, trainer_state, **_):
        spread = mean_byte(completion_ids)
        return [quality[trainer_state.global_step] + 0.01 * value for value in spread]

    at_step = {}

    class Remember(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            at_step[state.global_step] = parameters(model)

    run = trainer(
        tmp_path,
        max_steps=4,
        reward_funcs=reward,
        eval_rows=questions(2),
        callbacks=[Remember()],
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        greater_is_better=True,
    )
    run.train()
    kept = [folder.name for folder in checkpoints.checkpoints(tmp_path)]
    assert kept == ["checkpoint-2", "checkpoint-4"]
    assert_same(parameters(run.model), at_step[2])
    best = str(tmp_path / "checkpoint-2")
    assert run.state.best_model_checkpoint == best
    for name in kept:
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == best
        assert checkpoints.damage(tmp_path / name) is None
