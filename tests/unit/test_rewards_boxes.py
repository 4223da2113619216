"""Boxes by IoU, with values worked out by hand."""

import json
import math
import random

import pytest

from foveal.rewards import boxes_iou, points_within
from foveal.rewards.labels import label_of, labels_agree

CAT = {"bbox_2d": [0, 0, 10, 10], "label": "cat"}
DOG = {"bbox_2d": [20, 0, 30, 10], "label": "dog"}


def score(predicted, reference):
    text = predicted if isinstance(predicted, str) else json.dumps(predicted)
    reference = reference if isinstance(reference, str) else json.dumps(reference)
    (reward,) = boxes_iou([text], answer=[reference])
    return reward


@pytest.mark.parametrize(
    ("box", "iou"),
    [
        ([0, 0, 10, 10], 1),
        ([5, 0, 15, 10], 50 / 150),  # overlap 5*10, union 100 + 100 - 50
        ([5, 5, 15, 15], 25 / 175),
        ([2, 2, 8, 8], 36 / 100),  # inside
        ([10, 0, 20, 10], 0),  # touches
        ([50, 50, 60, 60], 0),
        ([-10, -10, 20, 20], 100 / 900),
    ],
)
def test_iou_by_hand(box, iou):
    assert score([box], [[0, 0, 10, 10]]) == pytest.approx(iou)


@pytest.mark.parametrize(
    "text",
    [
        "[0, 0, 10, 10]",
        "[[0, 0, 10, 10]]",
        '{"bbox_2d": [0, 0, 10, 10]}',
        '[{"bbox_2d": [0.0, 0, 1e1, 10], "label": "Cat "}]',
        '```json\n[{"bbox_2d": [0, 0, 10, 10]}]\n```',
        "The answer is:\n```json\n[\n [0, 0, 10, 10]\n]\n```\nas asked.",
        "Answer: [[0, 0, 10, 10]]",
        "<think>[5, 5, 6, 6]</think><answer>[[0, 0, 10, 10]]</answer>",
    ],
)
def test_the_ways_to_write_a_box(text):
    assert score(text, [CAT]) == 1.0


def test_the_reference_may_be_decoded_lists_or_the_solution_column():
    assert boxes_iou(["[[0,0,10,10]]"], answer=[[CAT]]) == [1.0]
    assert boxes_iou(["[[0,0,10,10]]"], answer=[(0, 0, 10, 10)]) == [1.0]
    assert boxes_iou(["[[0,0,10,10]]"], solution=[f"<answer>{json.dumps([CAT])}</answer>"]) == [1.0]


def test_matching_is_the_best_one_to_one_and_not_greedy():
    # All 10 high, so widths decide. p1: r1 50/80, r2 80/100. p2: r1 0, r2 40/100.
    # Greedy takes p1-r2 = 0.8 and leaves nothing for p2; the best is 0.625 + 0.4.
    reference = [[0, 0, 50, 10], [0, 0, 100, 10]]
    predicted = [[0, 0, 80, 10], [60, 0, 100, 10]]
    assert score(predicted, reference) == pytest.approx((0.625 + 0.4) / 2)


def test_boxes_may_come_in_any_order():
    assert score([DOG, CAT], [CAT, DOG]) == 1.0


def test_labels_must_agree_where_both_have_one():
    other = {**CAT, "label": "dog"}
    bare = {"bbox_2d": CAT["bbox_2d"]}
    assert score([other], [CAT]) == 0.0
    assert score([bare], [CAT]) == 1.0
    assert score([other], [bare]) == 1.0


def test_leaving_the_labels_out_does_not_get_objects_of_several_kinds_right():
    bare = [CAT["bbox_2d"], DOG["bbox_2d"]]
    assert score(bare, [CAT, DOG]) == 0.0
    assert score(bare, [CAT, {**DOG, "label": "Cat"}]) == 1.0
    assert score([CAT, DOG["bbox_2d"]], [CAT, DOG]) == 0.5
    assert score([CAT, DOG], [CAT, DOG, {"bbox_2d": [50, 0, 60, 10]}]) == pytest.approx(2 / 3)
    assert points_within(1)(
        ["[[1, 1], [9, 9]]"],
        answer=[[{"point_2d": [1, 1], "label": "a"}, {"point_2d": [9, 9], "label": "b"}]],
    ) == [0.0]


def test_a_label_nested_beyond_writing_agrees_with_none():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert not labels_agree(label_of([deep]), label_of("cat"), several=False)
    while deep:  # freeing it in one go would need as deep a stack
        deep = deep.pop()


def test_extra_repeated_and_missing_boxes_cost():
    assert score([CAT, DOG], [CAT]) == 0.5
    assert score([CAT, CAT, CAT, CAT], [CAT]) == 0.25
    assert score([CAT, CAT], [CAT, DOG]) == 0.5
    assert score([CAT], [CAT, DOG]) == 0.5


def test_covering_the_picture_with_boxes_earns_almost_nothing():
    grid = [[x, y, x + 10, y + 10] for x in range(0, 100, 10) for y in range(0, 100, 10)]
    assert score(grid, [CAT["bbox_2d"], DOG["bbox_2d"]]) == pytest.approx(2 / 100)
    assert score(grid, [CAT, DOG]) == 0.0
    assert score([[0, 0, 100, 100]], [CAT]) == pytest.approx(100 / 10_000)


@pytest.mark.parametrize(
    "bad",
    [
        [10, 10, 0, 0],
        [5, 5, 5, 10],
        [0, 0, 10],
        ["0", "0", "10", "10"],
        [0, 0, 10, True],
        [0, 0, 10, float("nan")],
        [0, 0, 10, float("inf")],
        [0, 0, 10, 10**400],
        "box",
        None,
        {"label": "cat"},
        {"box_2d": [0, 0, 10, 10]},
    ],
)
def test_a_malformed_box_counts_as_predicted_with_iou_zero(bad):
    assert score([CAT, bad], [CAT]) == 0.5
    assert score([bad], [CAT]) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "[[0, 0, 10, 10]",
        "[0, 0, 10, 10] or [20, 0, 30, 10]",
        "3",
        '"[[0,0,10,10]]"',
        "null",
        "<think>```json\n[[0, 0, 10, 10]]\n```",
        "[" * 100_000,
    ],
)
def test_what_is_no_json_list_earns_nothing_even_if_there_is_no_box(text):
    assert score(text, [CAT]) == 0.0
    assert score(text, "[]") == 0.0


def test_an_empty_reference_is_met_by_an_empty_list_only():
    assert score("[]", "[]") == 1.0
    assert score([CAT], "[]") == 0.0
    assert score("[]", [CAT]) == 0.0


def test_the_order_of_boxes_does_not_change_the_last_bit():
    reference = [[0, 0, 10 + i / 7, 10] for i in range(6)]
    predicted = [[i / 3, 0, 10 + i / 7, 10 - i / 11] for i in range(6)]
    scores = set()
    for seed in range(20):
        random.Random(seed).shuffle(predicted)
        scores.add(score(predicted, reference))
    assert len(scores) == 1
    assert 0 < scores.pop() < 1


def test_a_reference_without_area_is_an_error_and_one_that_is_no_box_is_skipped():
    with pytest.raises(ValueError, match=r"row 1: the reference .*\[5, 5, 5, 9\].*x1 < x2"):
        boxes_iou(["[]", "[]"], answer=["[]", "[[5, 5, 5, 9]]"])
    assert boxes_iou(["[]"], answer=["a cat"]) == [None]
    with pytest.raises(ValueError, match="row 0 has neither 'answer' nor 'solution'"):
        boxes_iou(["[]"], boxes=["[]"])


def test_the_reward_is_a_plain_finite_float():
    reward = score([CAT], [CAT])
    assert type(reward) is float
    assert math.isfinite(reward)
