"""Families made of text: languages, worked solutions, statements, small signs."""

from __future__ import annotations

import itertools
import string
from fractions import Fraction

import pytest
from PIL import ImageOps

from foveal.tasks import TablesTask, get_task
from foveal.tasks.canvas import Canvas
from foveal.tasks.lettering import Look, lettered, text_width, write
from foveal.tasks.tables.grid import Format
from foveal.tasks.textbook import TextbookTask
from foveal.tasks.textbook.page import WIDTH
from foveal.tasks.textbook.steps import solve_line
from foveal.tasks.textbook.words import LANGUAGES, WORDS


def _leaves(words, path=()):
    for key, value in words.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            texts = (value,) if isinstance(value, str) else value
            yield (*path, key), sorted(_fields("".join(texts))), len(texts), texts


def _fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_no_language_lacks_a_sentence_or_a_name_in_braces_or_is_left_in_english():
    english = list(_leaves(WORDS["en"]))
    for language in set(WORDS) - {"en"}:
        other = list(_leaves(WORDS[language]))
        assert [leaf[:3] for leaf in other] == [leaf[:3] for leaf in english], language
        sentences = [zip(a[3], b[3], strict=True) for a, b in zip(other, english, strict=True)]
        same = [a for pairs in sentences for a, b in pairs if a == b and " " in a]
        assert not same, (language, same)


def test_every_sentence_of_the_four_languages_can_be_printed():
    for language in LANGUAGES:
        for _, _, _, texts in _leaves(WORDS[language]):
            assert all(lettered(text, 12).getbbox() for text in texts)
    with pytest.raises(ValueError, match="'ж' of 'жук' is not in Pillow's font"):
        lettered("жук", 12)


def test_no_rule_is_longer_than_its_page():
    widest = Look(1, 1.08, 0.16)
    for language in LANGUAGES:
        for text in WORDS[language]["rules"].values():
            assert 20 + text_width(text, 14, widest) < WIDTH, (language, text)


def test_an_accent_is_drawn_above_its_letter_and_not_dropped():
    for plain, accented in ("uü", "eé", "aà", "oô", "nñ", "cç", "ií", "AÄ"):
        bare, marked = (lettered(text, 20) for text in (plain, accented))
        assert bare.size == marked.size and marked.tobytes() != bare.tobytes()
        _, top, _, bottom = bare.getbbox() or (0, 0, 0, 0)
        _, high, _, low = marked.getbbox() or (0, 0, 0, 0)
        assert high < top or low > bottom or plain == "i", accented


def test_the_box_of_a_text_is_where_its_ink_is():
    for anchor, angle in (("l", 0), ("r", 0), ("m", 30)):
        canvas = Canvas(200, 80)
        look = Look(1, 1.1, 0.2)
        box = write(canvas, (100, 40), "Ink", 20, (0, 0, 0), anchor, look, angle)
        ink = ImageOps.invert(canvas.finish().convert("L")).getbbox()
        assert ink is not None
        assert all(abs(a - b) <= 1.6 for a, b in zip(box, ink, strict=True)), (box, ink)


def test_russian_is_refused_without_its_font_and_printed_with_it():
    task = TextbookTask(("ru",))
    try:
        rows = [task.generate(seed, 1 + seed % 5) for seed in range(30)]
    except ImportError as error:
        pytest.skip(str(error))
    assert all(row["metadata"]["language"] == "ru" for row in rows)
    assert [task.reference_answer(r["metadata"]) for r in rows] == [r["answer"] for r in rows]


def test_an_unknown_language_is_named():
    with pytest.raises(ValueError, match=r"languages is \('xx',\); choose .* en, de"):
        TextbookTask(("xx",))


def test_boxes_are_solved_in_every_place_and_two_unknowns_are_refused():
    letters = {"x": Fraction(4), "m": Fraction(1, 2)}
    for line, expected in {
        "x = 180° − □° − 60°": 116,
        "3x + □ = x + 10": 2,
        "□ · 2 = 2.5 · x": 5,
        "m = (□ − (−3)) ÷ (2 − (−2))": -1,
        "3 = 1 − (−0.5) · (□)": 4,
    }.items():
        assert solve_line(line, letters) == expected, line
    with pytest.raises(ValueError, match="not linear"):
        solve_line("4 ÷ (1 + □) = 2", letters)
    with pytest.raises(ValueError, match="the letter 'b' has no value"):
        solve_line("b = □", letters)


def test_decimal_commas_count_where_the_language_has_them_and_nowhere_else():
    def earned(language, said, answer="2.5"):
        facts = [{"language": language, "tolerance": 0.0}]
        said = [f"<answer>{said}</answer>"]
        return get_task("textbook").reward([""], said, answer=[answer], metadata=facts)[0]

    for language in ("de", "fr", "es"):
        assert [earned(language, s) for s in ("2,5", "2.5", r"2{,}5", "2,5 kg")] == [1.0] * 4
        assert [earned(language, s) for s in ("2, 5", "2,50,1", "25", "2,51")] == [0.0] * 4
        assert earned(language, "1,234", "1234") == 1.0
    assert earned("en", "2,5") == 0.0 and earned("en", "2.5") == 1.0
    # A fraction is a value, however it is written.
    assert [earned("fr", s, "3/4") for s in ("3/4", r"\frac{6}{8}", "0,75", "4/3")] == [1, 1, 1, 0]


def test_printed_amounts_are_read_back_in_every_style():
    printed = {
        Format(",", ".", True): "(1,234,567.50)",
        Format(".", ",", False): "−1.234.567,50",
        Format(" ", ".", True): "(1 234 567.50)",
        Format("", ".", False): "−1234567.50",
    }
    for form, text in printed.items():
        assert form.text(-1234567.5, 2) == text and form.value(text) == -1234567.5
        assert form.text(12) == "12" and form.value("12") == 12.0


def test_statements_worked_out_by_hand():
    facts = {
        "form": "income",
        "columns": ["", "Note", "2024", "2023"],
        "labels": ["Revenue", "Rent", "Net profit"],
        "cells": [["3", "1.200", "1.000"], ["", "(90)", "(80)"], ["", "(60)", "250"]],
        "group": ".",
        "point": ",",
        "percent": True,
        "sign": -1,
    }

    def solved(kind, *asked):
        return TablesTask().reference_answer({**facts, "kind": kind, "asked": asked})

    revenue, rent, profit = (["Revenue", "2024"], ["Rent", "2024"], ["Net profit", "2024"])
    assert solved("total", revenue, rent) == "1110"
    assert solved("difference", rent, ["Rent", "2023"]) == "-10"
    assert solved("growth", rent, ["Rent", "2023"]) == "12.5"
    assert solved("ratio", profit, revenue) == "-5"
    assert solved("largest", rent, profit) == "Rent"


def test_an_invoice_without_amounts_is_multiplied_out_and_trains_are_timed():
    invoice = {
        "form": "invoice",
        "columns": ["Item", "Quantity", "Unit price"],
        "labels": ["Desk", "Lamp"],
        "cells": [["2", "1,100.50"], ["3", "20.00"]],
        "group": ",",
        "point": ".",
        "asked": [["Desk", "Amount"], ["Lamp", "Amount"]],
    }
    assert TablesTask().reference_answer({**invoice, "kind": "total"}) == "2261"
    trains = {
        "form": "timetable",
        "columns": ["", "S 1", "S 2"],
        "labels": ["A", "B"],
        "cells": [["08:50", "09:00"], ["09:05", "09:20"]],
        "asked": [["B", "S 1"], ["A", "S 1"], ["B", "S 2"], ["A", "S 2"]],
    }
    assert TablesTask().reference_answer({**trains, "kind": "largest"}) == "S 2"
    assert TablesTask().reference_answer({**trains, "kind": "difference"}) == "15"


def test_the_box_of_a_zoom_holds_the_whole_sign_and_its_letters():
    for seed in range(6):
        row = get_task("zoom").generate(seed, 1 + seed % 5)
        left, top, right, bottom = row["metadata"]["box"]
        picture = row["images"][0].convert("L")
        rim = picture.crop((left, top, left + 1, bottom)).getextrema()
        inner = picture.crop((left + 3, top + 3, right - 3, bottom - 3)).getextrema()
        # A grey frame around dark letters on a light plate.
        assert rim[1] < 140 and inner[0] < 110 and inner[1] > 200, (seed, rim, inner)


def test_zooms_have_one_sign_for_each_question_and_misprints_of_it_elsewhere():
    for seed in range(20):
        facts = get_task("zoom").generate(seed, 5)["metadata"]
        keys = [(s["colour"], s["row"], s["side"]) for s in facts["signs"]]
        texts = [s["text"] for s in facts["signs"]]
        assert len(set(keys)) == len(keys) and len(set(texts)) == len(texts)
        near = [sum(a != b for a, b in zip(one, other, strict=False)) for one, other in
                itertools.combinations(texts, 2) if len(one) == len(other)]  # fmt: skip
        assert facts["signs"][0]["text"].isalpha() or near.count(1) >= 3


def test_relations_on_four_shapes_worked_out_by_hand():
    places = {"red star": (10, 10, 5), "blue star": (100, 20, 9), "red circle": (90, 80, 5)}
    shapes = [
        {"colour": name.split()[0], "form": name.split()[1], "x": x, "y": y, "radius": r}
        for name, (x, y, r) in places.items()
    ]

    def solved(kind, towards="left", a=0, b=0, size="largest"):
        facts = {"kind": kind, "towards": towards, "a": a, "b": b, "size": size, "shapes": shapes}
        return get_task("relations").reference_answer(facts)

    assert [solved("side", a=0, b=1), solved("side", a=2, b=1)] == ["right", "above"]
    assert [solved("nearest", a=2), solved("furthest", "below")] == ["blue star", "red circle"]
    assert [solved("order", "right"), solved("order", "left", a=1)] == ["2", "2"]
    assert [solved("colour"), solved("colour", size="smallest")] == ["blue", "red"]
