"""Which prompts of a set are too long, before anything is trained."""

from __future__ import annotations

from rich.progress import track

from foveal.data.datasets import RowSource
from foveal.data.prompts import PromptBuilder

__all__ = ["describe_dropped", "survey"]

MANY_ROWS = 1000
"""From here on ``survey`` shows its progress: reading pictures takes milliseconds a row."""


def survey(
    source: RowSource, builder: PromptBuilder, limit: int | None = None
) -> tuple[list[int], list[tuple[int, int]]]:
    """Finds the rows whose prompts are too long, before anything is trained.

    Args:
        source: rows with a length.
        builder: its ``max_prompt_length`` is the bound. If None, no row is read.
        limit: look at the first ``limit`` rows only, and use only those.

    Returns:
        Numbers of the rows to keep, and (row number, tokens) of each dropped one. Neither
        cuts anything; ``describe_dropped`` puts the second into words.

    Raises:
        ValueError: no row is left; or a row is bad, as in ``PromptBuilder.build``.
        TypeError: ``source`` is streamed.
    """
    count = len(source) if limit is None else min(limit, len(source))
    if builder.max_prompt_length is None:
        return list(range(count)), []
    indices = track(range(count), "measuring prompts", disable=count < MANY_ROWS)
    lengths = [builder.length(source[index], index) for index in indices]
    kept = [i for i, length in enumerate(lengths) if length <= builder.max_prompt_length]
    if lengths and not kept:
        raise ValueError(
            f"all {count} prompts are longer than max_prompt_length={builder.max_prompt_length}; "
            f"the shortest has {min(lengths)} tokens. Raise max_prompt_length, or lower the "
            f"processor's max_pixels."
        )
    whole = set(kept)
    return kept, [(i, length) for i, length in enumerate(lengths) if i not in whole]


def describe_dropped(
    dropped: list[tuple[int, int]], total: int, max_prompt_length: int, shown: int = 10
) -> str:
    """One line for the log: how many prompts were dropped, and the first ``shown`` of them."""
    if not dropped:
        return f"all {total} prompts fit max_prompt_length={max_prompt_length}"
    rows = ", ".join(f"{index} ({length} tokens)" for index, length in dropped[:shown])
    more = f" and {len(dropped) - shown} more" if len(dropped) > shown else ""
    return (
        f"dropped {len(dropped)} of {total} prompts longer than "
        f"max_prompt_length={max_prompt_length}: rows {rows}{more}"
    )
