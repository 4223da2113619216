"""Boxes by generalised IoU and by average precision, with values worked out by hand."""

import json
import pickle

import pytest

from foveal.rewards import boxes_giou, boxes_map, resolve

CAT = {"bbox_2d": [0, 0, 10, 10], "label": "cat"}
DOG = {"bbox_2d": [20, 0, 30, 10], "label": "dog"}
EVERYWHERE = [[x, y, x + 10, y + 10] for x in range(0, 100, 10) for y in range(0, 100, 10)]


def score(reward, predicted, reference):
    text = predicted if isinstance(predicted, str) else json.dumps(predicted)
    (value,) = reward([text], answer=[json.dumps(reference)])
    assert type(value) is float
    return value


@pytest.mark.parametrize(
    ("box", "giou"),
    [
        ([0, 0, 10, 10], 1),
        ([5, 0, 15, 10], 50 / 150),  # the hull is the union
        ([5, 5, 15, 15], 25 / 175 - (225 - 175) / 225),
        ([10, 0, 20, 10], 0),
        ([30, 0, 40, 10], -(400 - 200) / 400),
        ([90, 0, 100, 10], -(1000 - 200) / 1000),
    ],
)
def test_giou_by_hand(box, giou):
    assert score(boxes_giou(), [box], [[0, 0, 10, 10]]) == pytest.approx(giou)
    assert score(boxes_giou(floor=-0.5), [box], [[0, 0, 10, 10]]) == pytest.approx(max(giou, -0.5))


@pytest.mark.parametrize("floor", [-1.0, -0.25, 0.0])
def test_no_boxes_wrong_labels_and_malformed_ones_earn_the_floor(floor):
    reward = boxes_giou(floor)
    for text in ("", "a cat", "[]", [{**CAT, "label": "dog"}], [[10, 10, 0, 0]], "[" * 100_000):
        assert score(reward, text, [CAT]) == floor
    assert score(reward, [CAT], []) == floor
    assert score(reward, "none", []) == floor
    assert score(reward, "[]", []) == 1.0


def test_giou_extra_repeated_missing_and_covering_boxes_earn_nothing():
    assert score(boxes_giou(), [CAT, CAT], [CAT]) == 0.0  # 1 and -1
    assert score(boxes_giou(), [CAT], [CAT, DOG]) == 0.0
    two = [CAT["bbox_2d"], DOG["bbox_2d"]]
    assert score(boxes_giou(), EVERYWHERE, two) == pytest.approx((2 - 98) / 100)
    assert score(boxes_giou(), [[0, 0, 100, 100]], [CAT]) == pytest.approx(0.01)
    assert score(boxes_giou(0.0), EVERYWHERE, two) == pytest.approx(2 / 100)


def test_map_averages_over_thresholds():
    near = [[0, 0, 10, 8]]  # IoU 0.8: passes 0.5 .. 0.8, seven of ten
    assert score(boxes_map(), near, [CAT]) == pytest.approx(0.7)
    assert score(boxes_map(thresholds=[0.5]), near, [CAT]) == 1.0
    assert score(boxes_map(thresholds=[0.9]), near, [CAT]) == 0.0


def test_map_ranks_by_order_and_interpolates():
    plain = boxes_map([0.5], count_penalty=0)
    bird, miss = [0, 50, 10, 60], [70, 70, 80, 80]
    assert score(plain, [CAT, DOG, miss], [CAT, DOG]) == 1.0
    assert score(plain, [miss, CAT, DOG], [CAT, DOG]) == pytest.approx(2 / 3)
    # Hits at ranks 1, 3: precisions 1, 2/3; three objects.
    assert score(plain, [CAT, miss, DOG], [CAT, DOG, bird]) == pytest.approx((1 + 2 / 3) / 3)
    # Hits at ranks 2, 3: the first counts with the better, later precision.
    assert score(plain, [miss, CAT, DOG], [CAT, DOG, bird]) == pytest.approx((2 / 3) * 2 / 3)


def test_map_boxes_appended_to_raise_recall_cost():
    assert score(boxes_map(), [CAT, CAT], [CAT]) == 0.5
    assert score(boxes_map(count_penalty=2), [CAT, CAT], [CAT]) == 0.25
    assert score(boxes_map(), EVERYWHERE, [CAT]) <= 0.01
    assert score(boxes_map(), [[0, 0, 100, 100]], [CAT]) == 0.0
    assert score(boxes_map(), [{**CAT, "label": "dog"}], [CAT]) == 0.0


def test_map_without_boxes():
    for text in ("", "a cat", "[]", [[0, 0, 10]]):
        assert score(boxes_map(), text, [CAT]) == 0.0
    assert score(boxes_map(), "[]", []) == 1.0
    assert score(boxes_map(), "none", []) == 0.0
    assert score(boxes_map(), [CAT], []) == 0.0


def test_a_key_given_twice_does_not_replace_the_first_box_unseen():
    text = '[{"bbox_2d": [50, 50, 60, 60], "bbox_2d": [0, 0, 10, 10]}]'
    assert score(boxes_map(), text, [CAT]) == 0.0


def test_other_data_is_skipped_and_settings_are_checked():
    assert boxes_giou()(["[]"], answer=["a cat"]) == [None]
    assert boxes_map()(["[]"], answer=["a cat"]) == [None]
    with pytest.raises(ValueError, match=r"floor is 0.5; it must lie between -1"):
        boxes_giou(0.5)
    with pytest.raises(ValueError, match=r"thresholds is \[50\]; give at least one"):
        boxes_map([50])
    with pytest.raises(ValueError, match=r"count_penalty is -1"):
        boxes_map(count_penalty=-1)
    assert resolve("boxes_map(thresholds=[0.5])") == pickle.loads(pickle.dumps(boxes_map([0.5])))
    assert resolve("boxes_giou()").__name__ == "boxes_giou"
