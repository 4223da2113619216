"""Pages, rows and prompts of the rollout engine, with an engine that only pretends to compute."""

from __future__ import annotations

import random

import pytest

from foveal.rollout import pages
from foveal.rollout import scheduler as scheduler_module
from foveal.rollout.pages import PagePool
from foveal.rollout.scheduler import Request, Scheduler


def token(row, place):
    """What a row draws at a place of its completion, whatever else happens."""
    return row.request.index * 100_000 + row.sample * 1_000 + place


class FakeEngine:
    """Does what `Work` says with a cache of plain values, and reads them back as attention would.

    A token comes out right only if the row's prompt and all its earlier tokens lie where its pages
    say, so any page given to two owners, or not written again, shows in what it reads.
    """

    def __init__(self, size, stop_lengths=None, **settings):
        self.scheduler = Scheduler(PagePool(size + 1), **settings)
        self.stop_lengths = stop_lengths or {}
        self.cache = {}
        self.epoch = 0
        self.joined = {}
        self.saved = {}
        self.batch = []
        self.started = []
        self.prefilled = []

    def add(self, index, prompt_tokens=1, n=1, max_tokens=1, key=None):
        request = Request(index, prompt_tokens, n, max_tokens, key)
        self.scheduler.add(request)
        self.scheduler.check()
        return request

    def clear(self):
        self.epoch += 1
        self.scheduler.clear_prefixes()
        self.scheduler.check()

    def write(self, owner_pages, place, value):
        page, offset = divmod(place, pages.PAGE)
        self.cache[owner_pages[page] if page < len(owner_pages) else 0, offset] = value

    def read(self, owner_pages, count):
        spots = (divmod(place, pages.PAGE) for place in range(count))
        return [self.cache[owner_pages[page], offset] for page, offset in spots]

    def prefill(self, request):
        content = request.index if request.key is None else request.key
        request.prefix.payload = (content, self.epoch)
        for place in range(request.prompt_tokens):
            self.write(request.prefix_pages, place, (content, self.epoch, place))

    def expect_prompt(self, request):
        content, epoch = request.prefix.payload
        assert content == (request.index if request.key is None else request.key)
        if self.joined.get(request) is not request.prefix:
            assert epoch == self.epoch, "a prompt of older weights was shared"
            self.joined[request] = request.prefix
        there = [(content, epoch, place) for place in range(request.prompt_tokens)]
        assert self.read(request.prefix_pages, request.prompt_tokens) == there

    def step(self, row, ids):
        """One decode step; past the row's own pages its values mean nothing."""
        place = len(ids) - 1
        self.write(row.pages, place, ids[-1])
        if len(ids) < row.request.max_tokens:
            assert self.read(row.pages, len(ids)) == ids
        ids.append(token(row, len(ids)))

    def stop(self, row):
        return len(row.ids) == self.stop_lengths.get((row.request.index, row.sample))

    def cycle(self):
        """One cycle; returns its work. Rows that were started or sent back are checked too."""
        scheduler = self.scheduler
        before, self.batch = self.batch, []
        work = scheduler.schedule()
        scheduler.check()
        self.check_work(work, before)
        for request in work.prefill:
            self.prefill(request)
        for row in work.recompute:
            assert row.ids == self.saved[row], "a row lost its tokens when it was sent back"
            for place, value in enumerate(row.ids[:-1]):
                self.write(row.pages, place, value)
        drawn = {row: list(row.ids) for row in work.decode}
        for row in work.start:
            self.expect_prompt(row.request)
            drawn[row].append(token(row, 0))
        for _ in range(work.steps):
            for row in work.decode:
                self.step(row, drawn[row])
        for row in work.decode:
            self.expect_prompt(row.request)
        for row in work.decode:
            new = drawn[row][len(row.ids) :]
            finished = scheduler.advance(row, [(i, -float(i)) for i in new], self.stop)
            assert finished == (row.finished is not None)
            self.saved[row] = list(row.ids)
            scheduler.check()
        return work

    def check_work(self, work, before):
        assert work.changed == (before != work.decode)
        assert not set(work.recompute) & set(before), "sent back and let in again in one cycle"
        assert work.steps <= self.scheduler.max_burst
        assert work.steps <= max((row.steps_left for row in work.decode), default=0)
        order = [(row.request.index, row.sample) for row in work.decode]
        assert order == sorted(order)
        assert work.decode or not self.scheduler.unfinished, "nobody runs"
        assert all(work.steps or not row.ids for row in work.decode), "a row gains nothing"
        self.batch = work.decode
        self.started += [(row.request.index, row.sample) for row in work.start]
        self.prefilled += [request.index for request in work.prefill]

    def run(self):
        works = []
        while self.scheduler.unfinished:
            works.append(self.cycle())
        return works


def expect_finished(engine, requests):
    for request in requests:
        assert request.prefix is None and not any(row.pages for row in request.sequences)
        for row in request.sequences:
            assert row.cached == 0
            stop = engine.stop_lengths.get((request.index, row.sample), request.max_tokens + 1)
            length = min(stop, request.max_tokens)
            assert row.ids == [token(row, place) for place in range(length)]
            assert row.logprobs == [-float(i) for i in row.ids]
            assert row.finished == ("stop" if stop <= request.max_tokens else "length")


def walk(seed):
    """A random life of a scheduler, whose requests come while others run."""
    draw = random.Random(seed)
    size = draw.randint(4, 24)
    engine = FakeEngine(
        size,
        max_rows=draw.randint(1, 8),
        max_burst=draw.randint(1, 9),
        keep_prefixes=draw.random() < 0.7,
    )
    lengths = {key: draw.randint(1, 10) for key in "abcd"}
    left, requests = draw.randint(1, 12), []
    while left or engine.scheduler.unfinished:
        while left and draw.random() < 0.4:
            key = draw.choice([None, *lengths])
            prompt = lengths.get(key) or draw.randint(1, 10)
            room = (size - pages.pages_for(prompt)) * pages.PAGE + 1
            most = draw.randint(1, min(room, 30))
            request = engine.add(len(requests), prompt, draw.randint(1, 6), most, key)
            for sample in range(request.n):
                engine.stop_lengths[request.index, sample] = draw.randint(1, 2 * most)
            requests.append(request)
            left -= 1
        if draw.random() < 0.05:
            engine.clear()
        engine.cycle()
    return engine, requests


def test_every_row_ends_with_its_own_tokens_whatever_the_shortage(monkeypatch):
    monkeypatch.setattr(pages, "PAGE", 4)  # many pages from few tokens
    preempted = hits = again = 0
    for seed in range(400):
        engine, requests = walk(seed)
        expect_finished(engine, requests)
        samples = [(r.index, row.sample) for r in requests for row in r.sequences]
        assert engine.started == samples, "first come, first served"
        preempted += engine.scheduler.counters.preemptions
        hits += engine.scheduler.counters.prefix_hits
        again += len(engine.prefilled) - len(set(engine.prefilled))
        engine.scheduler.release()
        engine.scheduler.check()
    assert preempted > 400 and hits > 200 and again > 20, "the walks met too little shortage"


def test_a_prompt_is_computed_once_where_there_is_room():
    engine = FakeEngine(1000, max_rows=5)
    keys = ["a", "b", "a", None, "c", "b", None, "a"]
    requests = [engine.add(i, 70, 4, 40, key) for i, key in enumerate(keys)]
    works = engine.run()
    expect_finished(engine, requests)
    assert [r.index for work in works for r in work.prefill] == [0, 1, 3, 4, 6]
    counters = engine.scheduler.counters
    assert (counters.prefills, counters.prefix_hits, counters.preemptions) == (5, 3, 0)
    # What was kept is three prompts of two pages; a later request finds one of them.
    assert engine.scheduler.pool.free == 1000 - 3 * 2
    engine.add(8, 70, 1, 5, "c")
    assert not engine.cycle().prefill


def test_prompts_are_not_kept_when_that_is_switched_off_but_shared_while_in_use():
    # Two pages for the prompt and one for each row: there is no room for it twice.
    engine = FakeEngine(4, max_rows=4, keep_prefixes=False)
    for index in range(2):
        engine.add(index, 70, 1, 5, "a")
    work = engine.cycle()
    assert (len(work.prefill), len(work.start)) == (1, 2)
    assert engine.scheduler.pool.free == 4


def test_weights_that_change_under_live_requests_cut_later_ones_off_from_their_prompts():
    engine = FakeEngine(20, max_rows=4)
    engine.add(0, 10, 1, 20, "a")
    engine.cycle()
    engine.clear()
    engine.add(1, 10, 1, 20, "a")
    assert [r.index for r in engine.cycle().prefill] == [1]
    engine.run()
    # The older one leaves nothing behind, the younger one its prompt.
    assert engine.scheduler.pool.free == 19


def test_a_request_that_could_never_finish_is_refused_with_numbers_and_a_limit_that_works():
    engine = FakeEngine(2, max_rows=4)
    with pytest.raises(ValueError) as error:
        engine.add(7, 64, 1, 66)
    said = str(error.value)
    assert "request 7: a prompt of 64 tokens takes 1 pages" in said
    assert "a completion of 66 takes 2 (its last token is never fed, so 65 positions)" in said
    assert "has 2 pages of 64 tokens; lower max_tokens to 65," in said
    with pytest.raises(ValueError, match="shorten the prompt"):
        engine.add(7, 129, 1, 1)
    for wrong in ({"n": 0}, {"max_tokens": 0}, {"prompt_tokens": 0}):
        with pytest.raises(ValueError, match=f"request 7: {next(iter(wrong))} is 0"):
            engine.add(7, **wrong)
    assert not engine.scheduler.unfinished
    request = engine.add(7, 64, 1, 65)
    engine.run()
    expect_finished(engine, [request])


def test_no_row_gets_pages_for_steps_that_it_will_not_take():
    engine = FakeEngine(20, max_rows=8, max_burst=100)
    short, long = engine.add(0, 1, 1, 65), engine.add(1, 1, 1, 90)
    work = engine.scheduler.schedule()
    # The first token is drawn without a step, and the last one is never fed.
    assert work.steps == 89
    assert [len(r.sequences[0].pages) for r in (short, long)] == [1, 2]


def test_a_single_token_takes_neither_a_step_nor_a_page():
    engine = FakeEngine(1, max_rows=4)
    request = engine.add(0, 64, 3, 1)
    work = engine.cycle()
    assert (work.steps, len(work.start), len(work.decode)) == (0, 3, 3)
    expect_finished(engine, [request])


def test_more_completions_than_rows_run_in_portions_on_one_prompt():
    engine = FakeEngine(20, max_rows=2)
    request = engine.add(0, 100, 5, 9)
    works = engine.run()
    assert [len(work.start) for work in works] == [2, 2, 1]
    assert [len(work.prefill) for work in works] == [1, 0, 0]
    assert all(work.changed and work.steps == 8 for work in works)
    expect_finished(engine, [request])
    assert not engine.cycle().decode


def test_the_burst_is_shortened_before_a_row_is_sent_back_and_the_youngest_goes(monkeypatch):
    monkeypatch.setattr(pages, "PAGE", 4)
    engine = FakeEngine(4, max_rows=3, max_burst=3)
    request = engine.add(0, 4, 2, 8)
    works = engine.run()
    # Of 4 pages the prompt has one and each row one; after 3 steps both rows have 4 tokens, so
    # only one more step can be taken without the two pages that are not there.
    assert [work.steps for work in works] == [3, 1, 3, 3]
    assert [[row.sample for row in work.decode] for work in works] == [[0, 1], [0, 1], [0], [1]]
    assert [[row.sample for row in work.recompute] for work in works] == [[], [], [], [1]]
    assert [work.changed for work in works] == [True, False, True, True]
    counters = engine.scheduler.counters
    assert (counters.preemptions, counters.recomputed_tokens, counters.prefills) == (1, 4, 1)
    expect_finished(engine, [request])


def test_a_row_that_would_take_its_elder_s_next_page_waits(monkeypatch):
    monkeypatch.setattr(pages, "PAGE", 4)
    engine = FakeEngine(3, max_rows=2, max_burst=3)
    engine.add(0, 4, 2, 8)
    works = engine.run()
    # A page is free for the second row at once, but then the first would find none.
    assert [[row.sample for row in work.decode] for work in works] == [[0]] * 3 + [[1]] * 3
    assert engine.scheduler.counters.preemptions == 0


def test_letting_rows_in_does_not_look_at_all_elders_for_each(monkeypatch):
    looks = 0
    plain = scheduler_module._missing_pages

    def counted(row, burst):
        nonlocal looks
        looks += 1
        return plain(row, burst)

    monkeypatch.setattr(scheduler_module, "_missing_pages", counted)
    scheduler = Scheduler(PagePool(2_000), max_rows=256)
    for index in range(32):
        scheduler.add(Request(index, 100, 8, 40, key=index))
    assert len(scheduler.schedule().decode) == 256
    assert looks <= 256


def test_rows_sent_back_return_before_requests_that_never_ran_and_in_their_old_order(monkeypatch):
    monkeypatch.setattr(pages, "PAGE", 4)
    engine = FakeEngine(7, max_rows=3, max_burst=4)
    requests = [engine.add(0, 4, 3, 17), engine.add(1, 4, 1, 5)]
    works = engine.run()
    # The first row alone needs 4 pages beside the prompt's, so both others have to go.
    assert engine.scheduler.counters.preemptions == 2
    entered = [(r.request.index, r.sample) for w in works for r in [*w.recompute, *w.start]]
    assert entered == [(0, 0), (0, 1), (0, 2), (0, 1), (0, 2), (1, 0)]
    expect_finished(engine, requests)


def test_a_prompt_of_which_no_row_runs_makes_room_and_is_computed_again(monkeypatch):
    monkeypatch.setattr(pages, "PAGE", 4)
    engine = FakeEngine(5, max_rows=2, max_burst=4)
    requests = [engine.add(0, 4, 1, 17), engine.add(1, 4, 1, 9)]
    works = engine.run()
    assert engine.prefilled == [0, 1, 1]
    assert [(row.request.index, len(row.ids)) for w in works for row in w.recompute] == [(1, 9)]
    expect_finished(engine, requests)


def test_of_the_spare_prompts_the_one_used_least_recently_goes_and_before_a_burst_is_cut(
    monkeypatch,
):
    monkeypatch.setattr(pages, "PAGE", 4)
    engine = FakeEngine(6, max_rows=3, max_burst=3)
    for index, key in enumerate("aba"):
        engine.add(index, 4, 1, 1, key)
        engine.run()
    assert engine.prefilled == [0, 1]
    engine.add(3, 4, 2, 8)
    assert [work.steps for work in engine.run()] == [3, 3, 1]
    find = engine.scheduler.prefixes.find
    assert find("a") and not find("b")


def test_the_pool_refuses_what_it_does_not_have_and_what_nobody_took():
    pool = PagePool(4)
    with pytest.raises(ValueError, match="4 pages were asked for and 3 of 3 are free"):
        pool.take(4)
    taken = pool.take(3)
    assert sorted(taken) == [1, 2, 3]
    pool.give(taken[:1])
    for wrong in (taken[:1], [0], [4]):
        with pytest.raises(AssertionError, match="nobody has it"):
            pool.give(wrong)
    with pytest.raises(ValueError, match="1 pages; it needs at least 2"):
        PagePool(1)


def test_the_arena_cannot_be_released_under_a_request():
    engine = FakeEngine(4, max_rows=1)
    engine.add(0, 1, 2, 20, "a")
    engine.cycle()
    with pytest.raises(AssertionError, match="while 1 rows run and 1 wait"):
        engine.scheduler.release()
    engine.run()
    engine.scheduler.release()
    assert engine.scheduler.pool.free == 4
