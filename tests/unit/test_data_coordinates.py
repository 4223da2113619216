"""Boxes follow the picture from its own pixels to the model's and back."""

from __future__ import annotations

import json
import random

import pytest
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from foveal.coordinates import SPACES
from foveal.data import PromptBuilder, clip_boxes, convert_boxes, convert_points, normalise_row
from foveal.models.family import family_module
from foveal.rewards import boxes_iou, points_within
from foveal.testing import TINY_FAMILIES, tiny
from tests.samples import picture

ORIGINAL, RESIZED = (640, 427), (644, 420)


def test_spaces_by_hand():
    box = [320, 42.7, 640, 427]
    expected = {"resized": [322, 42, 644, 420], "0-1000": [500, 100, 1000, 1000]}
    expected |= {"0-1": [0.5, 0.1, 1, 1], "original": box}
    for space, there in expected.items():
        assert convert_boxes([box], "original", space, ORIGINAL, RESIZED) == [pytest.approx(there)]
        assert convert_boxes([there], space, "original", ORIGINAL, RESIZED) == [pytest.approx(box)]
    assert convert_points([[160, 427]], "original", "0-1", ORIGINAL, RESIZED) == [[0.25, 1.0]]


def test_whole_pixels_come_back_from_every_space_and_whole_ones_within_half_a_step():
    dice = random.Random(0)
    for _ in range(300):
        size, other = ([dice.randrange(28, 3000) for _ in "xy"] for _ in range(2))
        point = [dice.randrange(0, edge + 1) for edge in size]
        for space in SPACES:
            there = convert_points([point], "original", space, size, other)
            assert convert_points(there, space, "original", size, other, whole=True) == [point]
            (x, y) = convert_points([point], "original", space, size, other, whole=True)[0]
            ((fine_x, fine_y),) = there
            assert space == "0-1" or max(abs(x - fine_x), abs(y - fine_y)) <= 0.5


def test_halves_round_up_and_not_to_even():
    sizes = ((2000, 2000), (28, 28))
    assert convert_points([[1, 5]], "original", "0-1000", *sizes, whole=True) == [[1, 3]]
    assert convert_points([[3, 7]], "original", "0-1000", *sizes, whole=True) == [[2, 4]]


def test_what_lies_beyond_the_picture_is_an_error_or_kept_and_clipping_is_counted():
    boxes = [[0, 0, 640, 427], [600, 10, 700, 20]]
    with pytest.raises(ValueError, match=r"\[600, 10, 700, 20\] lies beyond.*ends at 640, 427"):
        convert_boxes(boxes, "original", "0-1000", ORIGINAL, RESIZED)
    kept = convert_boxes(boxes, "original", "0-1000", ORIGINAL, RESIZED, outside="keep")
    assert kept[1][2] == 1093.75
    clipped, changed = clip_boxes(boxes, "original", ORIGINAL, RESIZED)
    assert clipped == [[0, 0, 640, 427], [600, 10, 640, 20]] and changed == 1
    with pytest.raises(ValueError, match="must be one of 'original'"):
        convert_boxes(boxes, "pixels", "0-1000", ORIGINAL, RESIZED)
    with pytest.raises(ValueError, match="not 4 finite numbers"):
        convert_boxes([[0, 0, float("nan"), 1]], "original", "0-1000", ORIGINAL, RESIZED)


def builder_of(family: str, image_processor=None, **options) -> PromptBuilder:
    model, processor = tiny(family)
    if image_processor is not None:
        processor.image_processor = image_processor
    return PromptBuilder(
        processor,
        image_token_id=model.config.image_token_id,
        answer_coordinates=family_module(family).FAMILY.answer_coordinates,
        **options,
    )


def grounding_row(width, height, **columns):
    made = picture(0, width, height)
    row = {"problem": "<image>Where?", "images": [made], "answer": "[[0, 0, 28, 28]]"}
    return normalise_row({**row, "coordinates": "original", **columns}, 0)


@pytest.mark.parametrize(
    ("patch", "bounds"),
    [
        (14, {}),
        (16, {"shortest_edge": 65536, "longest_edge": 200_000}),
        (14, {"longest_edge": 50_000}),
    ],
)
@pytest.mark.parametrize("size", [(640, 427), (28, 31), (1333, 777), (60, 2000)])
def test_the_resized_size_is_that_of_the_processors_own_smart_resize(patch, bounds, size):
    edges = {"shortest_edge": 3136, "longest_edge": 12_845_056, **bounds}
    image_processor = Qwen2VLImageProcessor(patch_size=patch, merge_size=2, size=edges)
    builder = builder_of("qwen2_5_vl", image_processor)
    width, height = size
    tall, wide = smart_resize(
        height, width, patch * 2, edges["shortest_edge"], edges["longest_edge"]
    )
    assert builder.build(grounding_row(*size), 0).columns["resized_size"] == (wide, tall)
    assert builder.resized_size(*size) == (wide, tall)


def test_gemma_squeezes_every_picture_into_one_square():
    builder = builder_of("gemma3")
    square = builder.processor.image_processor.size
    columns = builder.build(grounding_row(200, 60), 0).columns
    assert columns["resized_size"] == (square["width"], square["height"])
    assert columns["original_size"] == (200, 60)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_an_answer_in_the_models_space_earns_what_the_same_box_earns_in_the_rows(family):
    builder = builder_of(family)
    prompt = builder.build(grounding_row(200, 60, answer="[[20, 10, 120, 50]]"), 0)
    columns = {name: [value] for name, value in prompt.columns.items()}
    space = prompt.columns["answer_coordinates"]
    assert space == {"qwen2_5_vl": "resized"}.get(family, "0-1000")
    sizes = (prompt.columns["original_size"], prompt.columns["resized_size"])
    assert sizes[0] != sizes[1], "a picture that keeps its size would show nothing"
    there = convert_boxes([[20, 10, 120, 30]], "original", space, *sizes)
    said = f"<answer>{json.dumps(there)}</answer>"
    assert boxes_iou([said], **columns) == [pytest.approx(0.5)]
    del columns["coordinates"]
    assert boxes_iou([said], **columns)[0] != pytest.approx(0.5), "and it did convert"


def test_points_are_measured_in_the_rows_unit_and_shares_in_the_pictures_pixels():
    facts = {"original_size": [(2000, 500)], "resized_size": [(1000, 1000)]}
    facts |= {"coordinates": ["resized"], "answer_coordinates": ["0-1000"]}
    columns = {**facts, "answer": ["[[500, 500]]"], "images": [[picture(0, 2000, 500)]]}
    # 8 of 1000 to the right: 8 resized pixels, 16 of the picture, whose diagonal is 2062.
    assert points_within(distance=8)(["[[508, 500]]"], **columns) == [1.0]
    assert points_within(distance=7.9)(["[[508, 500]]"], **columns) == [0.0]
    assert points_within(share=16.1 / 2061.6)(["[[508, 500]]"], **columns) == [1.0]
    assert points_within(share=15.9 / 2061.6)(["[[508, 500]]"], **columns) == [0.0]


def test_reference_boxes_may_have_a_corner_and_a_size_or_a_centre():
    said = ["[[10, 20, 30, 60]]"] * 3
    written = ["[[10, 20, 20, 40]]", "[[20, 40, 20, 40]]", "[[10, 20, 30, 60]]"]
    kinds = ["xywh", "cxcywh", None]
    assert boxes_iou(said, answer=written, box_format=kinds) == [1.0, 1.0, 1.0]


def test_a_row_that_declares_half_is_told_what_is_missing():
    with pytest.raises(ValueError, match="lacks answer_coordinates, original_size"):
        boxes_iou(["[[0, 0, 1, 1]]"], answer=["[[0, 0, 1, 1]]"], coordinates=["original"])
    builder = builder_of("qwen3_vl")
    with pytest.raises(ValueError, match="the column 'coordinates' is 'pixels'"):
        builder.build(grounding_row(60, 60, coordinates="pixels"), 0)
    with pytest.raises(ValueError, match="has the column 'resized_size'"):
        builder.build(grounding_row(60, 60, resized_size=[1, 2]), 0)
    two = [picture(0, 60, 60), picture(1, 60, 90)]
    with pytest.raises(ValueError, match="Boxes are of one picture"):
        builder.build(grounding_row(60, 60, images=two, problem="<image><image>?"), 0)


def test_the_rows_own_answer_space_wins_and_rows_that_declare_nothing_stay_as_they_are():
    builder = builder_of("qwen2_5_vl")
    own = builder.build(grounding_row(60, 60, answer_coordinates="0-1"), 0)
    assert own.columns["answer_coordinates"] == "0-1"
    plain = builder.build(grounding_row(60, 60, coordinates=None), 0)
    assert "resized_size" not in plain.columns
