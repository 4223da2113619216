"""Points and JSON objects, with values worked out by hand."""

import json
import pickle

import pytest

from foveal.rewards import json_fields, points_within, resolve


class Picture:
    size = (300, 400)  # diagonal 500


def score(reward, answer, reference, **columns):
    text = answer if isinstance(answer, str) else json.dumps(answer)
    (value,) = reward([text], answer=[reference], **columns)
    assert value is None or type(value) is float
    return value


# points_within


@pytest.mark.parametrize(
    "text",
    [
        "[[13, 14], [100, 100]]",
        "[[100, 100], [13, 14]]",
        '[{"point_2d": [13, 14], "label": "Cat"}, {"point_2d": [100, 100.0]}]',
        "The answer is:\n```json\n[\n [13, 14],\n [100, 100]\n]\n```",
        "<think>[[0, 0]]</think><answer>[[13, 14], [100, 100]]</answer>",
    ],
)
def test_the_ways_to_write_points(text):
    cat = {"point_2d": [10, 10], "label": "cat"}
    for reference in ("[[10, 10], [100, 100]]", [cat, [100, 100]]):
        assert score(points_within(distance=5), text, reference) == 1.0
        assert score(points_within(distance=4.9), text, reference) == 0.5


def test_the_limit_is_a_share_of_the_diagonal_or_a_column():
    share = points_within(share=0.01)
    assert score(share, "[3, 4]", "[0, 0]", images=[[Picture()]]) == 1.0
    assert score(share, "[3, 5]", "[0, 0]", images=[[Picture()]]) == 0.0
    column = points_within(column="radius")
    assert column(["[3, 4]"] * 2, answer=["[0, 0]"] * 2, radius=[5, 4]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="row 0 has no picture in the column 'images'"):
        score(share, "[3, 4]", "[0, 0]")
    with pytest.raises(ValueError, match="row 0: the column 'radius' of points_within holds None"):
        score(column, "[3, 4]", "[0, 0]")


def test_points_are_matched_so_that_most_are_found():
    # The first point is near both, the second near the left one only.
    assert score(points_within(6), [[5, 0], [-5, 0]], [[0, 0], [10, 0]]) == 1.0


def test_points_in_numbers_earn_almost_nothing():
    grid = [[x, y] for x in range(0, 100, 10) for y in range(0, 100, 10)]
    assert score(points_within(10), grid, [[50, 50]]) == 0.01
    assert score(points_within(10), [[50, 50]] * 4, [[50, 50], [90, 90]]) == 0.25
    assert score(points_within(10), [[50, 50]], [[50, 50], [90, 90]]) == 0.5


@pytest.mark.parametrize("bad", [[1], [1, 2, 3], ["1", "2"], [True, 1], [10**400, 0], None, "x"])
def test_a_malformed_point_counts_as_answered(bad):
    assert score(points_within(5), [[1, 2], bad], [[1, 2]]) == 0.5


@pytest.mark.parametrize(
    "text", ["", "here", "[[1, 2]", "[1, 2] or [3, 4]", "null", "[]", "[[NaN, 2]]", "[" * 100_000]
)
def test_no_points_earn_nothing(text):
    assert score(points_within(5), text, "[[1, 2]]") == 0.0


def test_other_labels_no_points_and_other_data():
    named = [{"point_2d": [1, 2], "label": "cat"}]
    assert score(points_within(5), [{"point_2d": [1, 2], "label": "dog"}], named) == 0.0
    assert score(points_within(5), "[]", "[]") == 1.0
    assert score(points_within(5), "[[1, 2]]", "[]") == 0.0
    assert score(points_within(5), "[[1, 2]]", "a cat") is None
    with pytest.raises(ValueError, match=r"row 0: the reference .* holds something that is no po"):
        score(points_within(5), "[]", "[[1, 2], [3]]")


# json_fields

RECEIPT = {
    "shop": "Blue Cup",
    "total": {"net": 10.0, "tax": 1.9},
    "items": ["Tea", 2],
    "paid": True,
}


@pytest.mark.parametrize("text", ["{}", "```json\n{}\n```", "<answer>{}</answer>"])
def test_equal_objects_but_for_order_case_and_rounding(text):
    answer = {"paid": True, "total": {"tax": 1.90001, "net": 10}, "items": ["tea", 2.0]}
    written = text.replace("{}", json.dumps({**answer, "shop": " blue  cup."}))
    assert score(json_fields(), written, RECEIPT) == 1.0
    assert score(json_fields(), written, json.dumps(RECEIPT)) == 1.0


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({"shop": "Red Cup"}, 5 / 6),
        ({"total": {"net": 10.5, "tax": 1.9}}, 5 / 6),
        ({"total": {"net": "10.0", "tax": True}}, 4 / 6),
        ({"total": 11.9}, 4 / 7),  # two are missing, one is extra
        ({"items": [2, "Tea"]}, 4 / 6),
        ({"items": []}, 4 / 7),
        ({"paid": 1}, 5 / 6),
        ({"paid": None}, 5 / 6),
        ({"note": "x", "date": "y"}, 6 / 8),
        ({"total": {"net": 10**400, "tax": 1.9}}, 5 / 6),
    ],
)
def test_each_field_counts_the_same(change, right):
    assert score(json_fields(), {**RECEIPT, **change}, RECEIPT) == pytest.approx(right)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[]",
        "null",
        "Blue Cup, 10.0",
        json.dumps([RECEIPT]),
        json.dumps(RECEIPT) + json.dumps(RECEIPT),
        '{"shop": "Red Cup", "shop": "Blue Cup"}',
        '{"a":' * 100_000,
        '{"a":' * 900 + "1" + "}" * 900,
        "<think>" + json.dumps(RECEIPT),
    ],
)
def test_no_object_two_objects_and_repeated_keys_earn_nothing(text):
    assert score(json_fields(), text, RECEIPT) == 0.0


def test_fields_with_many_guesses_earn_almost_nothing():
    guesses = {f"field {n}": n for n in range(1000)} | RECEIPT
    assert score(json_fields(), guesses, RECEIPT) < 0.01
    lists = {**RECEIPT, "shop": ["Blue Cup", "Red Cup"]}
    assert score(json_fields(), lists, RECEIPT) == pytest.approx(5 / 8)


def test_text_numbers_tolerance_and_other_data():
    assert score(json_fields(), {"year": 2010}, {"year": "2010"}) == 1.0
    assert score(json_fields(rel_tol=0.1), {"n": 10.9}, {"n": 10}) == 1.0
    assert score(json_fields(), '{"n": NaN}', {"n": 10}) == 0.0
    assert score(json_fields(), {"n": 10}, "ten") is None
    assert score(json_fields(), "{}", {}) == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("points_within()", "give exactly one of them"),
        ("points_within(distance=5, share=0.1)", "give exactly one of them"),
        ("points_within(share=5)", "share is 5; it must lie between 0 and 1"),
        ("json_fields(rel_tol=-1)", "rel_tol is -1"),
    ],
)
def test_wrong_settings_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        resolve(text)


@pytest.mark.parametrize("call", ["points_within(share=0.05)", "json_fields()"])
def test_functions_with_settings_are_named_and_can_be_pickled(call):
    reward = resolve(call)
    assert reward.__name__ == call.partition("(")[0]
    assert pickle.loads(pickle.dumps(reward)) == reward
