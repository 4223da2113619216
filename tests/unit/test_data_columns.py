"""Rows of every format give the same normal row; broken ones are named."""

import json

import pytest
from PIL import Image

from foveal.data import FORMATS, detect_format, normalise_row

QUESTION = "How many items are there?"


def picture(shade: int = 0) -> Image.Image:
    return Image.new("RGB", (30, 30), (shade, shade, shade))


def shade_of(image: Image.Image) -> int:
    return image.getpixel((0, 0))[0]


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def shape(messages: list[dict]) -> list:
    """Messages with a picture's shade in the place of the picture."""
    return [
        (
            m["role"],
            [shade_of(p["image"]) if p["type"] == "image" else p["text"] for p in m["content"]],
        )
        for m in messages
    ]


ROWS = {
    "EasyR1": {"problem": f"<image>{QUESTION}", "images": [picture()], "answer": "3"},
    "verl": {
        "data_source": "hiyouga/geometry3k",
        "prompt": [{"role": "user", "content": f"<image>{QUESTION}"}],
        "images": [picture()],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"split": "train", "index": 0},
    },
    "R1-V": {"image": picture(), "problem": QUESTION, "solution": "<answer> 3 </answer>"},
    "TRL": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, text(QUESTION)]}],
        "image": picture(),
        "solution": "3",
    },
    "LLaVA": {
        "id": 1,
        "image": picture(),
        "conversations": [
            {"from": "human", "value": f"<image>{QUESTION}"},
            {"from": "gpt", "value": "3"},
        ],
        "accu_reward_method": "counting",
    },
    "ms-swift": {
        "messages": [{"role": "user", "content": f"<image>{QUESTION}"}],
        "images": [picture()],
        "solution": "<answer>3</answer>",
    },
    "OpenRLHF": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, text(QUESTION)]}],
        "images": [picture()],
        "label": "3",
        "datasource": "clevr",
    },
}


def test_there_is_a_row_of_every_format():
    assert set(ROWS) == {known.name for known in FORMATS}


@pytest.mark.parametrize("name", ROWS)
def test_format_is_detected_and_normalised(name):
    assert detect_format(ROWS[name]) == name
    row = normalise_row(ROWS[name], 0)
    assert shape(row.messages) == [("user", [0, QUESTION])]
    assert row.answer == "3"
    assert [image.size for image in row.images] == [(30, 30)]
    assert row.messages[0]["content"][0]["image"] is row.images[0]


@pytest.mark.parametrize("name", ROWS)
def test_every_column_but_prompt_and_pixels_reaches_the_rewards_as_it_was(name):
    given = ROWS[name]
    columns = normalise_row(given, 0).columns
    kept = {key: value for key, value in given.items() if key not in ("prompt", "image", "images")}
    assert {key: columns[key] for key in kept} == kept
    assert "prompt" not in columns
    assert [shade_of(image) for image in columns["images"]] == [0]
    assert str(columns["answer"]) == "3"
    assert ("image" in columns) == ("image" in given)


def test_single_image_column_stays_a_single_picture_as_in_trl():
    columns = normalise_row(ROWS["R1-V"], 0).columns
    assert shade_of(columns["image"]) == 0
    listed = normalise_row({**ROWS["LLaVA"], "image": [picture()]}, 0).columns
    assert [shade_of(image) for image in listed["image"]] == [0]


def test_an_answer_column_keeps_its_type_and_the_answer_is_text():
    row = normalise_row({"problem": "6 / 2?", "answer": 3}, 0)
    assert (row.answer, row.columns["answer"]) == ("3", 3)
    several = normalise_row({"problem": "both roots?", "answer": ["1", "2"]}, 0)
    assert json.loads(several.answer) == ["1", "2"]


def test_answer_wins_over_a_worked_solution():
    row = {"problem": "6 / 2?", "solution": "6 / 2 is 3.", "answer": "3"}
    assert detect_format(row) == "EasyR1"
    assert normalise_row(row, 0).answer == "3"


def test_row_without_answer_has_none_and_no_answer_column():
    row = normalise_row({"problem": QUESTION, "images": [picture()]}, 0)
    assert row.answer is None
    assert "answer" not in row.columns


def test_none_columns_of_joined_tables_do_not_decide_the_format():
    joined = {**ROWS["EasyR1"], "prompt": None, "messages": None, "label": None, "image": None}
    assert detect_format(joined) == "EasyR1"
    assert normalise_row(joined, 0).answer == "3"


def test_pictures_go_where_their_markers_are_in_order():
    row = normalise_row(
        {"problem": "A: <image> B: <image>\nsame?", "images": [picture(10), picture(20)]}, 0
    )
    assert shape(row.messages) == [("user", ["A: ", 10, " B: ", 20, "\nsame?"])]
    assert [shade_of(image) for image in row.images] == [10, 20]


def test_without_markers_pictures_go_before_the_first_user_text():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "same?"}]
    row = normalise_row({"prompt": prompt, "images": [picture(10), picture(20)]}, 0)
    assert shape(row.messages) == [("system", ["Be brief."]), ("user", [10, 20, "same?"])]
    plain = normalise_row({"prompt": "same?", "image": picture(10)}, 0)
    assert shape(plain.messages) == [("user", [10, "same?"])]


def test_pictures_inside_messages_are_used_where_they_stand():
    content = [{"type": "image", "image": picture(10)}, text("left of"), {"type": "image"}]
    row = normalise_row({"prompt": [{"role": "user", "content": content}], "image": picture(20)}, 0)
    assert shape(row.messages) == [("user", [10, "left of", 20])]
    assert [shade_of(image) for image in row.images] == [10, 20]


def test_keys_that_arrow_filled_with_none_are_no_payload():
    content = [
        {"type": "image", "text": None, "image": None},
        {"type": "text", "text": "same?", "image": None},
    ]
    row = normalise_row({"prompt": [{"role": "user", "content": content}], "image": picture(5)}, 0)
    assert shape(row.messages) == [("user", [5, "same?"])]


def test_the_rows_own_messages_are_not_changed():
    content = [{"type": "image"}, text("same?")]
    normalise_row({"prompt": [{"role": "user", "content": content}], "image": picture()}, 0)
    assert content == [{"type": "image"}, text("same?")]


def test_text_only_row_is_allowed():
    row = normalise_row({"prompt": "2 + 2?", "answer": "4"}, 0)
    assert (shape(row.messages), row.images) == ([("user", ["2 + 2?"])], [])
    assert row.columns["images"] == []


def test_numpy_columns_of_pandas_are_lists():
    import numpy as np

    prompt = np.array([{"role": "user", "content": "<image>same?"}], dtype=object)
    images = np.array([picture(9), None], dtype=object)[:1]
    assert shape(normalise_row({"prompt": prompt, "images": images}, 0).messages) == [
        ("user", [9, "same?"])
    ]


def test_trailing_assistant_message_is_the_answer_and_not_in_the_prompt():
    chat = [
        {"role": "user", "content": "first?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "second?"},
        {"role": "assistant", "content": "so <answer> 2 </answer>"},
    ]
    row = normalise_row({"messages": chat}, 0)
    assert [m["role"] for m in row.messages] == ["user", "assistant", "user"]
    assert (row.answer, row.columns["answer"]) == ("2", "2")
    graded = normalise_row({"messages": chat, "solution": "5"}, 0)
    assert (len(graded.messages), graded.answer) == (3, "5")


def test_system_prompt_is_added_once():
    row = normalise_row(ROWS["EasyR1"], 0, system_prompt="Think first.")
    assert shape(row.messages) == [("system", ["Think first."]), ("user", [0, QUESTION])]
    own = {"prompt": [{"role": "system", "content": "Mine."}, {"role": "user", "content": "?"}]}
    assert shape(normalise_row(own, 0, system_prompt="Think first.").messages)[0] == (
        "system",
        ["Mine."],
    )


def test_relative_picture_paths_start_at_base_dir(tmp_path):
    picture(40).save(tmp_path / "a.png")
    row = normalise_row({"problem": "?", "image": "a.png"}, 0, base_dir=tmp_path)
    assert shade_of(row.images[0]) == 40
    content = [{"type": "image", "path": "a.png"}, text("?")]
    inside = {"prompt": [{"role": "user", "content": content}]}
    assert shade_of(normalise_row(inside, 0, base_dir=tmp_path).images[0]) == 40


def user(content) -> list[dict]:
    return [{"role": "user", "content": content}]


BROKEN = {
    "more markers": (
        {"problem": "<image><image>same?", "images": [picture()]},
        r"2 <image> marker\(s\).* 1 picture\(s\).*Write one <image>",
    ),
    "fewer markers": (
        {"problem": "<image>same?", "images": [picture(), picture()]},
        r"1 <image> marker\(s\).* 2 picture\(s\)",
    ),
    "marker without pictures": (
        {"problem": "<image>same?"},
        r"1 <image> marker\(s\).* 0 picture\(s\)",
    ),
    "pictures given twice": (
        {"prompt": user([{"type": "image", "image": picture()}]), "images": [picture()]},
        r"0 <image> marker\(s\).* 1 picture\(s\)",
    ),
    "unknown columns": (
        {"question": "?", "img": picture()},
        r"\['img', 'question'\].*prompt, images, label \(OpenRLHF\).*images, answer \(EasyR1\)",
    ),
    "empty question": ({"problem": " ", "images": [picture()]}, "'problem' asks nothing"),
    "no user": ({"messages": [{"role": "system", "content": "x"}]}, "'messages' asks nothing"),
    "no user for a picture": (
        {"messages": [{"role": "system", "content": "x"}], "image": picture()},
        "no user message",
    ),
    "empty conversation": ({"messages": []}, r"'messages' is \[\]"),
    "reference alone": ({"messages": [{"role": "assistant", "content": "3"}]}, "asks nothing"),
    "prompt with the policy's turn": (
        {"prompt": [*user("?"), {"role": "assistant", "content": "3"}]},
        "'prompt' ends with an assistant message.*rename",
    ),
    "video": ({"problem": "?", "videos": ["a.mp4"]}, "'videos' is filled.*only pictures"),
    "video part": ({"prompt": user([{"type": "video"}])}, "message 0 has a part of type 'video'"),
    "unknown role": ({"prompt": [{"role": "bot", "content": "?"}]}, "role 'bot'. Known roles"),
    "unfilled boxes": (
        {"messages": user("find <ref-object>"), "objects": {"ref": [], "bbox": []}},
        r"1 <ref-object> placeholder\(s\), objects.ref has 0 value\(s\)",
    ),
    "unreadable picture": ({"problem": "?", "image": b"x"}, "<1 bytes> cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_row_is_named_with_its_remedy(name):
    row, expected = BROKEN[name]
    with pytest.raises(ValueError, match=rf"^row 41: .*{expected}"):
        normalise_row(row, 41)


@pytest.mark.parametrize("prompt", [7, ["hello"], user(3)])
def test_wrong_type_is_named(prompt):
    with pytest.raises((TypeError, ValueError), match=r"^row 2: column 'prompt'.*(int|str|7)"):
        normalise_row({"prompt": prompt}, 2)


def test_empty_videos_column_is_no_video():
    assert normalise_row({**ROWS["EasyR1"], "videos": []}, 0).answer == "3"
