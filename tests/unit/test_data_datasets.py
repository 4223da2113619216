"""Every kind of data set opens to the same rows, lazily; what cannot be opened is named."""

import csv
import io
import json

import datasets
import pytest
from PIL import Image

from foveal.data import load_rows


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int = 3) -> list[dict]:
    return [
        {
            "problem": f"<image>Question {i}?",
            "images": [{"bytes": png(i), "path": None}],
            "answer": str(i),
        }
        for i in range(count)
    ]


def stored(count: int = 3) -> datasets.Dataset:
    kind = {"problem": datasets.Value("string"), "answer": datasets.Value("string")}
    # The class of a list of features is datasets' own business (Sequence in 3, List in 4).
    features = datasets.Features({**kind, "images": [datasets.Image()]})
    return datasets.Dataset.from_list(rows(count), features=features)


def contents(source) -> list[tuple]:
    return [
        (row.messages[-1]["content"][-1]["text"], row.images[0].getpixel((0, 0))[0], row.answer)
        for row in source
    ]


def expected(*numbers: int) -> list[tuple]:
    return [(f"Question {i}?", i, str(i)) for i in numbers]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_paths(folder, name: str, count: int = 3, first: int = 0):
    """A table of relative paths beside its pictures."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    table = []
    for i in range(first, first + count):
        (folder / "pictures" / f"{i}.png").write_bytes(png(i))
        table.append({"problem": f"Question {i}?", "image": f"pictures/{i}.png", "answer": str(i)})
    if name.endswith(".csv"):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
    elif name.endswith(".json"):
        (folder / name).write_text(json.dumps(table))
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in table))
    return folder / name


def test_objects_are_passed_through():
    every = {
        "list": rows(),
        "Dataset": stored(),
        "shuffled back": stored().select([2, 1, 0]).select([2, 1, 0]),
        "DatasetDict": datasets.DatasetDict(train=stored(), test=stored(1)),
        "only split": datasets.DatasetDict(test=stored()),
        "with_transform": stored().with_transform(lambda batch: batch),
        "IterableDataset": stored().to_iterable_dataset(),
    }
    for name, spec in every.items():
        assert contents(load_rows(spec)) == expected(0, 1, 2), name


def test_split_of_a_dataset_dict_is_chosen():
    spec = datasets.DatasetDict(train=stored(2), validation=stored(1))
    assert len(load_rows(spec, split="validation")) == 1
    assert len(load_rows(spec)) == 2


def test_parquet_file_keeps_its_image_feature(tmp_path):
    stored().to_parquet(tmp_path / "data.parquet")
    source = load_rows(tmp_path / "data.parquet")
    assert len(source) == 3
    assert contents(source) == expected(0, 1, 2)
    assert source[2].answer == "2"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
@pytest.mark.parametrize("streaming", [False, True])
def test_text_files_resolve_pictures_beside_them(tmp_path, name, streaming):
    source = load_rows(str(write_paths(tmp_path / "set", name)), streaming=streaming)
    assert source.is_streamed == streaming
    assert contents(source) == expected(0, 1, 2)
    assert contents(source) == expected(0, 1, 2), "a second pass gives the same"


def test_json_lines_called_json_are_read(tmp_path):
    path = write_paths(tmp_path, "rows.jsonl").rename(tmp_path / "rows.json")
    assert contents(load_rows(path)) == expected(0, 1, 2)


def test_rows_of_one_file_may_differ_in_their_types(tmp_path):
    one = {"messages": [{"role": "user", "content": "a"}], "solution": "007"}
    two = {"messages": [{"role": "user", "content": [{"type": "text", "text": "b"}]}], "id": [1]}
    path = tmp_path / "mixed.jsonl"
    path.write_text(f"{json.dumps(one)}\n\n{json.dumps(two)}\n")
    source = load_rows(path)
    assert [row.messages[0]["content"][0]["text"] for row in source] == ["a", "b"]
    assert source[0].answer == "007"
    assert source[1].columns["id"] == [1]


def test_streamed_parquet_is_read_in_order_without_length(tmp_path):
    stored().to_parquet(tmp_path / "data.parquet")
    source = load_rows(tmp_path / "data.parquet", streaming=True)
    assert contents(source) == expected(0, 1, 2)
    for ask in (lambda: len(source), lambda: source[0]):
        with pytest.raises(TypeError, match=r"streamed.*streaming=False"):
            ask()


def test_folder_splits_are_told_by_file_names(tmp_path):
    stored(3).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    stored(2).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    stored(1).to_parquet(tmp_path / "val.parquet")
    assert contents(load_rows(tmp_path)) == expected(0, 1, 2, 0, 1)
    assert len(load_rows(tmp_path, split="validation")) == 1
    with pytest.raises(ValueError, match=r"no split 'test'\. Choose one of train, validation"):
        load_rows(tmp_path, split="test")


def test_folder_splits_are_told_by_folder_names(tmp_path):
    write_paths(tmp_path / "train", "rows.jsonl")
    write_paths(tmp_path / "test", "rows.jsonl", count=1, first=7)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "rows.jsonl").write_text("not ours")
    assert contents(load_rows(tmp_path)) == expected(0, 1, 2)
    assert contents(load_rows(tmp_path, split="test")) == expected(7)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_image_folder_takes_pictures_from_file_name(tmp_path, name):
    path = write_paths(tmp_path, name)
    path.write_text(path.read_text().replace("image", "file_name", 1 if "csv" in name else -1))
    (tmp_path / "readme.json").write_text("{}")
    row = load_rows(tmp_path)[1]
    assert contents([row]) == expected(1)
    assert row.columns["file_name"] == "pictures/1.png"


def test_saved_to_disk_opens(tmp_path):
    stored().save_to_disk(tmp_path / "one")
    datasets.DatasetDict(test=stored(1)).save_to_disk(tmp_path / "several")
    assert contents(load_rows(tmp_path / "one", split="train")) == expected(0, 1, 2)
    assert contents(load_rows(tmp_path / "several")) == expected(0)


@pytest.mark.parametrize("split, numbers", [("train[:2]", [0, 1]), ("train[-34%:]", [2])])
def test_split_can_be_cut(tmp_path, split, numbers):
    stored().to_parquet(tmp_path / "data.parquet")
    assert contents(load_rows(tmp_path / "data.parquet", split=split)) == expected(*numbers)
    path = write_paths(tmp_path, "rows.jsonl")
    assert contents(load_rows(path, split=split)) == expected(*numbers)


def test_hub_id_goes_to_datasets_with_split(monkeypatch):
    asked = {}

    def hub(name, split, streaming):
        asked.update(name=name, split=split, streaming=streaming)
        return stored(2)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert contents(load_rows("someone/geometry", split="test")) == expected(0, 1)
    assert asked == {"name": "someone/geometry", "split": "test", "streaming": False}


def test_failing_hub_id_is_one_message(monkeypatch):
    def hub(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'data/trian' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(ValueError, match=r"'data/trian' is no file or folder here.*doesn't exist"):
        load_rows("data/trian")


def test_a_damaged_picture_is_found_when_its_row_is_read_and_not_before():
    broken = rows()
    broken[1]["images"][0]["bytes"] = b"no picture"
    source = load_rows(datasets.Dataset.from_list(broken, features=stored().features))
    assert source[0].answer == "0"
    assert source[2].answer == "2"
    with pytest.raises(ValueError, match=r"^row 1: picture .*<10 bytes>.* cannot be read"):
        source[1]


def test_json_columns_and_other_features_are_decoded():
    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets has no Json feature")
    features = {"problem": datasets.Value("string"), "answer": datasets.Json()}
    spec = datasets.Dataset.from_list(
        [{"problem": "?", "answer": {"x": 1}}], features=datasets.Features(features)
    )
    assert load_rows(spec)[0].columns["answer"] == {"x": 1}


@pytest.mark.parametrize("index", [3, -1])
def test_row_number_outside_is_named(index):
    with pytest.raises(IndexError, match=rf"has 3 rows, numbered from 0; not {index}"):
        load_rows(rows())[index]


def write(path, content: str):
    path.write_text(content)
    return path


def broken_names(folder) -> dict[str, tuple]:
    folder.joinpath("hollow").mkdir()
    return {
        "missing": (folder / "gone.parquet", None, "no file or folder .*gone.parquet"),
        "missing without folder": ("gone.jsonl", None, "no file or folder 'gone.jsonl'"),
        "extension": (write(folder / "a.txt", "x"), None, r"'\.txt'.*\.parquet, \.jsonl, \.json"),
        "no table": (folder / "hollow", None, "hollow holds no file.*metadata.jsonl"),
        "empty jsonl": (write(folder / "e.jsonl", ""), None, "e.jsonl is empty: it has no rows"),
        "empty json": (write(folder / "e.json", "[]"), None, "e.json is empty"),
        "empty csv": (write(folder / "e.csv", "problem,answer\n"), None, "e.csv is empty"),
        "bad line": (write(folder / "b.jsonl", '{"a":1}\n{"a":\n'), None, "b.jsonl, line 2: not"),
        "bad json": (write(folder / "b.json", "[1"), None, "b.json: not JSON"),
        "no object": (write(folder / "n.json", "[3]"), None, "n.json, row 0: a int where a row"),
        "csv fields": (write(folder / "f.csv", "a,b\n1,2,3\n"), None, "f.csv, line 2: more fields"),
        "bad parquet": (write(folder / "p.parquet", "PAR"), None, "p.parquet cannot be read as"),
        "no such split": (write(folder / "s.jsonl", '{"a":1}'), "test", "no split 'test'"),
        "bad cut": (folder / "s.jsonl", "train[:x]", r"'train\[:x\]' is not understood"),
        "empty list": ([], None, "the data set is empty"),
        "split of a list": ([{"a": 1}], "train", "split='train'.*list.*Leave it out"),
        "two splits": (
            datasets.DatasetDict(a=stored(1), b=stored(1)),
            None,
            "no split was named. Choose one of a, b",
        ),
    }


def test_each_data_set_that_cannot_be_opened_is_one_message(tmp_path):
    for name, (spec, split, message) in broken_names(tmp_path).items():
        with pytest.raises(ValueError, match=message) as caught:
            load_rows(spec, split=split)
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("spec", [7, None, {"problem": ["?"]}])
def test_what_is_no_data_set_is_named(spec):
    with pytest.raises(TypeError, match=r"Give a (datasets.Dataset|list of row dicts)"):
        load_rows(spec)


def test_pandas_and_numpy_are_named_and_not_misread():
    import numpy as np

    with pytest.raises(TypeError, match="ndarray"):
        load_rows(np.zeros(3))


def test_row_that_is_no_dict_is_named():
    with pytest.raises(TypeError, match="row 1 of the data set is of type str"):
        load_rows([{"problem": "?"}, "x"])[1]


def test_empty_stream_is_named(tmp_path):
    source = load_rows(write(tmp_path / "e.jsonl", "\n"), streaming=True)
    with pytest.raises(ValueError, match=r"e\.jsonl is empty"):
        list(source)
