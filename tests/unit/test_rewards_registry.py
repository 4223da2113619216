"""Reward functions by name."""

import subprocess
import sys

import pytest

import foveal.rewards as rewards
from foveal.rewards import BUILTIN_REWARDS, resolve

FILE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Shade:
    name: str

def is_red(completions, **columns):
    return [float("red" in c) for c in completions]

LEVEL = 3
"""


@pytest.fixture
def reward_file(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(FILE)
    return path


def test_every_builtin_is_found_under_its_metric_name():
    for name, function in BUILTIN_REWARDS.items():
        assert resolve(name) is function
        assert function.__name__ == name


def test_a_function_is_returned_as_it_is():
    assert resolve(len) is len


def test_settings_are_given_in_the_name():
    assert resolve("number_within(rel_tol=0.05)")(["104"], answer=["100"]) == [1.0]
    assert resolve("soft_overlong(10, 5)")(completion_ids=[[0] * 10]) == [-1.0]


@pytest.mark.parametrize(
    "text",
    ["soft_overlong", "soft_overlong(10)", "soft_overlong(10, 20)", "soft_overlong(open('x'), 1)"],
)
def test_missing_wrong_or_computed_settings_are_refused(text):
    with pytest.raises(
        ValueError, match=r"the reward .soft_overlong.* could not be made: .*for ex"
    ):
        resolve(text)


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match=r"unknown reward 'exact_anser'; did you mean 'exact_answ"):
        resolve("exact_anser")
    with pytest.raises(ValueError, match=r"known: \['boxed_format', .*'package.module:function'"):
        resolve("zzz")


def test_a_function_of_a_module_or_a_file(reward_file):
    assert resolve("math:sqrt")(4) == 2.0
    assert resolve(f"{reward_file}:is_red")(["a red cat", "a cat"]) == [1.0, 0.0]


def test_a_missing_function_file_or_module_is_named(reward_file, tmp_path):
    with pytest.raises(ValueError, match=r"has no 'is_ret'; did you mean 'is_red'\?"):
        resolve(f"{reward_file}:is_ret")
    with pytest.raises(ValueError, match=r"the file 'nowhere.py' of a reward does not exist in"):
        resolve("nowhere.py:f")
    with pytest.raises(ValueError, match=r"module 'no_such_module' .* 'path/file.py:function'"):
        resolve("no_such_module:f")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(ValueError, match=r"broken.py' of a reward could not be run: ZeroDivision"):
        resolve(f"{broken}:f")


def test_what_cannot_be_called_is_refused(reward_file):
    with pytest.raises(TypeError, match="the reward 3 is a int, not a function"):
        resolve(3)
    with pytest.raises(TypeError, match="LEVEL' is a int, not a function"):
        resolve(f"{reward_file}:LEVEL")


def test_everything_that_is_promised_is_there():
    assert [name for name in rewards.__all__ if not hasattr(rewards, name)] == []


def test_importing_rewards_loads_nothing_heavy():
    code = (
        "import sys, foveal.rewards; heavy = {'torch', 'numpy', 'scipy', 'sympy', 'transformers', "
        "'math_verify', 'datasets', 'PIL'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
