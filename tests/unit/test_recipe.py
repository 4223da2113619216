"""Recipes: what is read from YAML and overrides, what is refused, and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foveal.recipe import DataSection, Recipe, check_recipe, load_recipe
from foveal.rewards import RewardCaller
from foveal.testing import save_tiny
from tests.conftest import REPOSITORY
from tests.samples import picture

MINIMAL = """
model: {model_name: Qwen/Qwen2.5-VL-7B-Instruct}
lora: {r: 8}
data: {train: hiyouga/geometry3k}
rewards: [exact_answer]
train: {output_dir: runs/x}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str = MINIMAL, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_recipe(path, overrides)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- values


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("1.0e-5", 1e-5), ("3E+2", 300.0), ("2", 2), (".5", 0.5)]
)
def test_scientific_notation_is_a_number_in_files_and_overrides(write, text, value):
    in_file = load_recipe(write(MINIMAL.replace("runs/x", f"runs/x, learning_rate: {text}")))
    overridden = load_recipe(write(), [f"train.learning_rate={text}"])
    assert in_file.train["learning_rate"] == overridden.train["learning_rate"] == value


def test_a_quoted_number_is_text_and_refused(write):
    assert "train.learning_rate is '1e-5' (text); it takes a number" in message(
        write(), "train.learning_rate='1e-5'"
    )


def test_words_that_yaml_1_1_takes_for_booleans_stay_words(write):
    recipe = load_recipe(write(), ["train.reference=off", "train.eval_strategy=no"])
    assert (recipe.train["reference"], recipe.train["eval_strategy"]) == ("off", "no")


def test_an_integral_float_serves_as_a_whole_number(write):
    steps = load_recipe(write(), ["train.max_steps=1e3"]).train["max_steps"]
    assert (steps, type(steps)) == (1000, int)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rate=fast", "train.learning_rate is 'fast' (text); it takes a number"),
        ("train.num_generations=true", "is True (true or false); it takes a whole number"),
        ("train.num_generations=2.5", "is 2.5 (a number); it takes a whole number"),
        ("train.log_completions=yes", "is 'yes' (text); it takes true or false"),
        ("train.reference=none", "it takes 'auto' or 'off' or 'start'"),
        ("train.reward_weights=[1, heavy]", "it takes a list or null"),
        ("train.chat_template_kwargs=3", "it takes keys with values or null"),
        ("train.temperature=", "train.temperature is null; it takes a number"),
        ("model.max_seq_length=long", "it takes a whole number or null"),
        ("model.load_in_4bit=1", "is 1 (a whole number); it takes true or false"),
        ("lora.r=[8]", "lora.r is [8] (a list); it takes a whole number"),
        ("lora.target_modules=[q_proj, 3]", "it takes text or a list or null"),
        ("data.train=3", "it takes text or keys with values"),
        ("rewards.exact_answer=much", "the weight of the reward 'exact_answer' is 'much' (text)"),
        ("rewards=3", "rewards has 3, which is no name of a reward"),
        ("lora=3", "lora is 3, which has no keys"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_message(write, override, words):
    assert words in message(write(), override)


def test_a_list_and_a_text_are_both_target_modules(write):
    for text, value in (("[q_proj, v_proj]", ["q_proj", "v_proj"]), ("all-linear", "all-linear")):
        assert load_recipe(write(), [f"lora.target_modules={text}"]).lora == {
            "r": 8,
            "target_modules": value,
        }


# -- keys


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.max_steps=1", "unknown key trian; did you mean train?"),
        ("model.load_in_4bits=true", "unknown key model.load_in_4bits; did you mean"),
        ("model.load_in_4bits=true", "model.load_in_4bit?"),
        ("lora.rank_=8", "unknown key lora.rank_"),
        ("lora.lora_aplha=8", "did you mean lora.lora_alpha?"),
        ("data.eval_splt=test", "did you mean data.eval_split?"),
        ("train.learning_rte=1e-5", "did you mean train.learning_rate?"),
        ("train.zzzzzz=1", "unknown key train.zzzzzz; the section takes the fields of"),
        ("lora.num_generations=8", "unknown key lora.num_generations; did you mean train."),
        ("learning_rate=1", "unknown key learning_rate; did you mean train.learning_rate?"),
        ("lora.model=x", "unknown key lora.model;"),
        ("model.unknown=x", "unknown key model.unknown;"),
        ("data.train={task: shapes, n: 3, level: 1}", "unknown key data.train.level; known are"),
    ],
)
def test_an_unknown_key_names_the_nearest(write, override, words):
    assert words in message(write(), override)


def test_an_unknown_key_of_the_file_names_the_file(write):
    path = write(MINIMAL + "rewrads: []\n")
    assert message(path) == f"{path}: unknown key rewrads; did you mean rewards?"


def test_a_key_that_stands_twice_is_refused(write):
    path = write(MINIMAL.replace("{output_dir: runs/x}", "\n  output_dir: a\n  output_dir: b"))
    assert "the key 'output_dir' stands twice, the second time in line 8" in message(path)


@pytest.mark.parametrize("section", ["model", "lora", "data", "rewards", "train"])
def test_a_missing_section_comes_with_an_example(write, section):
    rest = [line for line in MINIMAL.splitlines() if not line.startswith(section)]
    assert f"the section {section} is missing; add for example `{section}: " in message(
        write("\n".join(rest))
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model={}", "model.model_name is missing"),
        ("data={}", "data.train is missing"),
        ("train=", "train.output_dir is missing"),
        ("rewards=[]", "rewards is empty"),
        ("rewards=", "rewards is empty"),
        ("data.eval={task: shapes}", "data.eval.n is missing; write eval: {task: shapes, n: 512}"),
    ],
)
def test_what_a_section_needs_is_named(write, override, words):
    assert words in message(write(), override)


@pytest.mark.parametrize("key", ["model.token", "train.hub_token"])
def test_a_secret_would_end_up_in_the_run_folder(write, key):
    assert f"{key} would be copied into the run folder" in message(write(), f"{key}=hf_abc")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "this file has none"), ("a: [1", "this is no YAML"), ("- model", "this file has none")],
)
def test_a_file_that_is_no_recipe_is_said_to_be_none(write, text, words):
    assert words in message(write(text))


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    assert "there is no such file" in message(tmp_path / "none.yaml")


# -- overrides


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_steps", "'train.max_steps' is no key=value"),
        ("train.=3", "is no key=value"),
        ("=3", "is no key=value"),
        ("lora.r.x=3", "r is 8, which has no keys; override r as a whole"),
        ("train.system_prompt=[a", "is no YAML"),
    ],
)
def test_an_override_that_cannot_be_read_is_quoted(write, override, words):
    assert words in message(write(), override)


def test_overrides_reach_into_keys_and_replace_sections(write):
    recipe = load_recipe(
        write(),
        [
            "train.chat_template_kwargs.enable_thinking=false",
            "lora=false",
            "rewards={boxed_format: 0.5}",
            "rewards.number_within(rel_tol=0.1)=2",
            "train.system_prompt=a = b",
        ],
    )
    assert recipe.train["chat_template_kwargs"] == {"enable_thinking": False}
    assert recipe.lora is None
    assert recipe.rewards == {"boxed_format": 0.5, "number_within(rel_tol=0.1)": 2}
    assert recipe.train["system_prompt"] == "a = b"


def test_an_empty_lora_section_is_an_adapter_with_defaults(write):
    assert load_recipe(write(MINIMAL.replace("lora: {r: 8}", "lora:"))).lora == {}


def test_an_override_may_supply_a_missing_section(write):
    path = write(MINIMAL.replace("lora: {r: 8}", ""))
    assert load_recipe(path, ["lora.r=4"]).lora == {"r": 4}


# -- rewards


@pytest.mark.parametrize(
    "text",
    [
        "{exact_answer: 0.9, boxed_format: 1}",
        "[{exact_answer: 0.9}, boxed_format]",
        "[{exact_answer: 0.9, boxed_format: }]",
    ],
)
def test_rewards_are_names_or_names_with_weights(write, text):
    rewards = load_recipe(write(), [f"rewards={text}"]).rewards
    assert list(rewards.items()) == [("exact_answer", 0.9), ("boxed_format", 1.0)]


def test_weights_of_the_trainer_go_to_rewards_without_any(write):
    recipe = load_recipe(
        write(), ["rewards=[exact_answer, boxed_format]", "train.reward_weights=[0.7, 0.3]"]
    )
    assert recipe.rewards == {"exact_answer": 0.7, "boxed_format": 0.3}
    assert "reward_weights" not in recipe.train


@pytest.mark.parametrize("rewards", ["{exact_answer: 1}", "[exact_answer, boxed_format]"])
def test_weights_given_twice_or_too_few_are_refused(write, rewards):
    assert "train.reward_weights is [0.7]" in message(
        write(), f"rewards={rewards}", "train.reward_weights=[0.7]"
    )


def test_a_reward_that_stands_twice_is_refused(write):
    assert "rewards has a name twice" in message(write(), "rewards=[exact_answer, exact_answer]")


# -- paths


def test_relative_paths_of_a_recipe_lie_beside_it(write, tmp_path):
    path = write(
        """
model: {model_name: ../tiny}
lora: {}
data: {train: rows.jsonl, eval: lmms-lab/some-set}
rewards: [mine.py:f, package.module:g]
train: {output_dir: runs/x}
""",
        "recipes/a.yaml",
    )
    recipe = load_recipe(path)
    folder = path.parent
    assert recipe.model["model_name"] == str(tmp_path / "tiny")
    assert recipe.data == DataSection(train=str(folder / "rows.jsonl"), eval="lmms-lab/some-set")
    assert list(recipe.rewards) == [f"{folder / 'mine.py'}:f", "package.module:g"]


def test_paths_of_overrides_and_the_run_folder_start_from_the_current_folder(
    write, tmp_path, monkeypatch
):
    path = write(MINIMAL, "recipes/a.yaml")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    overrides = ["data.train=rows.jsonl", "rewards=[mine.py:f]", "model.model_name=./tiny"]
    recipe = load_recipe(path, overrides)
    assert recipe.data.train == str(here / "rows.jsonl")
    assert list(recipe.rewards) == [f"{here / 'mine.py'}:f"]
    assert recipe.model["model_name"] == str(here / "tiny")
    assert recipe.train["output_dir"] == str(here / "runs/x")


def test_a_folder_beside_the_recipe_goes_before_the_hub(write, tmp_path):
    (tmp_path / "hiyouga" / "geometry3k").mkdir(parents=True)
    assert load_recipe(write()).data.train == str(tmp_path / "hiyouga" / "geometry3k")


def test_a_resolved_recipe_reads_back_the_same_from_anywhere(write, tmp_path, monkeypatch):
    overrides = [
        "train.run_name='1e-5'",
        "train.eval_strategy=no",
        "train.learning_rate=1e-5",
        "data.train={task: shapes, n: 3}",
        "lora=false",
        "train.system_prompt='yes: \"maybe\"'",
    ]
    first = load_recipe(write(), overrides)
    copy = write(first.to_yaml(), "elsewhere/copy.yaml")
    monkeypatch.chdir(copy.parent)
    second = load_recipe(copy)
    assert first.train["run_name"] == "1e-5"
    assert _values(second) == _values(first)


def _values(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.model, recipe.lora, recipe.data, recipe.rewards, recipe.train


# -- what a recipe names


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "qwen3_vl")


def check(path: Path, checkpoint: Path, *overrides: str):
    given = [
        f"model.model_name={checkpoint}",
        "data.train={task: shapes, n: 3, difficulty: 1}",
        "train.use_cpu=true",
    ]
    return check_recipe(load_recipe(path, [*given, *overrides]))


def test_a_check_opens_data_rewards_and_the_models_config(write, checkpoint):
    checked = check(
        write(), checkpoint, "rewards={exact_answer: 0.25}", "data.eval={task: shapes, n: 2}"
    )
    assert checked.family == "qwen3_vl"
    assert (len(checked.train_rows), len(checked.eval_rows or ())) == (3, 2)
    assert checked.config.reward_weights == [0.25]
    assert [function.__name__ for function in checked.reward_functions] == ["exact_answer"]


def test_a_mixture_of_tasks_is_judged_by_one_name(write, checkpoint):
    checked = check(
        write(),
        checkpoint,
        "rewards={task_reward: 1.0, think_answer_format: 0.1}",
        "data.train=[{task: shapes, n: 2, difficulty: 1}, {task: clocks, n: 2, difficulty: 1}]",
        "train.max_steps=2",
    )
    caller = RewardCaller(checked.reward_functions)
    rows = [next(iter(part)) for part in checked.train_rows.sources]
    caller.check_columns(rows[0].columns)
    columns = {name: [row.columns[name] for row in rows] for name in rows[0].columns}
    answers = [f"<answer>{row.answer}</answer>" for row in rows]
    table = caller.score([""] * 2, answers, [[0]] * 2, columns)
    assert table.rewards_BF == [[1.0, 0.0]] * 2
    assert table.metrics == {"task_reward/shapes": 1.0, "task_reward/clocks": 1.0}


def test_evaluation_data_that_is_not_used_is_mentioned(write, checkpoint, capsys):
    check(write(), checkpoint, "data.eval={task: shapes, n: 2}")
    assert "evaluation data is not used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rewards=[exact_anwser]", "did you mean 'exact_answer'"),
        ("train.num_generations=3", "no multiple of num_generations=3"),
        ("train.optim=adamx", "adamx"),
        ("train.eval_strategy=steps", "there is nothing to evaluate on"),
        ("data.train=none.parquet", "none.parquet"),
        ("data.train={task: shape, n: 3}", "did you mean 'shapes'"),
        ("data.split=test", "split='test'"),
        ("model.model_name=./none", "none"),
    ],
)
def test_what_would_stop_the_run_is_found_before_it(write, checkpoint, override, words):
    path = write()
    with pytest.raises(ValueError, match=f"^{path}: ") as caught:
        check(path, checkpoint, override)
    assert words in str(caught.value)


def test_a_model_type_without_support_is_found_before_weights_are(write, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="'llama' is not supported; supported are gemma3"):
        check(write(), tmp_path / "other")


def test_a_recipe_with_comments_is_not_written_over(write, tmp_path, checkpoint):
    path = write("# mine\n" + MINIMAL, "run/recipe.yaml")
    with pytest.raises(ValueError, match="would write its resolved recipe over this file"):
        check(path, checkpoint, f"train.output_dir={path.parent}")


# -- the shipped ones


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "examples/recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_recipes_make_a_config(path, checkpoint):
    overrides = [
        f"model.model_name={checkpoint}",
        "data={train: {task: shapes, n: 2}, eval: {task: shapes, n: 2}}",
        "train.use_cpu=true",
    ]
    checked = check_recipe(load_recipe(path, overrides))
    assert checked.config.prompts_per_micro_step >= 1


def test_reading_a_recipe_loads_no_torch(write):
    script = """
import sys
from foveal.recipe import load_recipe
try:
    load_recipe(sys.argv[1], ["rewards=[]"])
except ValueError as error:
    print(error, "torch" in sys.modules, "transformers" in sys.modules)
"""
    command = [sys.executable, "-c", script, str(write())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "rewards is empty" in done.stdout
    assert done.stdout.strip().endswith("False False")


MIXTURE = "data.train=[{data: PATH, weight: 2}, {task: shapes, difficulty: 1, name: easy}]"


def test_a_mixture_is_opened_with_its_weights_and_paths_beside_the_recipe(write, checkpoint):
    path = write(MINIMAL.replace("hiyouga/geometry3k", "[{data: mine.jsonl, streaming: true}]"))
    (path.parent / "mine.jsonl").write_text('{"problem": "How many?", "answer": "3"}\n')
    given = [f"model.model_name={checkpoint}", "train.use_cpu=true", "train.max_steps=5"]
    (part,) = check_recipe(load_recipe(path, given)).train_rows.sources
    assert part.is_streamed and next(iter(part)).answer == "3"

    two = MIXTURE.replace("PATH", str(path.parent / "mine.jsonl"))
    recipe = load_recipe(path, [*given, two])
    mixed = check_recipe(recipe).train_rows
    assert (mixed.weights, mixed.names) == ((2.0, 1.0), ("mine.jsonl", "easy"))
    again = write(recipe.to_yaml(), "again.yaml")
    assert load_recipe(again).data == recipe.data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("[]", "data.train is empty"),
        ("[{weight: 2}]", "data.train[0] needs either data or task"),
        ("[{data: a, task: shapes}]", "data.train[0] needs either data or task"),
        ("[{data: a, difficulty: 2}]", "data.train[0].difficulty is not for a set"),
        ("[{task: shapes, split: test}]", "data.train[0].split is not for a task"),
        ("[{data: a, wieght: 2}]", "unknown key data.train[0].wieght; did you mean"),
        ("[shapes]", "data.train[0] is 'shapes', which has no keys; write train: [{data:"),
        ("{task: shapes, weight: 2}", "unknown key data.train.weight"),
    ],
)
def test_a_part_of_a_mixture_that_cannot_be_meant_is_named(write, data, words):
    assert words in message(write(), f"data.train={data}")


@pytest.mark.parametrize("data", ["{task: shapes}", "[{task: shapes, n: 3}]"])
def test_data_without_an_end_needs_max_steps_before_weights_are_loaded(write, checkpoint, data):
    with pytest.raises(ValueError, match=r"no known number of rows.*train\.max_steps"):
        check(write(), checkpoint, f"data.train={data}")
    assert (
        check(write(), checkpoint, f"data.train={data}", "train.max_steps=2").config.max_steps == 2
    )
    with pytest.raises(ValueError, match=r"data\.eval_split is a split of a set"):
        check(
            write(), checkpoint, f"data.train={data}", "data.eval_split=test", "train.max_steps=2"
        )


def test_columns_and_pictures_elsewhere_are_named_in_the_recipe(write, checkpoint):
    given = "{train: mine.jsonl, rename: {question: problem}, image_dir: pictures}"
    path = write(MINIMAL.replace("{train: hiyouga/geometry3k}", given), "recipes/recipe.yaml")
    (path.parent / "pictures").mkdir()
    picture(0, 40, 40).save(path.parent / "pictures" / "a.png")
    line = '{"question": "<image>How many?", "answer": "3", "images": ["a.png"]}\n'
    (path.parent / "mine.jsonl").write_text(line)
    overrides = [f"model.model_name={checkpoint}", "train.use_cpu=true"]
    assert len(check_recipe(load_recipe(path, overrides)).train_rows[0].images) == 1
    part = "data.train=[{data: mine.jsonl, rename: {question: problem}, image_dir: 3}]"
    assert "data.train[0].image_dir is 3 (a whole number)" in message(path, part)
