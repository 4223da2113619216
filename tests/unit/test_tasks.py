"""The registry of procedural tasks and the rows it makes."""

import json
import subprocess
import sys

import pytest

from foveal.tasks import TASKS, canvas, dataset, get_task, missing_package


def test_unknown_task_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"'shape'; did you mean 'shapes'\? There are: .*shapes"):
        get_task("shape")


def test_unlike_name_gets_the_list_and_no_guess():
    with pytest.raises(ValueError, match=r"'zzz'; There are: candles, .*shapes"):
        get_task("zzz")


def test_tasks_are_registered_under_their_own_names():
    assert TASKS and all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", sorted(TASKS))
def test_rows_have_the_columns_that_the_data_reader_knows(name):
    if package := missing_package(get_task(name)):
        pytest.skip(f"{package} is not installed")
    for row in dataset(name, n=20, seed=3):
        assert set(row) == {"images", "problem", "answer", "task", "difficulty", "metadata"}
        assert row["problem"].count("<image>") == len(row["images"]) == 1
        assert row["problem"].startswith("<image>")
        assert row["task"] == name
        assert json.loads(json.dumps(row["metadata"])) == row["metadata"]


def test_two_seeds_share_no_row_and_a_longer_set_begins_with_the_shorter():
    first, second = dataset("shapes", n=50, seed=0), dataset("shapes", n=50, seed=1)
    pixels = [row["images"][0].tobytes() + row["problem"].encode() for row in first + second]
    assert len(set(pixels)) == 100
    assert dataset("shapes", n=10, seed=0) == first[:10]


@pytest.mark.parametrize("n", [0, -1])
def test_an_empty_data_set_is_refused(n):
    with pytest.raises(ValueError, match=rf"n is {n}; a data set has 1 row or more"):
        dataset("shapes", n=n)


def test_importing_tasks_loads_no_heavy_package():
    code = (
        "import sys, foveal.tasks;"
        "heavy = ('torch', 'transformers', 'datasets', 'PIL', 'rdkit');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_letters_come_in_several_faces_and_are_the_same_for_the_same_seed(monkeypatch):
    """One face in training, and a policy reads that one."""
    seen, real = [], canvas.font

    def spied(size):
        seen.append(canvas._typeface.get())
        return real(size)

    monkeypatch.setattr(canvas, "font", spied)
    task = get_task("gauges")
    pictures = [task.generate(seed, 2)["images"][0].tobytes() for seed in range(16)]
    assert set(seen) == set(canvas.TYPEFACES)
    again = [task.generate(seed, 2)["images"][0].tobytes() for seed in range(16)]
    assert again == pictures
    assert canvas._typeface.get() == "", "whoever draws next finds the font as it was"
