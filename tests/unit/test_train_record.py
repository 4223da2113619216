"""What a run leaves in its folder stays readable, whatever was logged and whenever it crashed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.rewards.call import RewardTable
from foveal.rl import advantages_from_rewards
from foveal.train.console import completions_table, console, last_user_text
from foveal.train.plain_pass import Row
from foveal.train.record import MetricsFile, RolloutFile
from foveal.train.window import Window
from foveal.types import Completion, Group, ImageInput, Prompt


def at(step):
    return SimpleNamespace(global_step=step)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def window(extra=None, text="[b]4", answer="3"):
    """One prompt with a picture, two completions."""
    picture = Image.new("RGB", (40, 30), (10, 200, 30))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "How many?"}]
    image = ImageInput("0123456789abcdef99", torch.zeros(1), (1, 2, 2), 1)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    prompt = Prompt(4, (1,), (image,), messages, {"answer": answer})
    completions = (Completion((7, 8), text, "stop"), Completion((7,), "x", "length"))
    advantages = advantages_from_rewards(torch.tensor([[[1.0], [0.0]]]))
    rows = [
        Row(prompt, c, a, (True,) * len(c.ids))
        for c, a in zip(completions, (0.5, -0.5), strict=True)
    ]
    table = RewardTable([[1.0], [float("nan")]], extra or {}, {}, {})
    return Window((0, 0), [Group(prompt, completions)], table, advantages, rows)


# -- metrics


def test_not_a_number_is_written_as_null(tmp_path):
    """NaN is no JSON: one line of it makes the file unreadable for others."""
    file = MetricsFile(tmp_path)
    file.on_log(None, at(3), None, {"reward": float("nan"), "loss": 0.5, "kl": float("inf")})
    assert "NaN" not in file.path.read_text()
    assert read(file.path) == [{"step": 3, "reward": None, "loss": 0.5, "kl": None}]


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    file = MetricsFile(tmp_path)
    for step in (1, 2, 3):
        file.on_log(None, at(step), None, {"loss": float(step)})
    with file.path.open("a") as open_file:
        open_file.write('{"step": 4, "lo')  # the crash came here
    file.on_train_begin(None, at(2), None)
    assert [entry["step"] for entry in read(file.path)] == [1, 2]
    file.on_train_begin(None, at(0), None)
    assert read(file.path) == []


# -- completions


def test_completions_of_the_step_that_is_made_again_are_dropped(tmp_path):
    """They are written when a step begins, so those of step 2 belong to what comes after it."""
    file = RolloutFile(tmp_path)
    for step in (0, 1, 2):
        file.write(window(), ["right"], step)
    file.start(2)
    assert [line["step"] for line in read(file.path)] == [0, 0, 1, 1]


def test_a_line_has_what_is_needed_to_judge_the_completion(tmp_path):
    file = RolloutFile(tmp_path)
    file.write(window(), ["right"], 5)
    first, second = read(file.path)
    assert first == {
        "step": 5,
        "row": 4,
        "prompt": "<image>How many?",
        "images": ["images/0123456789abcdef.png"],
        "answer": "3",
        "completion": "[b]4",
        "tokens": 2,
        "stop_reason": "stop",
        "rewards": {"right": 1.0},
        "advantage": 0.5,
    }
    assert second["rewards"] == {"right": None} and second["stop_reason"] == "length"
    with Image.open(tmp_path / first["images"][0]) as picture:
        assert picture.size == (40, 30) and picture.getpixel((0, 0)) == (10, 200, 30)


def test_a_picture_is_written_once_and_never_by_half(tmp_path, monkeypatch):
    file = RolloutFile(tmp_path)
    with monkeypatch.context() as patch:

        def cut_off(_self, path, **_):
            path.write_bytes(b"half a picture")
            raise OSError("no space left")

        patch.setattr(Image.Image, "save", cut_off)
        with pytest.raises(OSError, match="no space left"):
            file.write(window(), ["right"], 0)
    file.write(window(), ["right"], 0)
    path = tmp_path / "images/0123456789abcdef.png"
    with Image.open(path) as picture:
        assert picture.size == (40, 30)
    written = path.stat().st_mtime_ns
    file.write(window(), ["right"], 1)
    assert path.stat().st_mtime_ns == written and len(list(path.parent.iterdir())) == 1


def test_extra_columns_are_plain_numbers_and_cannot_overwrite_a_lines_own(tmp_path):
    extra = {
        "iou": [np.float32(0.5), torch.tensor(0.25)],
        "boxes": [[1, 2], None],
        "step": ["think", "answer"],
        "sure": [True, np.bool_(False)],
    }
    RolloutFile(tmp_path).write(window(extra), ["right"], 7)
    first, second = read(tmp_path / "rollouts.jsonl")
    assert (first["iou"], second["iou"]) == (0.5, 0.25)
    assert first["boxes"] == [1, 2] and second["boxes"] is None
    assert first["step"] == 7 and first["extra/step"] == "think"
    assert first["sure"] is True and second["sure"] is False


def test_an_answer_that_is_no_text_stays_what_it_is(tmp_path):
    RolloutFile(tmp_path).write(window(answer=[[1, 2, 3, 4]]), ["right"], 0)
    assert read(tmp_path / "rollouts.jsonl")[0]["answer"] == [[1, 2, 3, 4]]


# -- the table


def test_the_table_shows_brackets_as_they_are(capsys):
    console.print(completions_table(window(text="[/b] a[i]"), ["right"], 1, 9))
    shown = capsys.readouterr().out
    assert "[/b] a[i]" in shown and "step 9" in shown and "0.50" in shown


def test_the_prompt_of_a_table_is_the_last_user_message():
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "second"},
    ]
    assert last_user_text(messages) == "second"
    assert last_user_text([{"role": "system", "content": "s"}]) == ""
