"""Rows exactly as other frameworks store them are read, and are written so that they read back."""

from __future__ import annotations

import base64
import io
import json

import datasets
import pytest
from PIL import Image

from foveal.data import (
    FORMATS,
    FeedSettings,
    PromptBuilder,
    detect_format,
    export_row,
    load_rows,
    normalise_row,
    open_feed,
    write_rows,
)
from foveal.testing import tiny

NAMES = [known.name for known in FORMATS]


def picture(shade: int, size=(60, 40)) -> Image.Image:
    return Image.new("RGB", size, (shade, 0, 0))


def png(shade: int) -> bytes:
    written = io.BytesIO()
    picture(shade).save(written, format="PNG")
    return written.getvalue()


ASKED = "In triangle $ABC$, find x."
TAGS = "Output the final answer in <answer> </answer> tags."
# name -> (row as stored, question, answer, shades of its pictures); paths are in base_dir.
STORED = {
    # hiyouga/geometry3k, parquet
    "EasyR1": (
        {
            "images": [{"bytes": png(1), "path": None}],
            "problem": f"<image>{ASKED}",
            "answer": "48",
        },
        ASKED,
        "48",
        [1],
    ),
    # verl examples/data_preprocess/geo3k.py, parquet
    "verl": (
        {
            "data_source": "hiyouga/geometry3k",
            "prompt": [{"content": f"<image>{ASKED}", "role": "user"}],
            "images": [{"bytes": png(2), "path": None}],
            "ability": "math",
            "reward_model": {"ground_truth": "48", "style": "rule"},
            "extra_info": {"answer": "48", "index": 7, "question": ASKED, "split": "train"},
        },
        ASKED,
        "48",
        [2],
    ),
    # leonardPKU/clevr_cogen_a_train, parquet
    "R1-V": (
        {
            "image": {"bytes": png(3), "path": "CLEVR_trainA_000000.png"},
            "problem": "How many items are there in the image?",
            "solution": "<answer> 3 </answer>",
        },
        "How many items are there in the image?",
        "3",
        [3],
    ),
    # VLM-R1 REC, jsonl
    "LLaVA": (
        {
            "id": 1,
            "image": "pictures/4.png",
            "conversations": [
                {"from": "human", "value": f"<image>Please provide the bounding box. {TAGS}"},
                {"from": "gpt", "value": "[10, 20, 30, 40]"},
            ],
            "accu_reward_method": "iou",
        },
        f"Please provide the bounding box. {TAGS}",
        "[10, 20, 30, 40]",
        [4],
    ),
    # VLM-R1 with several pictures
    "LLaVA, pictures": (
        {
            "id": 2,
            "image": ["pictures/4.png", "pictures/5.png"],
            "conversations": [
                {"from": "human", "value": "<image><image>Which one?"},
                {"from": "gpt", "value": "second"},
            ],
        },
        "Which one?",
        "second",
        [4, 5],
    ),
    # ms-swift, jsonl
    "ms-swift": (
        {
            "messages": [{"role": "user", "content": f"<image>{ASKED}"}],
            "images": ["pictures/5.png"],
            "solution": "<answer> 48 </answer>",
        },
        ASKED,
        "48",
        [5],
    ),
    # OpenRLHF, jsonl: chat with parts, pictures as base64
    "OpenRLHF": (
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": ASKED}],
                }
            ],
            "images": [f"data:image/png;base64,{base64.b64encode(png(6)).decode()}"],
            "label": "48",
            "datasource": "geo3k",
        },
        ASKED,
        "48",
        [6],
    ),
    # the same with the marker in a plain text
    "OpenRLHF, text": (
        {"prompt": f"<image>{ASKED}", "images": [png(7)], "label": "48"},
        ASKED,
        "48",
        [7],
    ),
    # TRL, lmms-lab/multimodal-open-r1-8k-verified made conversational
    "TRL": (
        {
            "prompt": [
                {"role": "system", "content": [{"type": "text", "text": "Think first."}]},
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "text", "text": ASKED}],
                },
            ],
            "image": picture(8),
            "solution": "48",
        },
        ASKED,
        "48",
        [8],
    ),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for shade in (4, 5):
        (tmp_path / f"pictures/{shade}.png").write_bytes(png(shade))
    return tmp_path


def shades(row):
    return [image.getpixel((0, 0))[0] for image in row.images]


@pytest.mark.parametrize("name", STORED)
def test_a_row_as_its_framework_stores_it_is_read(folder, name):
    stored, question, answer, seen = STORED[name]
    assert detect_format(stored) == name.partition(",")[0]
    row = normalise_row(stored, 0, base_dir=folder)
    assert (row.answer, shades(row)) == (answer, seen)
    parts = row.messages[-1]["content"]
    assert [part["type"] for part in parts] == ["image"] * len(seen) + ["text"]
    assert parts[-1]["text"] == question


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("name", STORED)
def test_a_row_of_any_format_is_written_in_any_other_and_reads_back(folder, name, target):
    row = normalise_row(STORED[name][0], 0, base_dir=folder)
    if name == "TRL" and target in ("EasyR1", "R1-V"):
        with pytest.raises(ValueError, match=r"one question a row.*messages of system, user"):
            export_row(row, target)
        return
    written = export_row(row, target)
    assert detect_format(written) == target
    back = normalise_row(written, 0)
    assert back.messages == row.messages and back.answer == row.answer
    carried = ("accu_reward_method", "datasource", "extra_info")
    assert {k: back.columns.get(k) for k in carried if k in row.columns} == {
        k: row.columns[k] for k in carried if k in row.columns
    }


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("target", NAMES)
def test_a_file_of_each_format_reads_back(tmp_path, target, kind):
    rows = [normalise_row(STORED["EasyR1"][0], 0), normalise_row(STORED["verl"][0], 1)]
    path = tmp_path / f"new/{target}.{kind}"
    assert write_rows([export_row(row, target) for row in rows], path) == 2
    back = load_rows(path)
    for place, row in enumerate(rows):
        assert back[place].messages == row.messages and back[place].answer == row.answer


def test_what_cannot_be_written_is_named(tmp_path):
    row = normalise_row(STORED["EasyR1"][0], 0)
    with pytest.raises(ValueError, match="there is no format 'Verl'; known are"):
        export_row(row, "Verl")
    with pytest.raises(ValueError, match="no rows to write"):
        write_rows([], tmp_path / "a.jsonl")


# -- ms-swift's objects

OBJECTS = {
    "messages": [
        {"role": "user", "content": "<image>Is the <ref-object> at <bbox> left of <bbox>?"},
        {"role": "assistant", "content": "<bbox>"},
    ],
    "objects": {
        "ref": ["cat"],
        "bbox": [[6, 4, 30, 20], [33, 2], [0, 0, 60, 40]],
        "bbox_type": "real",
    },
    "images": [picture(9)],
}


def test_objects_fill_the_text_and_the_reference():
    row = normalise_row(OBJECTS, 0)
    asked = "Is the cat at [6, 4, 30, 20] left of [33, 2]?"
    assert row.messages[-1]["content"][-1]["text"] == asked
    assert json.loads(row.answer or "") == [[0, 0, 60, 40]]
    assert row.columns["coordinates"] == "original"
    shares = {**OBJECTS["objects"], "bbox_type": "norm1"}
    assert normalise_row({**OBJECTS, "objects": shares}, 0).columns["coordinates"] == "0-1"


@pytest.mark.parametrize(
    ("space", "shown"),
    [
        ("original", "[6, 4, 30, 20] left of [33, 2]"),
        ("0-1000", "[100, 100, 500, 500] left of [550, 50]"),
        ("0-1", "[0.1, 0.1, 0.5, 0.5] left of [0.55, 0.05]"),
        (None, "[6, 4, 30, 20] left of [33, 2]"),
    ],
)
def test_a_box_in_a_question_is_shown_in_the_models_coordinates(space, shown):
    model, processor = tiny("qwen3_vl")
    builder = PromptBuilder(
        processor, image_token_id=model.config.image_token_id, answer_coordinates=space
    )
    row = normalise_row(OBJECTS, 0)
    prompt = builder.build(row, 0)
    assert f"Is the cat at {shown}?" in processor.tokenizer.decode(prompt.ids)
    assert prompt.messages[-1]["content"][-1]["text"] == f"Is the cat at {shown}?"
    assert builder.length(row, 0) == len(prompt.ids)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[1, 2, 3, 4]] * 2}, r"3 <bbox> placeholder\(s\), objects.bbox has 2 value"),
        ({"bbox_type": "pixels"}, "objects.bbox_type is 'pixels'"),
        ({"bbox": [[1, 2, 3], [1, 2], [3, 4]]}, r"objects.bbox holds \[1, 2, 3\]"),
    ],
)
def test_objects_that_do_not_fit_are_named(objects, message):
    with pytest.raises(ValueError, match=f"^row 5: .*{message}"):
        normalise_row({**OBJECTS, "objects": {**OBJECTS["objects"], **objects}}, 5)


# -- other column names

RENAME = {"question": "problem", "img": "image"}


@pytest.mark.parametrize("kind", ["list", "Dataset", "IterableDataset", "iterator"])
def test_columns_of_other_names_are_renamed_where_they_are_read(folder, kind):
    rows = [{"question": f"<image>{i}?", "img": "4.png", "answer": str(i)} for i in range(9)]
    stored = datasets.Dataset.from_list(rows)
    made = {
        "list": lambda: rows,
        "Dataset": lambda: stored,
        "IterableDataset": stored.to_iterable_dataset,
        "iterator": lambda: iter(rows),
    }[kind]

    def opened():
        return load_rows(made(), rename=RENAME, image_dir=folder / "pictures")

    first = next(iter(opened()))
    assert (first.messages[0]["content"][1]["text"], shades(first)) == ("0?", [4])
    settings = FeedSettings(buffer=2)
    feed = open_feed(opened(), settings)
    drawn = [feed.draw().row.answer for _ in range(3)]
    resumed = open_feed(opened(), settings)
    resumed.load_state_dict(feed.state_dict())
    drawn += [resumed.draw().row.answer for _ in range(6)]
    assert sorted(drawn) == [str(i) for i in range(9)]
    with pytest.raises(ValueError, match="two columns would get one name"):
        load_rows(rows, rename={"question": "problem", "answer": "problem"})
