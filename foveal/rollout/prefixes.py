"""Prompts in the KV cache: shared while they are in use, kept for later while there is room."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from foveal.rollout.pages import PagePool, pages_for


@dataclass(slots=True, eq=False)
class Prefix:
    """The keys and values of one prompt. Every request with the same key reads the same pages."""

    key: Hashable | None
    """Content of the prompt. A prompt without a key is never shared or kept."""
    pages: list[int]
    users: int = 0
    """Live requests that hold it. With none it is *spare*: kept, and dropped when room is short."""
    payload: Any = None
    """What the engine wants to keep with the prompt: the logits of its last position."""


class PrefixCache:
    """Finds prompts by their content; drops spare ones, the least recently used first.

    Args:
        pool: where the pages come from.
        keep: whether a prompt with a key stays after its last user has left.
    """

    def __init__(self, pool: PagePool, keep: bool) -> None:
        self.pool = pool
        self.keep = keep
        # Spare prefixes lie in order of their last use, because `leave` moves them to the end.
        self._known: dict[Hashable, Prefix] = {}

    def find(self, key: Hashable | None) -> Prefix | None:
        return None if key is None else self._known.get(key)

    def create(self, key: Hashable | None, tokens: int) -> Prefix:
        """Take pages for a prompt of ``tokens`` tokens, dropping spare prefixes for them."""
        assert self.find(key) is None, f"the prompt {key!r} is in the cache already"
        prefix = Prefix(key, self.take(pages_for(tokens)))
        if key is not None:
            self._known[key] = prefix
        return prefix

    def leave(self, prefix: Prefix) -> None:
        """One user less. The last one leaves the prefix spare, or its pages to the pool."""
        assert prefix.users > 0, f"the prompt {prefix.key!r} is left by more than its users"
        prefix.users -= 1
        if prefix.users:
            return
        known = self.find(prefix.key) is prefix
        if known:
            del self._known[prefix.key]
        if known and self.keep:
            self._known[prefix.key] = prefix
        else:
            self.pool.give(prefix.pages)

    def spare_pages(self, besides: Prefix | None = None) -> int:
        """Pages that dropping every spare prefix would free, ``besides`` left alone."""
        return sum(len(prefix.pages) for prefix in self._spare() if prefix is not besides)

    def make_room(self, count: int) -> bool:
        """Drop spare prefixes until ``count`` pages are free. Whether that many are."""
        for prefix in self._spare():
            if self.pool.free >= count:
                break
            self._drop(prefix)
        return self.pool.free >= count

    def take(self, count: int) -> list[int]:
        """Take pages from the pool, dropping spare prefixes for them."""
        self.make_room(count)
        return self.pool.take(count)

    def clear(self) -> None:
        """Share nothing that was computed before now. Live requests go on with what they hold."""
        for prefix in self._spare():
            self._drop(prefix)
        self._known.clear()

    def resident(self) -> list[Prefix]:
        """The prefixes that can be found."""
        return list(self._known.values())

    def _spare(self) -> list[Prefix]:
        return [prefix for prefix in self._known.values() if not prefix.users]

    def _drop(self, prefix: Prefix) -> None:
        del self._known[prefix.key]
        self.pool.give(prefix.pages)
