"""Checkpoints are whole or absent; what is resumed is found by looking into the files."""

from __future__ import annotations

import json

import pytest
import torch

from foveal.rewards.call import RewardTable
from foveal.rl import advantages_from_rewards
from foveal.train import checkpoint as checkpoints
from foveal.train.plain_pass import Row
from foveal.train.window import Window
from foveal.train.window_file import load_window, save_window
from foveal.types import Completion, Group, Prompt


def save(run, step, content=b"weights"):
    """A checkpoint of two files, one of them in a folder, published as the trainer does."""
    staged = checkpoints.staging(run) / f"checkpoint-{step}"
    (staged / "inner").mkdir(parents=True)
    (staged / "model.bin").write_bytes(content)
    (staged / "inner" / "state.json").write_text(json.dumps({"step": step}))
    final = run / staged.name
    checkpoints.publish(staged, final)
    return final


def names(run):
    return [folder.name for folder in checkpoints.checkpoints(run)]


# -- published whole


def test_a_published_checkpoint_is_whole_and_staging_is_gone(tmp_path):
    folder = save(tmp_path, 3)
    assert checkpoints.damage(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_publishing_again_replaces_the_damaged_one_of_that_name(tmp_path):
    folder = save(tmp_path, 3)
    (folder / "stale.bin").write_bytes(b"old")
    (folder / "model.bin").write_bytes(b"broken")
    assert save(tmp_path, 3, b"new") == folder
    assert checkpoints.damage(folder) is None
    assert (folder / "model.bin").read_bytes() == b"new" and not (folder / "stale.bin").exists()


def test_leftovers_of_a_crash_do_not_get_into_the_next_checkpoint(tmp_path):
    leftover = tmp_path / checkpoints.STAGING / "checkpoint-3"
    leftover.mkdir(parents=True)
    (leftover / "rollout.pt").write_bytes(b"half")
    assert names(tmp_path) == []
    assert not (save(tmp_path, 3) / "rollout.pt").exists()


def test_checkpoints_are_ordered_by_step_and_not_by_name(tmp_path):
    for step in (10, 9, 100):
        save(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert names(tmp_path) == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


# -- damage


def truncate(folder):
    (folder / "model.bin").write_bytes(b"weight")
    return "model.bin has 6 bytes instead of 7"


def flip(folder):
    (folder / "model.bin").write_bytes(b"weighTs")
    return "model.bin has other contents than were written"


def delete(folder):
    (folder / "inner" / "state.json").unlink()
    return "inner/state.json is missing"


def unlist(folder):
    (folder / checkpoints.MANIFEST).unlink()
    return "manifest.json is missing"


def cut_list(folder):
    path = folder / checkpoints.MANIFEST
    path.write_bytes(path.read_bytes()[:20])
    return "manifest.json cannot be read"


def garble_list(folder):
    (folder / checkpoints.MANIFEST).write_bytes(b"\xff\xfe\x00")
    return "manifest.json cannot be read"


HARM = [truncate, flip, delete, unlist, cut_list, garble_list]


@pytest.mark.parametrize("harm", HARM)
def test_every_kind_of_damage_is_found_and_described(tmp_path, harm):
    folder = save(tmp_path, 3)
    assert harm(folder) == checkpoints.damage(folder)


@pytest.mark.parametrize("harm", HARM)
def test_the_last_whole_checkpoint_is_chosen_and_the_damaged_one_named(tmp_path, harm):
    whole, damaged = save(tmp_path, 3), save(tmp_path, 6)
    what = harm(damaged)
    assert checkpoints.choose(True, tmp_path) == (whole, [f"{damaged} is damaged: {what}"])


def test_a_named_checkpoint_never_gives_way_to_a_later_one(tmp_path):
    earlier, named, later = (save(tmp_path, step) for step in (3, 6, 9))
    assert checkpoints.choose(str(named), tmp_path / "elsewhere") == (named, [])
    flip(named)
    assert checkpoints.choose(named, tmp_path)[0] == earlier
    flip(earlier)
    with pytest.raises(ValueError, match="no checkpoint to resume from is whole"):
        checkpoints.choose(named, tmp_path)
    assert checkpoints.choose(True, tmp_path) == (later, [])


def test_all_damaged_lists_every_reason(tmp_path):
    reasons = [harm(save(tmp_path, step)) for step, harm in ((3, flip), (6, delete))]
    with pytest.raises(ValueError) as error:
        checkpoints.choose(True, tmp_path)
    assert all(reason in str(error.value) for reason in reasons)


def test_nothing_there_and_a_name_that_is_none_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint in"):
        checkpoints.choose(True, tmp_path)
    with pytest.raises(ValueError, match=r"names .*checkpoint-4, which is no folder"):
        checkpoints.choose(tmp_path / "checkpoint-4", tmp_path)


# -- rotation


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [
        (None, None, [1, 2, 3, 4]),
        (0, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (2, 1, [1, 4]),
        (3, 1, [1, 3, 4]),
        (1, None, [4]),
        # The newest must stay to resume from, the best to be loaded.
        (1, 2, [2, 4]),
        (1, 4, [4]),
        (2, 4, [3, 4]),
        (9, 2, [1, 2, 3, 4]),
    ],
)
def test_the_oldest_go_and_the_best_and_the_newest_stay(tmp_path, keep, best, kept):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    best_folder = str(tmp_path / f"checkpoint-{best}") if best else None
    checkpoints.rotate(tmp_path, "checkpoint-4", keep, best_folder)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in kept]


def test_after_a_resume_from_an_earlier_step_the_new_one_is_not_taken_for_the_oldest(tmp_path):
    for step in (4, 10, 12, 6):
        save(tmp_path, step)
    checkpoints.rotate(tmp_path, "checkpoint-6", 2, None)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_a_best_checkpoint_that_is_gone_takes_no_place(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    checkpoints.rotate(tmp_path, "checkpoint-3", 2, str(tmp_path / "checkpoint-0"))
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


# -- a rollout in use

PROMPTS = [Prompt(index=i, ids=(1, i), images=(), messages=[]) for i in (5, 8)]


def window(filled):
    groups = [
        Group(
            prompt,
            (
                Completion((3, 4), "ab", "stop", (-0.5, -1.5)),
                Completion((3,), "a", "length", None if filled else (-0.5,)),
            ),
        )
        for prompt in PROMPTS
    ]
    rewards = [[1.0, float("nan")], [0.0, 2.0], [0.5, 0.25], [0.5, 0.25]]
    advantages = advantages_from_rewards(torch.tensor(rewards).view(2, 2, 2))
    numbers = torch.arange(8.0).view(4, 2)
    rows = [
        Row(
            prompt=group.prompt,
            completion=completion,
            advantage=float(advantages.advantage_PG[p, i]),
            counts=(True, False)[: len(completion.ids)],
            old_logprob=numbers[2 * p + i][: len(completion.ids)] if filled else None,
            ref_logprob=-numbers[2 * p + i][: len(completion.ids)] if filled else None,
            entropy=numbers[2 * p + i][: len(completion.ids)] + 0.5 if filled else None,
        )
        for p, group in enumerate(groups)
        for i, completion in enumerate(group.completions)
    ]
    threshold = torch.tensor(0.75) if filled else None
    return Window((1, 2), groups, RewardTable(rewards, {}, {}, {}), advantages, rows, threshold)


@pytest.mark.parametrize("filled", [True, False])
def test_a_window_comes_back_from_disk_as_it_was(tmp_path, filled):
    """A field forgotten here is a resumed run that differs."""
    saved = window(filled)
    save_window(saved, tmp_path)
    by_index = {prompt.index: prompt for prompt in PROMPTS}
    loaded = load_window(
        tmp_path, lambda indices: [by_index[i] for i in indices], torch.device("cpu")
    )
    assert loaded is not None
    assert loaded.window_id == saved.window_id and loaded.groups == saved.groups
    assert torch.equal(
        torch.tensor(loaded.rewards.rewards_BF).nan_to_num(9),
        torch.tensor(saved.rewards.rewards_BF).nan_to_num(9),
    )
    for ours, theirs in zip(loaded.rows, saved.rows, strict=True):
        assert (ours.prompt, ours.completion) == (theirs.prompt, theirs.completion)
        assert (ours.advantage, ours.counts) == (theirs.advantage, theirs.counts)
        for name in ("old_logprob", "ref_logprob", "entropy"):
            assert same(getattr(ours, name), getattr(theirs, name)), name
    for name in ("advantage_PG", "reward_PG", "mean_P", "std_P", "zero_std_P"):
        assert same(getattr(loaded.advantages, name), getattr(saved.advantages, name)), name
    assert same(loaded.entropy_threshold, saved.entropy_threshold)


def same(ours, theirs):
    if ours is None or theirs is None:
        return ours is theirs
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_a_checkpoint_between_two_rollouts_has_no_window(tmp_path):
    assert load_window(tmp_path, lambda _: [], torch.device("cpu")) is None
