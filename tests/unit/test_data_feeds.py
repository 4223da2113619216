"""Rows from streams, tasks and mixtures: the right ones, and the same ones after a resume."""

from __future__ import annotations

import json
from collections import Counter

import datasets
import pytest

from foveal.data import FeedSettings, load_rows, mixture, open_feed, task_rows
from foveal.data.difficulty import CurriculumSettings
from foveal.tasks import dataset, get_task

COUNT = 11


def rows(count=COUNT, first=0):
    return [{"problem": f"question {i}", "answer": str(i)} for i in range(first, first + count)]


class Again:
    """An iterable that begins anew and has no state."""

    def __init__(self, made):
        self.made, self.read = made, 0

    def __iter__(self):
        for row in self.made:
            self.read += 1
            yield row


class Stateful(Again):
    """As torchdata's: iteration goes on where ``load_state_dict`` says."""

    start = 0

    def __iter__(self):
        self.at, self.start = self.start, 0
        while self.at < len(self.made):
            self.at += 1
            self.read += 1
            yield self.made[self.at - 1]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.start = state["at"]


def hub():
    return datasets.Dataset.from_list(rows()).to_iterable_dataset(num_shards=3)


SOURCES = {
    "set": rows,
    "iterable": lambda: Again(rows()),
    "stateful": lambda: Stateful(rows()),
    "hub": hub,
    "hub, mapped": lambda: hub().map(lambda row: {**row, "more": 1}),
    "hub, shuffled by its own buffer": lambda: hub().shuffle(seed=3, buffer_size=5),
    "task": lambda: get_task("clocks"),
    "mixture": lambda: mixture([rows(), Again(rows(7, 100)), get_task("gauges")], [2, 1, 1]),
}


def answers(feed, count):
    return [feed.draw().row.answer for _ in range(count)]


def settings(**given):
    return FeedSettings(**{"seed": 1, "buffer": 4, **given})


@pytest.mark.parametrize("name", SOURCES)
def test_a_feed_goes_on_from_its_saved_state_as_if_it_had_not_stopped(name):
    whole = answers(open_feed(SOURCES[name](), settings()), 6 * COUNT)
    assert len(set(whole)) > 5
    for stop in (0, 1, 4, 7, COUNT, COUNT + 1, 2 * COUNT + 3):
        feed = open_feed(SOURCES[name](), settings())
        assert answers(feed, stop) == whole[:stop]
        state = json.loads(json.dumps(feed.state_dict()))
        other = open_feed(SOURCES[name](), settings())
        answers(other, 1)  # a trainer tries the first row before it loads a checkpoint
        other.load_state_dict(state)
        assert answers(other, 2 * COUNT) == whole[stop : stop + 2 * COUNT], stop
        feed.load_state_dict(state)
        assert answers(feed, 5) == whole[stop : stop + 5]


@pytest.mark.parametrize("name", ["set", "iterable", "hub", "stateful"])
def test_every_row_comes_once_a_pass_and_shuffled_within_the_buffer(name):
    feed = open_feed(SOURCES[name](), settings())
    for _ in range(3):
        assert sorted(map(int, answers(feed, COUNT))) == list(range(COUNT))
    in_order = [str(i) for i in range(COUNT)]
    assert answers(open_feed(SOURCES[name](), settings()), COUNT) != in_order
    assert answers(open_feed(SOURCES[name](), settings(shuffle=False)), COUNT) == in_order
    seeded = answers(open_feed(SOURCES[name](), settings(seed=2)), COUNT)
    assert seeded != answers(open_feed(SOURCES[name](), settings()), COUNT)


def test_a_stream_is_read_a_block_at_a_time_and_its_own_state_saves_reading():
    for make, read_again in ((Again, 12), (Stateful, 4)):
        source = make(rows(100))
        feed = open_feed(source, settings())
        answers(feed, 5)
        assert source.read == 8
        answers(feed, 5)
        other = make(rows(100))
        resumed = open_feed(other, settings())
        resumed.load_state_dict(feed.state_dict())
        resumed.draw()
        assert other.read == read_again


def test_an_iterator_can_be_resumed_forward_but_not_begun_anew():
    feed = open_feed(iter(rows(100)), settings())
    whole = answers(open_feed(rows_stream(100), settings()), 20)
    answers(feed, 6)
    other = open_feed(iter(rows(100)), settings())
    other.draw()
    other.load_state_dict(feed.state_dict())
    assert answers(other, 14) == whole[6:]
    with pytest.raises(ValueError, match="can be read once"):
        other.load_state_dict(open_feed(rows_stream(100), settings()).state_dict())
    short = open_feed(iter(rows(5)), settings())
    with pytest.raises(ValueError, match=r"read once, and 5 rows of it.*lower max_steps"):
        answers(short, 6)


def rows_stream(count):
    return Again(rows(count))


def test_a_stream_that_became_shorter_is_told_on_resume():
    feed = open_feed(rows_stream(100), settings())
    answers(feed, 50)
    with pytest.raises(
        ValueError, match="ended after 10 rows, and the checkpoint was made after 48"
    ):
        open_feed(rows_stream(10), settings()).load_state_dict(feed.state_dict())
    with pytest.raises(ValueError, match="is empty"):
        open_feed(Again([]), settings()).draw()


def test_a_task_makes_the_rows_of_its_data_set_one_by_one():
    feed = open_feed(task_rows(get_task("clocks"), difficulty=2, seed=7), settings())
    made = [feed.draw() for _ in range(3)]
    expected = dataset("clocks", 3, seed=7, difficulty=2)
    assert [fed.row.answer for fed in made] == [row["answer"] for row in expected]
    assert {fed.source for fed in made} == {"clocks"}


def test_a_mixture_draws_by_its_weights_and_by_seed_alone():
    def counts(seed):
        parts = mixture([rows(), rows(5, 50)], [3, 1], ["many", "few"])
        feed = open_feed(parts, settings(seed=seed))
        drawn = [feed.draw().source for _ in range(2000)]
        return drawn, Counter(drawn)

    drawn, found = counts(0)
    assert found["many"] / 2000 == pytest.approx(0.75, abs=0.03)
    assert drawn == counts(0)[0] != counts(5)[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([],), "a mixture of nothing"),
        (([rows(), rows()], [1]), "one positive number for each"),
        (([rows(), rows()], [1, 0]), "one positive number for each"),
        (([rows(), rows()], [1, float("nan")]), "one positive number for each"),
        (([rows(), rows()], None, ["a", "a"]), "all different"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        mixture(*given)


def test_parts_of_one_name_are_told_apart():
    assert mixture([rows(), rows(), get_task("clocks")]).names == (
        "the data set_1",
        "the data set_2",
        "clocks",
    )
    with pytest.raises(TypeError, match="get_task"):
        task_rows("clocks")


# -- difficulty


def steered(**given):
    return settings(curriculum=CurriculumSettings(**{"is_on": True, "groups": 3, **given}))


def climb(feed, rates):
    levels = []
    for rate in rates:
        feed.learn(feed.draw().key, rate)
        levels.append(int(feed.metrics()["difficulty"]))
    return levels


def test_a_task_climbs_above_the_band_falls_below_it_and_rests_within():
    task = task_rows(get_task("clocks"), difficulty=3)
    assert climb(open_feed(task, steered()), [1.0] * 10) == [3, 3, 4, 4, 4, 5, 5, 5, 5, 5]
    assert climb(open_feed(task, steered()), [0.0] * 7) == [3, 3, 2, 2, 2, 1, 1]
    assert climb(open_feed(task, steered()), [0.5, 0.6, 0.4] * 4) == [3] * 12
    # One lucky group does not move it, and with no curriculum nothing does.
    assert climb(open_feed(task, steered(smoothing=0.9)), [0.5] * 3 + [1.0] + [0.5] * 4) == [3] * 8
    assert climb(open_feed(task, settings()), [1.0] * 10) == [3] * 10


def test_the_mean_of_pass_rates_is_not_drawn_to_zero_at_its_start():
    feed = open_feed(get_task("clocks"), steered(smoothing=0.9, groups=10))
    climb(feed, [0.5])
    assert feed.metrics()["pass_rate"] == pytest.approx(0.5)
    climb(feed, [1.0])
    assert feed.metrics()["pass_rate"] == pytest.approx((0.9 * 0.5 + 1.0) / 1.9)


def test_groups_drawn_before_a_change_of_difficulty_do_not_count_after_it():
    feed = open_feed(get_task("clocks"), steered())
    early = [feed.draw().key for _ in range(5)]
    for key in early:
        feed.learn(key, 1.0)
    assert feed.metrics() == {"difficulty": 4.0}


def test_the_curriculum_is_resumed_exactly():
    whole = open_feed(get_task("clocks"), steered())
    rates = [1.0, 0.9, 1.0, 0.2, 0.1, 0.0, 0.0, 0.1, 0.0]
    levels = climb(whole, rates)
    half = open_feed(get_task("clocks"), steered())
    climb(half, rates[:4])
    other = open_feed(get_task("clocks"), steered())
    other.load_state_dict(half.state_dict())
    assert climb(other, rates[4:]) == levels[4:]
    assert len(set(levels)) > 2


def test_rows_half_solved_are_drawn_most_and_no_row_is_forgotten():
    feed = open_feed(rows(), steered())
    first = [feed.draw() for _ in range(COUNT)]
    assert len({fed.key for fed in first}) == COUNT, "untried rows come first, and in a window once"
    known = {0: 0.5, 1: 1.0, 2: 0.0}
    for fed in first:
        feed.learn(fed.key, known.get(fed.key, 1.0))
    drawn = Counter()
    for _ in range(4000):
        fed = feed.draw()
        drawn[fed.key] += 1
        feed.learn(fed.key, None)
    assert len(drawn) == COUNT
    # 0.25 against ten rows at the floor of 0.02.
    assert drawn[0] / 4000 == pytest.approx(0.25 / 0.45, abs=0.04)


def test_a_window_larger_than_the_set_draws_rows_again():
    feed = open_feed(rows(3), steered())
    assert len([feed.draw() for _ in range(8)]) == 8


@pytest.mark.parametrize("is_on", [False, True])
def test_rows_solved_again_and_again_are_left_out_and_forgiven_before(is_on):
    feed = open_feed(rows(4), steered(is_on=is_on, skip_solved_after=2, skip_unsolved_after=3))
    rate = {0: 1.0, 1: 0.0, 2: 0.5, 3: 1.0}
    seen = []
    for _ in range(400):
        fed = feed.draw()
        seen.append(fed.key)
        feed.learn(fed.key, 0.9 if fed.key == 3 and seen.count(3) % 2 == 0 else rate[fed.key])
    counts = Counter(seen)
    assert (counts[0], counts[1]) == (2, 3)
    assert counts[2] + counts[3] == 395 and counts[3] > 5
    assert feed.metrics()["skipped"] == 2


def test_a_set_of_which_all_is_solved_comes_back_and_is_counted():
    feed = open_feed(rows(2), steered(is_on=False, skip_solved_after=1))
    for _ in range(2):
        feed.learn(feed.draw().key, 1.0)
    assert (feed.metrics()["skipped"], feed.metrics()["forgiven"]) == (2, 0)
    assert len({feed.draw().key for _ in range(2)}) == 2
    assert (feed.metrics()["skipped"], feed.metrics()["forgiven"]) == (0, 1)
    for index in range(2):
        feed.drop(index)
    with pytest.raises(ValueError, match="all of its 2 prompts are longer"):
        feed.draw()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"band": (0.7, 0.3)}, "0 <= low < high <= 1"),
        ({"smoothing": 1.0}, "lies in"),
        ({"skip_solved_after": 0}, "skip_solved_after is 0"),
    ],
)
def test_a_curriculum_that_cannot_be_meant_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        CurriculumSettings(**given)


def test_any_iterable_of_rows_is_a_stream_and_other_things_are_not():
    assert load_rows(row for row in rows()).is_streamed
    assert load_rows(Again(rows())).is_streamed
    for wrong in (3, b"rows", object()):
        with pytest.raises(TypeError, match="rows cannot be read"):
            load_rows(wrong)
