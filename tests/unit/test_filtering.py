"""The filter keeps what a policy solves sometimes, and loses nothing of a row."""

from __future__ import annotations

import datasets
import pytest

from foveal.data import load_rows
from foveal.filtering import MeasuredRows, measure_rows, write_kept
from foveal.rollout import ScriptedBackend
from foveal.testing import tiny
from tests.samples import picture

SAID = {"zero": "yes yes yes yes", "half": "yes no no yes", "one": "no no no no"}
ROWS = [{"problem": f"{name}?", "answer": "no"} for name in SAID]


@pytest.fixture(scope="module")
def policy():
    return tiny("qwen3_vl")


def says(prompt, n):
    asked = next(part["text"] for part in prompt.messages[-1]["content"] if "text" in part)
    return SAID[asked.rstrip("?")].split()[:n]


def measured(policy, rows=ROWS, **given):
    model, processor = policy
    backend = ScriptedBackend(says, processor.tokenizer)
    return measure_rows(model, processor, rows, "exact_answer", n=4, backend=backend, **given)


def test_rows_solved_never_and_always_are_dropped_and_the_bounds_move(policy):
    found = measured(policy)
    assert found.pass_rates == (0.0, 0.5, 1.0)
    assert found.kept == [1]
    assert found.counts() == {"kept": 1, "never": 1, "always": 1, "between": 0, "unscored": 0}
    narrow = measured(policy, below=0.5)
    assert narrow.kept == [] and narrow.counts()["between"] == 1
    with pytest.raises(ValueError, match="none of the 3 rows is kept"):
        write_kept(narrow, "nowhere.jsonl")
    with pytest.raises(ValueError, match="0 <= above < below"):
        measured(policy, above=0.5, below=0.5)


def test_rows_that_the_reward_says_nothing_about_are_counted_apart(policy):
    model, processor = policy
    backend = ScriptedBackend(says, processor.tokenizer)
    found = measure_rows(
        model,
        processor,
        ROWS,
        lambda completions, **_: [None] * len(completions),
        n=2,
        backend=backend,
    )
    assert found.pass_rates == (None,) * 3 and found.counts()["unscored"] == 3


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("stored", ["PIL", "Image feature", "path"])
def test_a_kept_row_reads_as_before_from_another_folder(tmp_path, kind, stored):
    made = [
        {"problem": f"<image>{i}?", "images": [picture(i, 40, 40)], "answer": str(i)}
        for i in range(3)
    ]
    if stored == "Image feature":
        features = datasets.Features(
            problem=datasets.Value("string"),
            images=[datasets.Image()],
            answer=datasets.Value("string"),
        )
        source = load_rows(datasets.Dataset.from_list(made, features=features))
    elif stored == "PIL":
        source = load_rows(made)
    else:
        (tmp_path / "set/pictures").mkdir(parents=True)
        lines = []
        for i, row in enumerate(made):
            row["images"][0].save(tmp_path / f"set/pictures/{i}.png")
            lines.append(
                f'{{"problem": "<image>{i}?", "images": ["pictures/{i}.png"], "answer": "{i}"}}'
            )
        (tmp_path / "set/train.jsonl").write_text("\n".join(lines))
        source = load_rows(tmp_path / "set")
    found = MeasuredRows(source, (0.0, 0.25, 0.75), 0.0, 1.0)
    path = tmp_path / "other" / f"kept.{kind}"
    assert write_kept(found, path) == 2
    kept = load_rows(path)
    assert len(kept) == 2
    for place, index in enumerate((1, 2)):
        before, after = source[index], kept[place]
        assert after.columns["pass_rate"] == found.pass_rates[index]
        assert after.messages == before.messages and after.answer == before.answer
        assert after.images[0].tobytes() == before.images[0].tobytes()


def test_another_extension_is_refused(tmp_path):
    found = MeasuredRows(load_rows(ROWS), (0.5, 0.5, 0.5), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"ends with '\.csv'"):
        write_kept(found, tmp_path / "kept.csv")
