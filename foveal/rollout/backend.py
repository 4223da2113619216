"""The interface between a policy and whoever wants completions from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from foveal.types import Group, Prompt, SamplingParams

OnTokens = Callable[[int, int, list[int]], None]
"""Called as tokens arrive: place of the prompt among the given ones, number of the sample, and
the ids that are new. All calls for one sample together give the ids of its completion."""


class RolloutBackend(Protocol):
    """Draws completions. Weights are the caller's: an update is seen by the next call."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        on_tokens: OnTokens | None = None,
    ) -> list[Group]:
        """Sample ``n`` completions for each prompt.

        Args:
            prompts: P prompts.
            n: completions of each, at least 1.
            sampling: how tokens are drawn.
            on_tokens: shown the tokens as they arrive, or all at the end.

        Returns:
            P groups in the order of ``prompts``. Placeholder tokens are never among the sampled
            ids. Each completion carries the log-probability of its tokens as the sampler saw
            them, or None if the backend has none.
        """
        ...

    def standby(self) -> None:
        """Give back memory that only rollouts need; the next ``generate`` takes it anew."""
        ...
