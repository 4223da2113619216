"""``foveal eval`` with several sources, after a stop, and with both backends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foveal.cli import app
from foveal.eval_log import AnswerLog, log_path
from foveal.eval_result import compare, read_result
from foveal.eval_sources import check_sources, judged_sources, open_sources
from foveal.evaluate import evaluate_sources
from foveal.rollout import ScriptedBackend
from foveal.testing import save_tiny, tiny
from tests.samples import picture

REWARDS = """
import os
from pathlib import Path

def length_of(completions, **columns):
    if "FAIL_FROM" in os.environ and "late" in columns["problem"][0]:
        raise RuntimeError("the judge is gone")
    return [float(len(completion) % 2) for completion in completions]
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "qwen2_5_vl")


def write_rows(folder: Path, name: str, rows: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    picture(len(rows), 56, 56).save(folder / "p.png")
    path = folder / f"{name}.jsonl"
    lines = [{"problem": f"<image>{name} {n}?", "images": ["p.png"], **r} for n, r in rows_of(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows_of(rows):
    return list(enumerate(rows))


BOX = '[{"bbox_2d":[0,0,10,10],"label":"cat"}]'


@pytest.fixture
def sets(tmp_path) -> tuple[Path, Path]:
    mixed = [{"answer": "B", "task": "choice"}, {"answer": BOX, "task": "boxes"}]
    return (
        write_rows(tmp_path / "one", "mixed", [*mixed, *mixed]),
        write_rows(tmp_path / "two", "counts", [{"answer": str(n)} for n in range(3)]),
    )


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.output.split())


def answers_of(path: Path) -> list[tuple]:
    prompts = read_result(path).prompts
    return [(p.source, p.index, p.key, p.judge, p.samples) for p in prompts]


# -- sources


def test_each_row_is_judged_by_the_reward_of_its_source_and_task(sets):
    data = [str(sets[0]), f"n={sets[1]}", "task:shapes"]
    rewards = ["exact_answer", ":boxes=boxes_iou", "one/mixed:choice=choice_letter"]
    opened = open_sources(data, rows=4)
    sources = judged_sources(opened, [*rewards, "n=number_answer"])
    check_sources(sources)
    said = {"mixed": ["(B)", BOX, "B.", "[]"], "counts": ["0", "2", "2.0"]}

    def script(prompt, n):
        found = re.match(r"(mixed|counts) (\d)", prompt.messages[0]["content"][-1]["text"])
        return [said[found[1]][int(found[2])] if found else "?"]

    model, processor = tiny("qwen2_5_vl")
    done = evaluate_sources(
        model,
        processor,
        sources,
        batch_size=3,
        backend=ScriptedBackend(script, processor.tokenizer),
    )
    judged = [(p.source, p.judge, p.samples[0].rewards) for p in done.results]
    assert [(source, judge) for source, judge, _ in judged] == [
        *[("one/mixed", "choice_letter"), ("one/mixed", "boxes_iou")] * 2,
        *[("n", "number_answer")] * 3,
        *[("shapes", "reward")] * 4,
    ]
    # "(B)" is no exact "B": only the letter's own judge says that it is right.
    assert [rewards[judge] for _, judge, rewards in judged] == [1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0]
    result = done.result({})
    summary = result.summary()
    means = {n: g["metrics"]["pass@1"]["mean"] for n, g in summary["by_source"].items()}
    assert means == {"one/mixed": 0.75, "n": pytest.approx(2 / 3), "shapes": 0}
    tasks = summary["by_source_task"]["one/mixed"]
    assert {t: g["metrics"]["score"]["mean"] for t, g in tasks.items()} == {
        "boxes": 0.5,
        "choice": 1,
    }
    assert done.accuracy == summary["overall"]["metrics"]["score"]["mean"] == pytest.approx(5 / 11)
    assert set(compare(result, result).by_source) == {"one/mixed", "n", "shapes"}


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        (
            ["exact_answer", "tow=exact_answer"],
            "no source is called so; the sources are 'one/mixed'",
        ),
        (["=exact_answer"], "for '', and no source is called so"),
        (["two/counts=exact_answer"], "--reward is missing for one/mixed"),
        (
            ["exact_answer", ":boxs=boxes_iou"],
            "'boxs', which no row has; the tasks are boxes, choi",
        ),
        ([":boxes=boxes_iou", "two/counts=exact_answer"], "no reward judges 2 rows of the task 'c"),
        (["one/mixed=exact_answer", "two/counts=exact_answer", "number_answer"], "judges nothing"),
        (["two/counts=number_wihtin(rel_tol=0.1)", "exact_answer"], "did you mean"),
    ],
)
def test_a_reward_for_nothing_and_rows_without_a_reward_are_refused(sets, rewards, words):
    options = [part for name in rewards for part in ("--reward", name)]
    data = ("--data", sets[0], "--data", sets[1])
    assert words in run("eval", "no-such-model", *data, *options, code=2)


def test_names_of_sources_are_unique_and_the_users_own_if_given(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lang=en").mkdir()
    (tmp_path / "lang=en" / "train.jsonl").write_bytes(sets[1].read_bytes())
    data = ["one", "one/mixed.jsonl", "x=one", "task:shapes", "lang=en"]
    names = [source.name for source in open_sources(data, rows=1)]
    assert names == ["one", "one/mixed", "x", "shapes", "lang_en"]
    with pytest.raises(ValueError, match=r"2 sources are called 'one'.*--data first=one"):
        open_sources(["one", "one"])


# -- going on after a stop


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_stopped(
    checkpoint, sets, tmp_path, monkeypatch
):
    late = write_rows(tmp_path / "three", "late", [{"answer": "1"}] * 3)
    (tmp_path / "judge.py").write_text(REWARDS)
    asked = ["eval", checkpoint, "--reward", f"{tmp_path / 'judge.py'}:length_of"]
    for path in (sets[1], sets[0], late):
        asked += ["--data", path]
    # Two samples at temperature 1, and a batch that ends within each source.
    asked += ["--max-tokens", 5, "--samples", 2, "--temperature", 1, "--batch-size", 2]
    for backend in ("engine", "transformers"):
        whole, stopped = tmp_path / f"{backend}.json", tmp_path / f"{backend}-stopped.json"
        ask = [*asked, "--backend", backend]
        run(*ask, "--out", whole)
        monkeypatch.setenv("FAIL_FROM", "late")
        said = run(*ask, "--out", stopped, code=2)
        assert "the judge is gone" in said and "--resume goes on from them" in said
        log = log_path(stopped)
        assert not stopped.exists() and len(log.read_text().splitlines()) == 1 + 7
        # A batch of which one row is lost, and a line that was cut off.
        lines = log.read_text().splitlines(keepends=True)
        log.write_text("".join([*lines[:7], lines[7][:30]]))
        monkeypatch.delenv("FAIL_FROM")
        assert "add --resume to go on" in run(*ask, "--out", stopped, code=2)
        assert "5 rows are answered" in run(*ask, "--out", stopped, "--resume")
        assert answers_of(stopped) == answers_of(whole) and not log.exists()
        assert read_result(stopped).summary() == read_result(whole).summary()
        assert "no row is left" in run(*ask, "--out", stopped, "--resume")
    # Draws are by row: another order of sources draws the same, another seed does not.
    other = [*asked[:4], *asked[6:8], *asked[4:6], *asked[8:]]
    run(*other, "--out", tmp_path / "order.json")
    assert sorted(answers_of(tmp_path / "order.json")) == sorted(
        answers_of(tmp_path / "engine.json")
    )
    run(*asked, "--seed", 1, "--out", tmp_path / "seed.json")
    assert answers_of(tmp_path / "seed.json") != answers_of(tmp_path / "engine.json")


def test_answers_under_other_settings_or_to_other_rows_are_not_mixed(checkpoint, sets, tmp_path):
    out, reward = tmp_path / "r.json", ("--reward", "exact_answer")
    ask = ["eval", checkpoint, "--data", sets[1], *reward, "--max-tokens", 2, "--out", out]
    run(*ask)
    whole = json.loads(out.read_text())
    settings, rows = whole["settings"], read_result(out).prompts
    changed = [*ask[:-3], 3, *ask[-2:], "--resume"]
    assert "max_tokens 2, and now it is 3" in run(*changed, code=2)
    out.unlink()
    log = AnswerLog(log_path(out), {})
    log.keep({}, settings)
    log.append(rows)
    assert "max_tokens 2, and now it is 3" in run(*changed, code=2)
    text = sets[1].read_text()
    sets[1].write_text(text.replace('"1"', '"9"'))
    assert "row 1 of two/counts is not the one" in run(*ask, "--resume", code=2)
    sets[1].write_text(text)
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join([lines[0], "{\n", *lines[2:]]))
    assert "line 2 of" in run(*ask, "--resume", code=2)
    log.path.write_text("".join(lines))
    assert "3 rows are answered" in run(*ask, "--resume") and out.exists()
    assert "--resume needs --out" in run(*ask[:-2], "--resume", code=2)


def test_other_weights_in_the_same_folder_are_another_model(sets, tmp_path):
    model, out = save_tiny(tmp_path / "model", "qwen2_5_vl"), tmp_path / "r.json"
    ask = ["eval", model, "--data", sets[1], "--reward", "exact_answer", "--max-tokens", 2]
    run(*ask, "--out", out)
    save_tiny(model, "qwen2_5_vl", seed=1)
    assert "was written with weights" in run(*ask, "--out", out, "--resume", code=2)


# -- backends


def test_both_backends_give_the_same_greedy_table(checkpoint, sets, tmp_path):
    tables, results = [], []
    for backend in ("engine", "transformers"):
        out = tmp_path / f"{backend}.json"
        ask = ("--data", sets[0], "--data", sets[1], "--task", "shapes", "--rows", 4)
        judge = ("--reward", "exact_answer", "--max-tokens", 12, "--batch-size", 3)
        said = run("eval", checkpoint, *ask, *judge, "--backend", backend, "--out", out)
        tables.append(said[said.index(" n ") :])
        results.append(answers_of(out))
    assert tables[0] == tables[1] and results[0] == results[1]
    assert len({sample.text for *_, samples in results[0] for sample in samples}) > 5
