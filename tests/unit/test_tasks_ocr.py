"""The labels of the pictures are read by an OCR engine: clipped or covered text is found out.

The engine sees pictures twice as large, for it is made for larger print than these. Labels of one
letter are left out: engines drop them, and they are found in any text by chance.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from PIL import Image
from rapidfuzz import fuzz

from foveal.tasks import get_task
from foveal.tasks.base import plain

ocr = pytest.importorskip(
    "rapidocr_onnxruntime",
    reason="rapidocr_onnxruntime cannot be imported: it needs Python < 3.13, and OpenCV its libGL",
    exc_type=ImportError,
)
SEEDS = {1: (0, 1), 2: (2, 3), 3: (4, 5)}
"""Two pictures of each difficulty, all of which are legible to a person at a glance."""
ENLARGED = 2


def _ticks(low, high, step):
    return [plain(low + i * step) for i in range(round((high - low) / step) + 1)]


def _chart_labels(facts):
    names = [*facts["categories"], *(facts["series"] if len(facts["series"]) > 1 else [])]
    if facts["form"] == "pie":
        return names + [f"{share:.0f}%" for share in facts["values"][0]]
    if facts["form"] == "scatter":
        names += _ticks(facts["x_tick"], 5 * facts["x_tick"], facts["x_tick"])
    return names + _ticks(0, 5 * facts["tick"], facts["tick"])


def _candle_labels(facts):
    tick, days = facts["tick"], facts["candles"]
    low = int(min(day["low"] for day in days) // tick)
    high = int(max(day["high"] for day in days) // tick) + 1
    return [*_ticks(low * tick, high * tick, tick), "day"]


def _mass_labels(facts):
    bodies = facts.get("bodies") or [{"mass": facts["loads"][0], "mu": 0.0}]
    rough = {body["mu"] for body in bodies} - {0.0}
    return [*(f"{plain(body['mass'])} kg" for body in bodies),
            *(f"mu = {plain(mu)}" for mu in rough)]  # fmt: skip


LABELS = {
    "charts": _chart_labels,
    "candles": _candle_labels,
    "gauges": lambda facts: _ticks(facts["low"], facts["high"], facts["step"]),
    "geometry": lambda facts: [item["text"] for item in facts["angles"] + facts["lengths"]],
    "circuits": lambda facts: [
        *(str(wire["ohms"]) for wire in facts["resistors"]),
        f"{plain(facts['volts'])}V",
    ],
    "gears": lambda facts: [str(n) for shaft in facts["shafts"] for n in shaft["teeth"] if n],
    "inclines": lambda facts: _mass_labels({"bodies": [facts]}),
    "pulleys": _mass_labels,
    "tables": lambda facts: [*facts["labels"], *(cell for row in facts["cells"] for cell in row)],
    "textbook": lambda facts: facts["printed"],
    "read_text": lambda facts: [line["text"] for line in facts["lines"]],
    "zoom": lambda facts: [_sign(facts)],
}
"""What the metadata says is printed."""
LEAST_SHARE = 0.9
"""Of the labels of a family; between 0.94 (textbook) and 1.0 were read when this was written."""


def _sign(facts):
    return next(sign["text"] for sign in facts["signs"] if sign["box"] == facts["box"])


@pytest.fixture(scope="module")
def engine():
    # One thread, and no enlargement beyond our own: both only cost time here.
    return ocr.RapidOCR(intra_op_num_threads=1, det_limit_type="max", det_limit_side_len=960)


def _read(engine, picture):
    size = (picture.width * ENLARGED, picture.height * ENLARGED)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))[:, :, ::-1]
    found, _ = engine(pixels, use_cls=False)
    return [_folded(text) for _, text, _ in found or []]


def _folded(text):
    """Small letters without accents, blanks, dashes and degrees; letters like digits are one."""
    bare = unicodedata.normalize("NFD", text.lower().replace("ß", "b"))
    bare = "".join(sign for sign in bare if sign.isascii() and (sign.isalnum() or sign in "%.,:()"))
    return bare.replace("l", "1").replace("i", "1").replace("o", "0")


def _is_read(label, texts):
    if any(label in text for text in texts):
        return True
    # One letter of a dozen may be misread: the engine knows no accents.
    return len(label) > 8 and any(fuzz.partial_ratio(label, text) > 85 for text in texts)


def _shown(row):
    picture = row["images"][0]
    if row["task"] != "zoom":
        return picture
    left, top, right, bottom = row["metadata"]["box"]
    return picture.crop((left - 30, top - 20, right + 30, bottom + 20))


def _share_read(engine, name, change=lambda picture: picture):
    """The share of labels read, and those that were not with what was read instead."""
    read, all_labels, missed = 0, 0, []
    for difficulty, seeds in SEEDS.items():
        for seed in seeds:
            row = get_task(name).generate(seed, difficulty)
            labels = {_folded(text) for text in LABELS[name](row["metadata"])}
            texts = _read(engine, change(_shown(row)))
            lost = [label for label in labels if len(label) > 1 and not _is_read(label, texts)]
            all_labels += sum(len(label) > 1 for label in labels)
            read += sum(len(label) > 1 for label in labels) - len(lost)
            missed += [(difficulty, seed, label, texts) for label in lost]
    return read / all_labels, missed


@pytest.mark.parametrize("name", LABELS)
def test_labels_in_the_metadata_can_be_read_in_the_picture(engine, name):
    share, missed = _share_read(engine, name)
    print(f"{name}: {share:.1%} of the labels read; missed {missed}")
    assert share >= LEAST_SHARE, missed


def test_clipped_and_blanked_labels_are_missed(engine):
    def clipped(picture):
        return picture.crop((0, 0, picture.width // 2, picture.height))

    def blanked(picture):
        pixels = np.array(picture)
        pixels[pixels.shape[0] // 2 :] = 255
        return Image.fromarray(pixels)

    for change in (clipped, blanked):
        share, _ = _share_read(engine, "geometry", change)
        assert share < LEAST_SHARE - 0.1
