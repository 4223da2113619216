"""Charts, counts, sets and read text; and what a lazy policy might try."""

import pickle

import pytest

from foveal.rewards import chart_relaxed, count_shaped, exact_set, resolve, set_f1, text_edit


def score(reward, text, reference):
    (value,) = reward([text], answer=[reference])
    assert value is None or type(value) is float
    return value


# chart_relaxed


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("<answer>104.9</answer>", "100"),
        ("The answer is 95.", "100"),
        ("1,234", "1234"),
        ("1290", "1,234"),
        ("12 %", "12"),
        ("0.12", "12%"),
        ("$11.50", "12"),
        ("-3", "−3.1"),
        ("2010", "2010"),
        ("New  york.", "New York"),
        ("<answer>Galaxy 7</answer>", "galaxy 7"),
    ],
)
def test_relaxed_numbers_and_exact_text(text, reference):
    assert score(chart_relaxed(), text, reference) == 1.0


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", "100"),
        ("<answer></answer>", "0"),
        ("<answer>94.9</answer>", "100"),
        ("<answer>105.1</answer>", "100"),
        ("<answer>-100</answer>", "100"),
        ("<answer>95 or 105</answer>", "100"),
        ("<answer>0.001</answer>", "0"),
        ("It is 90, 100 or 110", "100"),
        ("<answer>2011</answer>", "2010"),  # any recent year is within 5 %
        ("<answer>2009.9</answer>", "2010"),
        ("<answer>Galaxy 8</answer>", "Galaxy 7"),
        ("<answer>7</answer>", "Galaxy 7"),
        ("<answer>yes or no</answer>", "yes"),
    ],
)
def test_far_numbers_near_years_and_hedges_earn_nothing(text, reference):
    assert score(chart_relaxed(), text, reference) == 0.0


def test_years_as_the_published_metric_has_them():
    assert score(chart_relaxed(years_exact=False), "2011", "2010") == 1.0
    assert score(chart_relaxed(), "2011", "2,010") == 1.0  # a separator: an amount


# count_shaped


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<answer>5</answer>", 1.0),
        ("There are 5 dogs, 5 in all", 1.0),
        ("5.0", 1.0),
        ("4", 0.3),
        ("6", 0.3),
        ("<answer>7</answer>", 0.2),
        ("<answer>8</answer>", 0.1),
        ("<answer>9</answer>", 0.0),
        ("<answer>2</answer>", 0.1),
        ("<answer>1</answer>", 0.0),
    ],
)
def test_counts_by_hand(text, reward):
    assert score(count_shaped(max_off=3), text, "5") == pytest.approx(reward)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "many",
        "4 or 5",
        "<answer>4, 5, 6</answer>",
        "1 2 3 4 5 6 7 8 9",
        "<answer>4-6</answer>",
        "<answer>4.5</answer>",
        "<answer>-5</answer>",
        "<answer>5%</answer>",
        "<answer>1e999</answer>",
        "<think>5</think>",
    ],
)
def test_a_hedge_over_counts_earns_nothing(text):
    assert score(count_shaped(), text, "5") == 0.0


def test_none_there_is_no_near_miss_of_one_there():
    assert score(count_shaped(), "0", "1") == 0.0
    assert score(count_shaped(), "1", "0") == 0.0
    assert score(count_shaped(), "0", "0") == 1.0


def test_a_constant_answer_earns_less_than_half_of_counting():
    rows = [str(n) for n in range(1, 11)]
    rewards = count_shaped()(["5"] * 10, answer=rows)
    assert sum(rewards) / 10 < 0.2
    assert score(count_shaped(), "5", "a dog") is None


# exact_set and set_f1


@pytest.mark.parametrize(
    "text",
    [
        "dog, Cat, red bird",
        "cat; dog; red  bird.",
        "<answer>cat, dog, and red bird</answer>",
        "- dog\n- red bird\n- cat",
        "1. dog\n2. cat\n3. red bird",
        '["dog", "cat", "red bird"]',
        '```json\n["cat", "dog", "red bird"]\n```',
        "[dog, cat, red bird]",
        "The answer is dog, cat, red bird.",
    ],
)
def test_the_ways_to_write_a_set(text):
    for reference in ("cat, dog, red bird", ["cat", "dog", "red bird"]):
        assert score(exact_set, text, reference) == 1.0
        assert score(set_f1(), text, reference) == 1.0


ANIMALS = "cat, dog, bird, cow, horse, sheep, pig, hen"


@pytest.mark.parametrize(
    ("text", "f1"),
    [
        ("", 0.0),
        ("fish", 0.0),
        ("cat", 2 / 3),
        ("cat, fish", 1 / 2),
        ("cat, dog, fish", 4 / 5),
        ("cat, dog, cat", 4 / 5),  # repeats count
        ("cat, dog, cat, dog", 0.0),
        ("cat dog", 0.0),
        (ANIMALS, 0.0),
        (f"<answer>{ANIMALS}</answer>", 0.0),
        ("<answer>cat, dog</answer><answer>fish</answer>", 0.0),
        ("<think>cat, dog</think>", 0.0),
        ('{"cat": "dog"}', 0.0),
        ('[["cat", "dog"]]', 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_listing_everything_earns_nothing(text, f1):
    assert score(set_f1(), text, "cat, dog") == pytest.approx(f1)
    assert score(exact_set, text, "cat, dog") == 0.0


def test_sets_of_numbers_and_of_nothing():
    assert score(exact_set, "3, 1.0, 2", [1, 2, 3]) == 0.0  # text is compared as it stands
    assert score(exact_set, "[3, 1.0, 2]", [1, 2, 3]) == 1.0
    assert score(exact_set, "7", 7) == 1.0
    assert score(exact_set, "[]", []) == score(set_f1(), "[]", []) == 1.0
    assert score(exact_set, "", []) == score(set_f1(), "", []) == 0.0
    assert score(set_f1(), "cat", []) == 0.0
    with pytest.raises(TypeError, match=r"row 0: the reference .* is no set of items; give a list"):
        exact_set(["cat"], answer=[{"cat": 1}])


# text_edit


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<answer>Total: 12.50</answer>", 1.0),
        ("<think>hm</think>Total:\n 12.50", 1.0),
        ("Total: 12.5", (11 / 12 - 0.5) / 0.5),  # one of twelve characters is missing
        ("total: 12.50", (11 / 12 - 0.5) / 0.5),
        ("Tot", 0.0),  # 3 of 12
        ("Total:", 0.0),  # half of it
        ("", 0.0),
        ("qwerty asdf", 0.0),
        ("Total: 12.50 " * 3, 0.0),
        ("Total: 12.50 Sum: 12.50 12.50", 0.0),
        ("abcdefghijklmnopqrstuvwxyz0123456789.: ", 0.0),
        ("<answer>Total: 12.50", 0.0),
    ],
)
def test_edit_distance_by_hand(text, reward):
    assert score(text_edit(), text, "Total: 12.50") == pytest.approx(reward)


def test_a_text_that_says_answer_is_not_cut():
    page = "Question 1.\nAnswer: 3 apples"
    assert score(text_edit(), page, page) == 1.0
    assert score(text_edit(), "3 apples", page) == 0.0


def test_case_and_floor_are_settings_and_a_low_floor_keeps_the_length_guard():
    assert score(text_edit(ignore_case=True), "TOTAL", "total") == 1.0
    assert score(text_edit(floor=0.0), "total", "totxx") == pytest.approx(0.6)
    assert score(text_edit(floor=0.0), "total" * 3, "total") == 0.0
    with pytest.raises(ValueError, match=r"row 1: the reference '<think>..' holds no text"):
        text_edit()(["a", "b"], answer=["a", "<think>.."])


# settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chart_relaxed(rel_tol=5)", "rel_tol is 5; .*0.05 is 5 %"),
        ("count_shaped(max_off=0)", "max_off is 0; it must be a whole number"),
        ("count_shaped(near=0.9)", "near is 0.9"),
        ("set_f1(max_extra=-1)", "max_extra is -1"),
        ("text_edit(floor=1.0)", "floor is 1.0"),
        ("text_edit(max_ratio=0.5)", "max_ratio is 0.5"),
    ],
)
def test_wrong_settings_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        resolve(text)


@pytest.mark.parametrize("name", ["chart_relaxed", "count_shaped", "set_f1", "text_edit"])
def test_functions_with_settings_are_named_and_can_be_pickled(name):
    reward = resolve(f"{name}()")
    assert reward.__name__ == name
    assert pickle.loads(pickle.dumps(reward)) == reward
