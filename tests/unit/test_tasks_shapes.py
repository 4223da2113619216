"""Counting and locating coloured shapes: the pictures, the answers and the reward."""

import hashlib
from collections import Counter
from time import perf_counter

import pytest

from foveal.tasks import ShapesTask, dataset, shapes_reward
from foveal.tasks.shapes import COLOURS, KINDS, LEVELS

TASK = ShapesTask()
PIXELS_SHA256 = "2cddd878fa1e67f63b708f729cb02420052f0822b504ba0887c95a4fd5749b9a"


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", sorted(LEVELS))
def test_every_row_is_solved_from_its_metadata(difficulty):
    for row in dataset("shapes", n=300, difficulty=difficulty):
        assert TASK.reference_answer(row["metadata"]) == row["answer"], row["problem"]


def test_pixels_and_questions_are_the_same_on_every_machine():
    rows = [TASK.generate(seed, level) for level in LEVELS for seed in (0, 1, 2**40)]
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row["images"][0].tobytes())
        digest.update(f"{row['problem']} {row['answer']}".encode())
    assert digest.hexdigest() == PIXELS_SHA256


def test_reference_answers_worked_out_by_hand():
    def thing(colour, shape, column, row):
        return {"colour": colour, "shape": shape, "cell": [column, row]}

    objects = [
        thing("red", "circle", 0, 0),
        thing("red", "cross", 3, 1),
        thing("blue", "cross", 1, 2),
    ]

    def answer(kind, colour, shape):
        question = {"kind": kind, "colour": colour, "shape": shape, "objects": objects}
        return TASK.reference_answer(question)

    assert answer("count", "red", None) == "2"
    assert answer("count", None, "cross") == "2"
    assert answer("count", "blue", "circle") == "0"
    assert answer("cell", "red", "circle") == "A1"
    assert answer("cell", "red", "cross") == "D2"
    assert answer("quadrant", "red", "cross") == "top right"
    assert answer("quadrant", "blue", None) == "bottom left"
    with pytest.raises(ValueError, match="2 objects match red None"):
        answer("cell", "red", None)


@pytest.mark.parametrize("difficulty", sorted(LEVELS))
@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_common_enough_to_be_worth_guessing(kind, difficulty):
    rows = [ShapesTask(kinds=(kind,)).generate(seed, difficulty) for seed in range(1000)]
    answers = Counter(row["answer"] for row in rows)
    possible = {"count": LEVELS[difficulty].largest_count + 1, "quadrant": 4, "cell": 16}[kind]
    share = answers.most_common(1)[0][1] / len(rows)
    print(f"{kind} at {difficulty}: {len(answers)} answers, the commonest {share:.1%}")
    assert len(answers) == possible
    # Even odds, and four standard deviations of a thousand draws.
    assert share < 1 / possible + 4 * (1 / possible / len(rows)) ** 0.5


def test_all_templates_and_all_ways_to_name_a_shape_appear():
    rows = dataset("shapes", n=600)
    by = {(row["metadata"]["colour"] is None, row["metadata"]["shape"] is None) for row in rows}
    assert by == {(False, False), (False, True), (True, False)}
    openings = Counter(row["problem"].split()[0] for row in rows)
    assert {"<image>How", "<image>Count", "<image>What", "<image>Where"} <= set(openings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"seed": 0, "difficulty": 9}, r"difficulty is 9; choose one of \[1, 2, 3, 4, 5\]"),
    ],
)
def test_bad_seed_and_difficulty_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TASK.generate(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 54}, "size is 54; it must be a multiple of 4 and at least 56"),
        ({"size": 114}, "size is 114"),
        ({"kinds": ("count", "colour")}, "choose one or more of count, quadrant, cell"),
        ({"kinds": ()}, "choose one or more of count, quadrant, cell"),
    ],
)
def test_bad_task_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShapesTask(**arguments)


def test_rows_are_made_fast_enough_to_never_wait_for_them():
    start = perf_counter()
    dataset("shapes", n=100, difficulty=5)
    assert 100 / (perf_counter() - start) > 50


# --- pictures: recovered from the pixels alone ------------------------------------------------


def _components(picture):
    """``(colour name, set of pixels)`` of each connected patch of one palette colour."""
    names = {rgb: name for name, rgb in COLOURS.items()}
    pixels = picture.load()
    left = {
        (x, y): names[pixels[x, y]]
        for x in range(picture.width)
        for y in range(picture.height)
        if pixels[x, y] in names
    }
    while left:
        start, colour = next(iter(left.items()))
        patch, edge = set(), [start]
        while edge:
            x, y = edge.pop()
            if left.get((x, y)) != colour:
                continue
            del left[x, y]
            patch.add((x, y))
            edge += [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
        yield colour, patch


def _box(patch):
    xs, ys = {x for x, _ in patch}, {y for _, y in patch}
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def _shape(patch):
    """Told by the corners of the box that are filled, and whether the middle of an edge is."""
    left, top, right, bottom = _box(patch)
    upper, lower = (left, top) in patch, (left, bottom - 1) in patch
    if upper and lower:
        return "square"
    if lower:
        return "triangle"
    # A circle fills the point a quarter of the way in from its corner; a cross does not.
    inset = (right - left) // 4
    return "circle" if (left + inset, top + inset) in patch else "cross"


@pytest.mark.parametrize("size", [56, 112, 224])
def test_objects_can_be_recovered_from_the_pixels(size):
    task = ShapesTask(size=size)
    for level in LEVELS:
        for seed in range(6 if size > 112 else 12):
            row = task.generate(seed, level)
            (picture,) = row["images"]
            assert picture.mode == "RGB" and picture.size == (size, size)
            seen = [(c, _shape(p), _box(p)) for c, p in _components(picture)]
            told = [(o["colour"], o["shape"], o["box"]) for o in row["metadata"]["objects"]]
            assert sorted(seen) == sorted(told)


def test_a_box_lies_inside_its_cell():
    for row in dataset("shapes", n=100, difficulty=5):
        cells = [tuple(thing["cell"]) for thing in row["metadata"]["objects"]]
        assert len(set(cells)) == len(cells)
        for thing in row["metadata"]["objects"]:
            left, top, right, bottom = thing["box"]
            column, line = thing["cell"]
            assert column * 28 < left < right < (column + 1) * 28
            assert line * 28 < top < bottom < (line + 1) * 28


# --- reward -----------------------------------------------------------------------------------


def _reward(text, answer="3"):
    return shapes_reward(["?"], [text], answer=[answer])[0]


@pytest.mark.parametrize(
    "text",
    [
        "<answer>3</answer>",
        "<answer> 3\n</answer>",
        "There are two on the left and one more. <answer>3</answer>",
    ],
)
def test_the_right_answer_in_tags_earns_one(text):
    assert _reward(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "<answer>3",
        "3</answer>",
        "</answer>3<answer>",
        "<answer></answer>",
        "<answer>4</answer>",
        "<answer>33</answer>",
        "<answer>3 or 4</answer>",
        "<answer>1 2 3 4 5</answer>",
        "<answer>-3</answer>",
        "<answer>3</answer><answer>4</answer>",
        "<answer>3</answer><answer>3</answer>",
        "<answer>2</answer> no, <answer>3</answer>",
        "<answer><answer>3</answer></answer>",
        "<answer>3</answer> <ANSWER>4</ANSWER>",
        "<answer>3</answer> <answer >4</answer>",
        "<answer>3<answer>",
        "<answer>٣</answer>",
        "<answer>answer</answer>",
        "<answer>None</answer>",
    ],
)
def test_hedged_repeated_or_unclosed_answers_earn_nothing(text):
    assert _reward(text) == 0.0


def test_words_are_compared_without_case_and_extra_space():
    assert _reward("<answer>Top  Left</answer>", "top left") == 1.0
    assert _reward("<answer>b3</answer>", "B3") == 1.0
    assert _reward("<answer>left top</answer>", "top left") == 0.0
    assert _reward("<answer>topleft</answer>", "top left") == 0.0


def test_the_empty_answer_is_never_matched_by_silence():
    assert _reward("", "") == 0.0
    assert _reward("no tags", "None") == 0.0


def test_conversations_and_batches_keep_their_order():
    said = [
        [{"role": "assistant", "content": "<answer>1</answer>"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "<answer>2</answer>"}]}],
        [{"role": "assistant", "content": "<answer>2</answer>"}],
    ]
    columns = {"answer": ["1", "2", "3"], "metadata": [{}, {}, {}], "trainer_state": None}
    assert TASK.reward(["?"] * 3, said, **columns) == [1.0, 1.0, 0.0]


def test_missing_answers_are_named():
    with pytest.raises(ValueError, match="needs the column 'answer'"):
        shapes_reward(["?"], ["3"], solution=["3"])
    with pytest.raises(ValueError, match="got 2 completions and 1 answers"):
        shapes_reward(["?"] * 2, ["3"] * 2, answer=["3"])


def test_every_row_pays_for_its_answer_and_not_for_the_next_rows():
    rows = dataset("shapes", n=60)
    answers = [row["answer"] for row in rows]
    said = [f"<answer>{answer}</answer>" for answer in answers]
    assert shapes_reward([""] * 60, said, answer=answers) == [1.0] * 60
    wrong = said[1:] + said[:1]
    expected = [float(a == b) for a, b in zip(answers, answers[1:] + answers[:1], strict=True)]
    assert shapes_reward([""] * 60, wrong, answer=answers) == expected
