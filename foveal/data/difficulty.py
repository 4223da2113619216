"""What the policy can do already, measured while it trains, and what it is given next.

A group teaches most where the policy is right about half the time: with pass rate p the reward's
variance is p (1 - p), and at 0 or 1 there is no advantage at all. So tasks climb a ladder of
difficulties that keeps p within a band, and rows of a fixed set are drawn by p (1 - p).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CurriculumSettings", "Ladder", "PassRates"]

LEVELS = (1, 5)
"""Easiest and hardest difficulty of a task."""
FLOOR = 0.02
"""Least weight of a row: what was always or never solved is looked at again now and then."""
UNSEEN = 0.25
"""Weight of a row that was not tried yet: the most that p (1 - p) reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumSettings:
    """How pass rates steer what is drawn; nothing does unless asked for.

    Raises:
        ValueError: for a band, a smoothing or counts that cannot be meant.
    """

    is_on: bool = False
    band: tuple[float, float] = (0.3, 0.7)
    """Pass rates below the first make a task easier, above the second harder."""
    smoothing: float = 0.8
    """What the mean pass rate keeps of its past with each group; 0 is the last group alone."""
    groups: int = 4
    """Groups of one difficulty before the next change of it."""
    skip_solved_after: int | None = None
    """Rows all of whose completions were right so many times in a row are not drawn again."""
    skip_unsolved_after: int | None = None

    @property
    def steers(self) -> bool:
        """Whether any pass rate changes what is drawn."""
        return self.is_on or (self.skip_solved_after, self.skip_unsolved_after) != (None, None)

    def __post_init__(self) -> None:
        low, high = self.band
        if not 0 <= low < high <= 1:
            raise ValueError(f"the band of pass rates is {self.band}; give 0 <= low < high <= 1")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"the smoothing of pass rates is {self.smoothing}; it lies in [0, 1)")
        for name in ("groups", "skip_solved_after", "skip_unsolved_after"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or None")


class Ladder:
    """The difficulty of one task: up a step above the band of pass rates, down below it."""

    def __init__(self, level: int, settings: CurriculumSettings) -> None:
        self.level, self.settings = level, settings
        self._mean = 0.0
        self._groups = 0

    @property
    def pass_rate(self) -> float | None:
        """Exponential mean at the present difficulty; None before its first group."""
        # Divided by the weight so far, so that the first groups are not drawn towards 0.
        past = self.settings.smoothing**self._groups
        return self._mean / (1 - past) if self._groups else None

    def note(self, level: int, pass_rate: float) -> None:
        """A group of one difficulty was answered."""
        if level != self.level:
            return  # drawn before the last change
        keep = self.settings.smoothing
        self._mean = keep * self._mean + (1 - keep) * pass_rate
        self._groups += 1
        if not self.settings.is_on or self._groups < self.settings.groups:
            return
        low, high = self.settings.band
        mean = self.pass_rate
        assert mean is not None
        step = int(mean > high) - int(mean < low)
        if LEVELS[0] <= self.level + step <= LEVELS[1] and step:
            self.level += step
            self._mean, self._groups = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "mean": self._mean, "groups": self._groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.level, self._mean, self._groups = state["level"], state["mean"], state["groups"]

    def metrics(self) -> dict[str, float]:
        measured = {} if self.pass_rate is None else {"pass_rate": self.pass_rate}
        return {"difficulty": float(self.level), **measured}


class PassRates:
    """How often each of ``count`` rows was solved, newer tries counting more."""

    def __init__(self, count: int, settings: CurriculumSettings) -> None:
        self.count, self.settings = count, settings
        self._rate: dict[int, float] = {}
        self._streak: dict[int, int] = {}
        """How often in a row all (positive) or none (negative) of the completions were right."""
        self._dropped: set[int] = set()
        self._skipped: set[int] = set()
        self.forgiven = 0
        """How often no row was left and all came back."""

    def note(self, row: int, pass_rate: float) -> None:
        """A group of a row was answered."""
        before = self._rate.get(row, pass_rate)
        # Passes over a set are far apart: of the past only half stays.
        self._rate[row] = (before + pass_rate) / 2
        sign = int(pass_rate >= 1) - int(pass_rate <= 0)
        streak = self._streak.get(row, 0)
        self._streak[row] = streak + sign if sign * streak >= 0 and sign else sign
        solved, unsolved = self.settings.skip_solved_after, self.settings.skip_unsolved_after
        bound = solved if sign > 0 else unsolved
        if sign and bound is not None and abs(self._streak[row]) >= bound:
            self._skipped.add(row)

    def drop(self, row: int) -> None:
        """A row cannot be used at all."""
        self._dropped.add(row)

    def is_usable(self, row: int) -> bool:
        return row not in self._dropped and row not in self._skipped

    def count_usable(self) -> int:
        return self.count - len(self._dropped | self._skipped)

    def forgive(self) -> None:
        """Draw rows again that were left out, and count their streaks anew."""
        self._skipped.clear()
        self._streak.clear()
        self.forgiven += 1

    def weights(self) -> list[float]:
        """How likely each row is to be drawn, to be normalised."""
        weights = [UNSEEN] * self.count
        for row, rate in self._rate.items():
            weights[row] = max(rate * (1 - rate), FLOOR)
        for row in self._dropped | self._skipped:
            weights[row] = 0.0
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {
            "rate": [list(item) for item in self._rate.items()],
            "streak": [list(item) for item in self._streak.items()],
            "dropped": sorted(self._dropped),
            "skipped": sorted(self._skipped),
            "forgiven": self.forgiven,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rate, self._streak = dict(state["rate"]), dict(state["streak"])
        self._dropped, self._skipped = set(state["dropped"]), set(state["skipped"])
        self.forgiven = state["forgiven"]

    def metrics(self) -> dict[str, float]:
        if not self._rate:
            return {}
        seen = {"seen": len(self._rate) / self.count}
        seen["pass_rate"] = sum(self._rate.values()) / len(self._rate)
        bounds = (self.settings.skip_solved_after, self.settings.skip_unsolved_after)
        if bounds == (None, None):
            return seen
        return {**seen, "skipped": float(len(self._skipped)), "forgiven": float(self.forgiven)}
