"""The KV cache's pages: which are free. Book-keeping alone; the tensors are the engine's."""

from __future__ import annotations

from collections.abc import Iterable

PAGE = 64
"""Tokens whose keys and values one page holds."""

SCRATCH = 0
"""The page that padding rows, and rows past their last token, write to. It has no owner."""


def pages_for(tokens: int) -> int:
    """Pages that hold the keys and values of ``tokens`` tokens."""
    return -(-tokens // PAGE)


class PagePool:
    """Hands out the pages of an arena, every one but the scratch page.

    Args:
        num_pages: pages of the arena, the scratch page among them.

    Raises:
        ValueError: if there is no page beside the scratch page.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise ValueError(
                f"the KV cache has {num_pages} pages; it needs at least 2, because page {SCRATCH} "
                "is scratch; give the cache more memory"
            )
        self.size = num_pages - 1
        self._free = list(range(num_pages - 1, SCRATCH, -1))
        self._taken: set[int] = set()

    @property
    def free(self) -> int:
        """How many pages could be taken now."""
        return len(self._free)

    @property
    def taken(self) -> frozenset[int]:
        """The pages that somebody has."""
        return frozenset(self._taken)

    def take(self, count: int) -> list[int]:
        """Take ``count`` pages, in no particular order.

        Raises:
            ValueError: if fewer are free; none is taken then.
        """
        if count > self.free:
            raise ValueError(
                f"{count} pages were asked for and {self.free} of {self.size} are free; "
                "give some back first"
            )
        pages = [self._free.pop() for _ in range(count)]
        self._taken.update(pages)
        return pages

    def give(self, pages: Iterable[int]) -> None:
        """Give pages back. Each must have been taken and not been given back since."""
        for page in pages:
            assert page in self._taken, f"page {page} is given back, but nobody has it"
            self._taken.remove(page)
            self._free.append(page)
