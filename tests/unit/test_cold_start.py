"""examples/small_vlm/cold_start: the rows it teaches with, and one run of two steps."""

from __future__ import annotations

import importlib
import io
import json
import sys

import pytest
from PIL import Image

from foveal.data import load_rows
from foveal.rewards import resolve
from foveal.tasks import get_task
from foveal.testing import save_tiny
from tests.conftest import REPOSITORY
from tests.samples import picture

BOXES = '[{"bbox_2d":[1,2,20,30],"label":"blue square"}]'


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples" / "small_vlm"))

    def load(name):
        for stale in (
            "cold_start",
            "cold_start_data",
            "cold_start_scenes",
            "build",
            "gguf_weights",
        ):
            monkeypatch.delitem(sys.modules, stale, raising=False)
        return importlib.import_module(name)

    return load


@pytest.fixture
def nlvr(tmp_path):
    """Eight pictures, three rows of each, as the pack has them."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for number in range(8):
        held = io.BytesIO()
        picture(number, 60, 56).save(held, format="PNG")
        images = [{"bytes": held.getvalue(), "path": f"{number}.png"}]
        for task, answer in (("count", "2"), ("true_false", "true"), ("boxes", BOXES)):
            problem = f"<image>A question of {task}?"
            rows.append({"images": images, "problem": problem, "answer": answer, "task": task})
    path = tmp_path / "nlvr.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["shapes", "cells", "clocks"])
def test_every_completion_earns_its_tasks_reward_and_some_say_what_is_seen(script, name):
    data = script("cold_start_data")
    rows = list(data.drawn(name, 60, 0))
    texts = [row["completion"] for row in rows]
    columns = {"answer": [r["answer"] for r in rows], "metadata": [r["metadata"] for r in rows]}
    assert get_task(name).reward(None, texts, **columns) == [1.0] * len(rows)
    bare = sum(text.startswith("<answer>") for text in texts)
    assert 10 < bare < 55
    assert texts == [row["completion"] for row in data.drawn(name, 60, 0)]


def test_a_description_names_what_is_in_the_picture_in_reading_order(script):
    data = script("cold_start_data")
    row = data.drawn("describe", 9, 0)[5]
    cells = [name.split()[-1] for name in row["completion"].split(", ")]
    assert len(cells) == len(row["metadata"]["objects"]) > 1
    assert cells == sorted(cells, key=lambda cell: (cell[1], cell[0]))
    first = row["metadata"]["objects"][0]
    assert f"{first['colour']} {first['shape']} " in row["completion"]


def test_scenes_ask_in_nlvrs_forms_and_their_answers_are_in_the_picture(script):
    scenes = script("cold_start_scenes")
    rows = [scenes.counted(seed, 1) for seed in range(300)]
    texts = [row["completion"] for row in rows]
    answers = [row["answer"] for row in rows]
    assert resolve("exact_answer")(completions=texts, answer=answers) == [1.0] * len(rows)
    assert 150 < sum(text.startswith("left: ") for text in texts) < 270
    shares = [answers.count(answer) / len(rows) for answer in "012345"]
    assert max(shares) < 0.35 and all(shares)
    for seed in range(50):
        row = scenes.located(seed, 1)
        image, word = row["images"][0], row["problem"]
        colours = [c for name, c in scenes.COLOURS.items() if name in word] or list(
            scenes.COLOURS.values()
        )
        for x1, y1, x2, y2 in json.loads(row["answer"]):
            assert image.getpixel(((x1 + x2) // 2, (y1 + y2) // 2)) in colours
    listed = scenes.listed(3, 1)
    assert listed["answer"].count(",") + 3 >= listed["metadata"]["objects"]


def test_the_halves_of_nlvr_share_no_picture_and_leave_none_out(script, nlvr, tmp_path):
    data = script("cold_start_data")
    halves = [list(data.nlvr_half(nlvr, half)) for half in (0, 1)]
    pictures = [{row["images"][0]["bytes"] for row in half} for half in halves]
    assert not pictures[0] & pictures[1] and len(pictures[0] | pictures[1]) == 8
    assert all(pictures) and sum(map(len, halves)) == 24
    data.write_half(tmp_path / "half.parquet", halves[1])
    again = load_rows(tmp_path / "half.parquet")
    assert len(again) == len(halves[1])
    row = again[0]
    assert isinstance(row.images[0], Image.Image)
    assert row.messages[0]["content"][-1]["text"].endswith("Answer in <answer> tags.")
    # What is taught earns the reward that the second half is trained with.
    for one in map(data.with_completion, halves[0]):
        reward = resolve("boxes_iou" if one["task"] == "boxes" else "exact_answer")
        assert reward(completions=[one["completion"]], answer=[one["answer"]]) == [1.0]


def test_the_mixture_has_its_shares_and_does_without_nlvr(script, nlvr):
    data = script("cold_start_data")
    rows = data.training_rows(1000, nlvr)
    assert len(rows) == 1000 and rows.is_drawn(0) and rows.is_drawn(999)
    tasks = [part.name for part in rows.rows.sources]
    sizes = dict(zip(tasks, [len(part) for part in rows.rows.sources], strict=True))
    assert sizes == {name: round(1000 * share) for name, share in data.SHARES.items()}
    assert abs(len(data.training_rows(1000, None)) - 1000) <= 2


def test_one_command_goes_from_a_checkpoint_to_a_warm_one(script, nlvr, tmp_path, monkeypatch):
    cold_start = script("cold_start")
    model = save_tiny(tmp_path / "tiny", "qwen2_5_vl")
    out = tmp_path / "warm"
    options = f"--model {model} --nlvr {nlvr} --out {out} --steps 2 --batch 2 --workers 0"
    monkeypatch.setattr(sys, "argv", ["cold_start.py", *options.split(), "--held-out", "1"])
    cold_start.main()
    assert (out / "nlvr_second_half.parquet").is_file() and (out / "config.json").is_file()
    found = json.loads((out / "cold_start.json").read_text())
    assert set(found) == {
        "shapes",
        "cells",
        "clocks",
        "nlvr count",
        "nlvr true_false",
        "nlvr boxes",
    }


def test_weights_are_saved_when_the_time_is_spent(script, tmp_path, monkeypatch, capsys):
    cold_start = script("cold_start")
    model, out = save_tiny(tmp_path / "tiny", "qwen2_5_vl"), tmp_path / "warm"
    options = f"--model {model} --out {out} --steps 400 --batch 1 --workers 0 --held-out 1"
    monkeypatch.setattr(
        sys, "argv", ["cold_start.py", *options.split(), "--budget-seconds", "1e-6"]
    )
    cold_start.main()
    assert "stopped at step 1\n" in capsys.readouterr().out
    assert (out / "model.safetensors").is_file()
