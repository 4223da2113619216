"""Which rows the rollout engine works on in each cycle, and which pages of the KV cache they have.

A *request* is a prompt with n completions. The prompt's keys and values are written once, into a
prefix that all completions read; a *sequence* is one completion, and its keys and values lie in
pages of its own. The engine turns in one cycle:

    work = scheduler.schedule()           who runs, with pages for the whole burst
    ...                                   prefill, recompute, start, then `steps` decode steps
    scheduler.advance(row, drawn, stop)   for each row of work.decode

First come, first served, row by row: rows are admitted in the order of (request, sample). When the
pages run out the row admitted last steps back and keeps its tokens; its keys and values are
computed again later. So the rows that run are always older than all that wait, and both the batch
and the queue are sorted without ever being sorted.

No torch here: everything is a count of tokens and a list of page numbers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from foveal.rollout.pages import SCRATCH, PagePool, pages_for
from foveal.rollout.prefixes import Prefix, PrefixCache
from foveal.types import PAGE, StopReason


@dataclass(slots=True, eq=False)
class Sequence:
    """One completion: waiting, running, or finished.

    Its first token is drawn from the prompt's last logits. Each decode step then feeds ``ids[-1]``,
    writes its keys and values at suffix position ``len(ids) - 1``, and gives the next token. The
    last token is never fed, so T tokens take T - 1 positions.
    """

    request: Request = field(repr=False)
    sample: int
    """Which of the request's n completions it is, from 0."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    """Suffix position p lies in ``pages[p // PAGE]``. Empty unless running."""
    running: bool = False
    finished: StopReason | None = None

    @property
    def cached(self) -> int:
        """Suffix tokens with keys and values in the cache: all but the newest, while running."""
        return max(len(self.ids) - 1, 0) if self.running else 0

    @property
    def steps_left(self) -> int:
        """Decode steps until ``max_tokens``; the first token takes none."""
        return self.request.max_tokens - max(len(self.ids), 1)

    def pages_after(self, steps: int) -> int:
        """Pages it fills with a burst of ``steps``, of which it takes no more than it needs."""
        tokens = max(len(self.ids), 1) + min(steps, self.steps_left)
        return pages_for(tokens - 1)


@dataclass(slots=True, eq=False)
class Request:
    """One prompt and its n completions."""

    index: int
    """Order of submission."""
    prompt_tokens: int
    n: int
    max_tokens: int
    key: Hashable | None = None
    """Content of the prompt: token ids and digests of the pictures. None: it is never shared."""
    payload: Any = None
    """The engine's own, for instance the Prompt."""
    prefix: Prefix | None = field(default=None, init=False)
    """The prompt in the KV cache; None while it is not there, or not known to be."""
    sequences: list[Sequence] = field(init=False)

    def __post_init__(self) -> None:
        self.sequences = [Sequence(self, sample) for sample in range(self.n)]

    @property
    def prefix_pages(self) -> list[int] | None:
        return None if self.prefix is None else self.prefix.pages


@dataclass(frozen=True, slots=True)
class Work:
    """What the engine does in one cycle, in this order."""

    prefill: list[Request]
    """Prompts to compute into ``prefix_pages``; their last logits go to ``prefix.payload``."""
    recompute: list[Sequence]
    """Rows that had to step back: compute ``ids[:-1]`` into ``pages`` again. The token drawn last
    needs no logits. A row with a single token has nothing to recompute and is not listed."""
    start: list[Sequence]
    """Rows that draw their first token from ``request.prefix.payload``, before the first step."""
    decode: list[Sequence]
    """All rows of the batch, the ones above included, by request and by sample."""
    steps: int
    """Decode steps to take after the start. A row that needs fewer has no pages for the rest:
    what it writes past its pages belongs on the scratch page, and its extra tokens are ignored."""
    changed: bool
    """Whether ``decode`` differs from the previous cycle's."""


@dataclass(slots=True)
class Counters:
    """What has happened since the scheduler was made."""

    cycles: int = 0
    prefills: int = 0
    prefix_hits: int = 0
    """Times that a request found its prompt in the cache, or about to be computed."""
    preemptions: int = 0
    recomputed_tokens: int = 0


class Scheduler:
    """Continuous batching over a pool of pages, with shared prompts and preemption.

    Args:
        pool: pages of the KV cache.
        max_rows: most rows in a batch.
        max_burst: most decode steps in a cycle, taken without the host looking.
        keep_prefixes: whether prompts stay in the cache after their request, while there is room.

    Raises:
        ValueError: if ``max_rows`` or ``max_burst`` is below 1.
    """

    def __init__(
        self, pool: PagePool, max_rows: int, max_burst: int = 8, keep_prefixes: bool = True
    ) -> None:
        for name, value in (("max_rows", max_rows), ("max_burst", max_burst)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.pool = pool
        self.max_rows = max_rows
        self.max_burst = max_burst
        self.prefixes = PrefixCache(pool, keep_prefixes)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.counters = Counters()
        self._previous: list[Sequence] = []

    @property
    def unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue the rows of a request.

        Raises:
            ValueError: if a count is below 1, or one row alone would not fit the cache.
        """
        for name in ("n", "prompt_tokens", "max_tokens"):
            if getattr(request, name) < 1:
                raise ValueError(
                    f"request {request.index}: {name} is {getattr(request, name)}; "
                    "it must be at least 1"
                )
        self._check_fits(request)
        assert not any(row.ids for row in request.sequences), "a request is added once"
        last = self.waiting[-1] if self.waiting else self.running[-1] if self.running else None
        assert last is None or last.request.index < request.index, "indices grow with submission"
        self.waiting.extend(request.sequences)

    def schedule(self) -> Work:
        """Choose the next cycle's rows and assign the pages of its whole burst.

        At least one row runs whenever a request is unfinished, so every cycle gains a token.
        """
        assert all(row.ids for row in self.running), "advance every row before the next cycle"
        self.counters.cycles += 1
        burst = self._grow()
        prefill, admitted = self._admit(burst)
        decode = list(self.running)
        changed = decode != self._previous
        self._previous = decode
        return Work(
            prefill=prefill,
            recompute=[row for row in admitted if len(row.ids) > 1],
            start=[row for row in admitted if not row.ids],
            decode=decode,
            steps=min(burst, max((row.steps_left for row in decode), default=0)),
            changed=changed,
        )

    def advance(
        self,
        row: Sequence,
        drawn: Iterable[tuple[int, float]],
        is_stop: Callable[[Sequence], bool],
    ) -> bool:
        """Append the tokens that a running row drew in this cycle, up to its end.

        Args:
            row: a row of ``Work.decode``.
            drawn: its (token, log-probability) pairs: the first token if it was just started, and
                one for each step. What follows its end is ignored.
            is_stop: asked after each token whether the row ends with it.

        Returns:
            Whether the row is finished. Its pages are given back then, and with the request's
            last row its prompt becomes spare.
        """
        assert row.running, f"request {row.request.index}, sample {row.sample} is not running"
        for token, logprob in drawn:
            row.ids.append(token)
            row.logprobs.append(logprob)
            if is_stop(row):
                row.finished = "stop"
            elif len(row.ids) == row.request.max_tokens:
                row.finished = "length"
            if row.finished:
                self.running.remove(row)
                self._vacate(row)
                if all(other.finished for other in row.request.sequences):
                    self._let_go(row.request)
                return True
        return False

    def clear_prefixes(self) -> None:
        """Share no prompt computed so far with later requests: the weights have changed."""
        self.prefixes.clear()

    def release(self) -> None:
        """Forget what lies in the cache, because the arena's memory is being freed."""
        assert not self.unfinished, (
            f"the KV cache is released while {len(self.running)} rows run and "
            f"{len(self.waiting)} wait"
        )
        self.prefixes.clear()
        assert self.pool.free == self.pool.size, f"pages {sorted(self.pool.taken)} were leaked"

    def check(self) -> None:
        """Assert every invariant. For tests: it looks at each row and page."""
        rows = [*self.running, *self.waiting]
        live = {id(row.request): row.request for row in rows}.values()
        holders = [request for request in live if request.prefix is not None]
        head = self.waiting[0].request if self.waiting else None
        assert all(_runs(request) or request is head for request in holders), "a prompt lies idle"
        held = [request.prefix for request in holders]
        resident = {id(p): p for p in [*held, *self.prefixes.resident()]}.values()
        owned = [page for owner in [*rows, *resident] for page in owner.pages]
        twice = [page for page, owners in Counter(owned).items() if owners > 1]
        assert not twice, f"pages {twice} have two owners"
        assert self.pool.taken == set(owned), "a page is lost, or used while it is free"
        assert len(owned) + self.pool.free == self.pool.size and SCRATCH not in owned
        users = Counter(map(id, held))
        assert all(prefix.users == users[id(prefix)] for prefix in resident), "wrong user count"
        assert len(self.running) <= self.max_rows
        assert all(row.running and row.request.prefix for row in self.running)
        assert all(len(row.pages) >= pages_for(row.cached) for row in self.running)
        assert not any(row.running or row.cached or row.pages for row in self.waiting)
        assert not any(row.finished for row in rows)
        order = [(row.request.index, row.sample) for row in rows]
        assert order == sorted(set(order)), "a younger row runs before an older one"

    def _check_fits(self, request: Request) -> None:
        prompt, suffix = pages_for(request.prompt_tokens), pages_for(request.max_tokens - 1)
        if prompt + suffix <= self.pool.size:
            return
        most = (self.pool.size - prompt) * PAGE + 1
        remedy = f"lower max_tokens to {most}" if most > 0 else "shorten the prompt"
        raise ValueError(
            f"request {request.index}: a prompt of {request.prompt_tokens} tokens takes {prompt} "
            f"pages and a completion of {request.max_tokens} takes {suffix} (its last token is "
            f"never fed, so {request.max_tokens - 1} positions), but the KV cache has "
            f"{self.pool.size} pages of {PAGE} tokens; {remedy}, or give the cache more memory"
        )

    def _grow(self) -> int:
        """Give the running rows pages for a burst; returns the steps that these are enough for.

        Short of pages, in this order: drop spare prefixes; shorten the burst; drop the prefix of a
        request of which no row runs; send back the youngest row.
        """
        while True:
            for burst in range(self.max_burst, 0, -1):
                missing = [_missing_pages(row, burst) for row in self.running]
                if self.prefixes.make_room(sum(missing)):
                    for row, count in zip(self.running, missing, strict=True):
                        row.pages += self.pool.take(count)
                    return burst
            if not self._drop_idle_prefix():
                self._preempt()

    def _admit(self, burst: int) -> tuple[list[Request], list[Sequence]]:
        """Let rows in from the head of the queue; returns prompts to prefill, and the rows."""
        prefill: list[Request] = []
        admitted: list[Sequence] = []
        growing = sum(map(_grows, self.running)) if self.waiting else 0
        while self.waiting and len(self.running) < self.max_rows:
            if not self._fits(self.waiting[0], burst, growing):
                # Alone it fits the cache: only elders, and the prompts they read, are in its way.
                assert self.running, "the only row fits the cache, yet finds no room"
                break
            row = self.waiting.popleft()
            if row.request.prefix is None and self._join_prefix(row.request):
                prefill.append(row.request)
            row.pages = self.prefixes.take(row.pages_after(burst))
            row.running = True
            self.running.append(row)
            growing += _grows(row)
            admitted.append(row)
            self.counters.recomputed_tokens += row.cached
        return prefill, admitted

    def _fits(self, row: Sequence, burst: int, growing: int) -> bool:
        """Whether a waiting row's pages can be had, and one more for each of the ``growing``
        running rows.

        Without that margin a row would often be let in at the expense of its elders' next page,
        and be sent back a few cycles later.
        """
        prefix = row.request.prefix or self.prefixes.find(row.request.key)
        need = row.pages_after(burst) + growing
        if prefix is None:
            need += pages_for(row.request.prompt_tokens)
        return need <= self.pool.free + self.prefixes.spare_pages(besides=prefix)

    def _join_prefix(self, request: Request) -> bool:
        """Attach a request to its prompt in the cache; whether that has yet to be computed."""
        prefix = self.prefixes.find(request.key)
        fresh = prefix is None
        if prefix is None:
            prefix = self.prefixes.create(request.key, request.prompt_tokens)
            self.counters.prefills += 1
        else:
            self.counters.prefix_hits += 1
        prefix.users += 1
        request.prefix = prefix
        return fresh

    def _preempt(self) -> None:
        """Send the youngest row back to the head of the queue, where it is the oldest."""
        assert len(self.running) > 1, "the only row fits the cache, yet finds no page"
        row = self.running.pop()
        self._vacate(row)
        self.waiting.appendleft(row)
        self.counters.preemptions += 1

    def _vacate(self, row: Sequence) -> None:
        row.running = False
        self.pool.give(row.pages)
        row.pages = []

    def _drop_idle_prefix(self) -> bool:
        """Let a request of which no row runs go without its prompt; whether there was one.

        It can only be the head's. Requests behind it have never run, or were sent back before it;
        and before a row is sent back, what was idle until then has been dropped.
        """
        request = self.waiting[0].request if self.waiting else None
        if request is None or request.prefix is None or _runs(request):
            return False
        self._let_go(request)
        return True

    def _let_go(self, request: Request) -> None:
        assert request.prefix is not None
        self.prefixes.leave(request.prefix)
        request.prefix = None


def _runs(request: Request) -> bool:
    return any(row.running for row in request.sequences)


def _grows(row: Sequence) -> bool:
    """Whether a running row will ask for more pages than it has."""
    return _missing_pages(row, row.steps_left) > 0


def _missing_pages(row: Sequence, burst: int) -> int:
    return max(row.pages_after(burst) - len(row.pages), 0)
