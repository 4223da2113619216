"""Every planted defect is found with its row number; sound data is left in peace."""

from __future__ import annotations

import json
import re

import pytest

from foveal.data import PromptBuilder, load_rows
from foveal.inspection import check_rows, inspect_rows, quartiles, reads_answer
from foveal.models.load import load_processor
from foveal.report.inspection import evenly, facts, findings_table, write_page
from foveal.rewards import exact_answer, number_within, soft_overlong, think_answer_format
from foveal.testing import TINY_FAMILIES, save_tiny, tiny
from tests.samples import picture


def sound(number: int) -> dict:
    return {"problem": f"<image>{number}?", "images": [f"{number}.png"], "answer": str(number)}


DEFECTS = {
    3: ({"problem": "<image><image>3?"}, "row", "2 <image> marker(s), the row has 1 picture(s)"),
    4: ({"answer": "  "}, "answer", "it has no answer"),
    5: ({"images": ["broken.png"]}, "picture", "cannot be read as a picture"),
    6: ({"images": ["nowhere.png"]}, "picture", "does not exist"),
    7: ({"problem": "<image>1?", "images": ["1.png"], "answer": "1"}, "duplicate", "same as row 1"),
    8: ({"problem": "<image>2?", "images": ["2.png"]}, "contradiction", "what row 2 asks"),
    9: ({"images": ["small.png"]}, "picture", "each side must be at least"),
    10: ({"problem": None}, "row", "none is a filled question column"),
    11: ({"answer": "<answer>3"}, "answer", "holds no answer"),
    12: ({"problem": "<image>12? <|image_pad|>"}, "row", "would read as part of a picture"),
    13: ({"problem": "<image>" + "13? " * 200}, "length", "training drops it"),
    14: ({"video": "film.mp4"}, "row", "only pictures are supported"),
}
WARNINGS = {"duplicate", "contradiction", "length"}


@pytest.fixture
def file(tmp_path):
    for number in range(16):
        picture(number, 56 + number, 56).save(tmp_path / f"{number}.png")
    picture(99, 56, 56).convert("RGBA").save(tmp_path / "0.png")
    picture(99, 56, 12).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "1.png").read_bytes()[:400])
    rows = [{**sound(n), **DEFECTS.get(n, ({},))[0]} for n in range(16)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def builder_of(family: str, bound: int | None = None) -> PromptBuilder:
    model, processor = tiny(family)
    return PromptBuilder(
        processor, image_token_id=model.config.image_token_id, max_prompt_length=bound
    )


@pytest.fixture(scope="module")
def builder():
    return builder_of("qwen2_5_vl", 300)


def test_each_planted_defect_is_found_in_its_row_and_no_other(file, builder):
    seen = inspect_rows(load_rows(file), builder)
    found = {finding.row: finding for finding in seen.findings}
    assert list(found) == sorted(DEFECTS) and len(found) == len(seen.findings)
    for number, (_, kind, words) in DEFECTS.items():
        assert found[number].kind == kind and words in found[number].reason, number
        assert found[number].is_error == (kind not in WARNINGS)
        assert not found[number].reason.startswith("row")
    assert (seen.broken, seen.missing, seen.too_long, seen.would_fail) == (2, 1, 1, True)
    assert seen.formats == {"EasyR1": 15, "unknown": 1}
    assert seen.stored["PNG RGBA"] == 1
    assert seen.columns["problem"] == {"str": 15, "missing": 1}
    with pytest.raises(ValueError, match=r"8 of 16 rows .*row 3: .*and 3 more"):
        check_rows(load_rows(file), [exact_answer])


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_sound_rows_count_right_and_fail_nothing(file, family):
    builder = builder_of(family)
    good = [n for n in range(16) if n not in DEFECTS]
    source = load_rows(file)
    rows = [{**sound(n), "images": [str(file.parent / f"{n}.png")]} for n in good]
    seen = inspect_rows(load_rows(rows), builder)
    assert seen.findings == [] and not seen.would_fail
    assert sorted(seen.sizes)[-1] == (56 + 15, 56)
    prompts = [builder.build(source[n], n) for n in good]
    assert seen.tokens == [len(prompt.ids) for prompt in prompts]
    assert seen.picture_tokens == [prompt.images[0].num_tokens for prompt in prompts]
    check_rows(load_rows(rows), [exact_answer])


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_processor_loaded_alone_comes_with_the_models_picture_token(family, tmp_path):
    model, _ = tiny(family)
    _, image_token_id = load_processor(save_tiny(tmp_path, family))
    assert image_token_id == model.config.image_token_id


def texts(count: int, **columns) -> list[dict]:
    return [{"problem": f"{n}?", **{k: v(n) for k, v in columns.items()}} for n in range(count)]


def whole(rows, builder=None) -> list[tuple[str, bool]]:
    found = inspect_rows(load_rows(rows), builder).findings
    return [(finding.kind, finding.is_error) for finding in found if finding.row is None]


def test_what_no_single_row_shows_is_found(builder):
    constant = [("constant", False)]
    assert whole(texts(20, answer=lambda n: "yes" if n < 14 else "no")) == constant
    assert whole(texts(20, answer=lambda n: "yes" if n < 11 else "no")) == []
    assert whole(texts(5, answer=lambda n: "yes")) == []
    # Half of all answers, but every one of its task.
    mixed = texts(20, answer=lambda n: str(max(n, 9)), task=lambda n: "ab"[n > 9])
    assert whole(mixed) == constant
    assert whole(texts(2, answer=str, completions=str)) == [("columns", True)]
    assert whole(texts(3, colour=str)) == [("answer", False)]
    long = [{"problem": f"{n} " * 400, "answer": str(n)} for n in range(2)]
    assert ("length", True) in whole(long, builder)


def test_an_answer_is_asked_for_only_where_the_reward_reads_it():
    assert reads_answer(exact_answer) and reads_answer(number_within(rel_tol=0.1))
    assert not reads_answer(think_answer_format) and not reads_answer(soft_overlong(9, 3))
    assert not reads_answer(lambda completions, colour: [])
    check_rows(load_rows(texts(2, colour=str)), [think_answer_format])
    with pytest.raises(ValueError, match="row 0: it has no answer"):
        check_rows(load_rows(texts(2, colour=str)), [think_answer_format, exact_answer])
    # Boxes as a list are an answer, though no text.
    check_rows(load_rows(texts(2, answer=lambda n: [{"bbox_2d": [0, 0, 1, n]}])), [exact_answer])


def test_a_reward_that_would_not_believe_the_rows_own_answer_is_found():
    def fails_on_2(completions, answer, **columns):
        if answer == ["2"]:
            raise RuntimeError("two")
        return [1.0]

    rows = load_rows(
        texts(4, answer=lambda n: "B" if n == 1 else "<answer>3" if n == 3 else str(n))
    )
    rewards = {0: [number_within(rel_tol=0.1)], 1: [number_within(rel_tol=0.1)], 2: [fails_on_2]}
    seen = inspect_rows(rows, rewards_of=lambda row, index: rewards.get(index, []))
    found = {f.row: (f.is_error, f.reason) for f in seen.findings if f.kind == "reward"}
    assert found.keys() == {1, 2} and "says nothing about it" in found[1][1]
    assert (found[1][0], found[2][0]) == (False, True) and "RuntimeError: two" in found[2][1]
    low = inspect_rows(rows, rewards_of=lambda row, index: [think_answer_format])
    assert "gives the row's own answer 0, not 1" in low.findings[0].reason


def test_the_page_holds_pictures_and_text_and_nothing_that_the_data_could_run(file, tmp_path):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["problem"] = "<image><script>alert(1)</script>"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, page = load_rows(file), tmp_path / "pages" / "page.html"
    write_page(page, inspect_rows(source), source)
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert len(re.findall(r'<img src="data:image/jpeg;base64,[\w+/=]{100,}"', text)) == 10
    assert "http" not in text and "does not exist" in text and "(cannot be read)" in text
    assert "<b>15</b>" in text
    assert list(page.parent.iterdir()) == [page]


def test_findings_with_the_same_words_share_a_line_and_errors_come_first():
    rows = texts(9, answer=lambda n: "" if n > 6 else str(n))
    rows[1] = rows[0]
    table = findings_table(inspect_rows(load_rows(rows)))
    assert [list(map(str, column.cells)) for column in table.columns][:2] == [
        ["error", "warning"],
        ["7, 8", "1"],
    ]
    assert ("rows", "9") in facts(inspect_rows(load_rows(rows)))


def test_quartiles_and_even_rows_stay_inside():
    assert quartiles(list(range(1, 101))) == (1, 50, 95, 100)
    assert quartiles([4]) == (4, 4, 4, 4)
    assert evenly(2, 24) == [0, 1] and evenly(100, 3) == [0, 49, 99]
