"""Real pictures with real questions: six packs, read from their parquet files."""

import json
import os
from pathlib import Path

import pytest

from foveal.data import MIN_SIDE, detect_format, load_rows

ROOT = Path(os.environ.get("FOVEAL_DATA") or Path(__file__).parents[3] / "shared" / "data")
ROWS = {
    "nlvr/train": 7593,
    "puzzlevqa/train": 1600,
    "puzzlevqa/validation": 400,
    "bccd/train": 439,
    "mmk12/train": 300,
    "mathvision/train": 1000,
    "dynamath/train": 470,
}

pytestmark = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"no data packs in {ROOT}; set FOVEAL_DATA to their folder"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("pack", ROWS)
def test_pack_opens_by_file_and_its_rows_normalise(pack):
    source = load_rows(ROOT / f"{pack}.parquet")
    assert len(source) == ROWS[pack]
    for index in {0, 1, 2, len(source) // 2, len(source) - 1}:
        row = source[index]
        (message,) = row.messages
        kinds = [part["type"] for part in message["content"]]
        assert (message["role"], kinds) == ("user", ["image", "text"])
        assert "<image>" not in message["content"][1]["text"]
        assert row.images[0].mode == "RGB"
        assert min(row.images[0].size) >= MIN_SIDE
        assert row.answer == row.columns["answer"]
        assert row.answer
        assert {"problem", "task", "id", "images"} <= row.columns.keys()


def test_folder_of_a_pack_opens_by_split():
    assert len(load_rows(ROOT / "puzzlevqa")) == 1600
    assert len(load_rows(ROOT / "puzzlevqa", split="validation")) == 400


def test_nlvr_row_is_the_one_in_its_file():
    source = load_rows(ROOT / "nlvr", split="train[:200]")
    assert detect_format(source.rows[0]) == "EasyR1"
    found = {row.columns["task"]: row for row in source}
    assert set(found) == {"true_false", "count", "boxes"}
    assert {row.images[0].size for row in found.values()} == {(400, 100)}
    for box in json.loads(found["boxes"].answer):
        x1, y1, x2, y2 = box["bbox_2d"]
        assert 0 <= x1 < x2 <= 400
        assert 0 <= y1 < y2 <= 100
