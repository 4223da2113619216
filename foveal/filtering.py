"""Which rows of a data set a policy can learn from: those that it solves sometimes.

found = measure_rows(model, processor, "questions.parquet", ["exact_answer"], n=8)
found.counts()                     # {"kept": 310, "never": 120, "always": 55, "unscored": 0}
write_kept(found, "kept.parquet")  # the kept rows with a column ``pass_rate``
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from foveal.data import RowSource, load_rows, write_rows
from foveal.evaluate import Evaluation, evaluate

__all__ = ["MeasuredRows", "measure_rows", "write_kept"]

COLUMN = "pass_rate"


@dataclass(frozen=True, slots=True)
class MeasuredRows:
    """Rows of a set with the share of answers to each that were right."""

    source: RowSource
    pass_rates: tuple[float | None, ...]
    """One a row; None where the first reward says nothing about any of its answers."""
    above: float
    below: float

    @property
    def kept(self) -> list[int]:
        """Numbers of the rows whose pass rate lies between ``above`` and ``below``."""
        return [i for i in range(len(self.pass_rates)) if self._verdict(i) == "kept"]

    def counts(self) -> dict[str, int]:
        """How many rows are "kept", solved "never" or "always", outside "between", "unscored"."""
        found = Counter(self._verdict(index) for index in range(len(self.pass_rates)))
        return {name: found[name] for name in ("kept", "never", "always", "between", "unscored")}

    def _verdict(self, index: int) -> str:
        rate = self.pass_rates[index]
        if rate is None:
            return "unscored"
        if self.above < rate < self.below:
            return "kept"
        return {0.0: "never", 1.0: "always"}.get(rate, "between")


def measure_rows(
    model: Any,
    processor: Any,
    dataset: Any,
    reward_funcs: Any,
    *,
    n: int = 8,
    above: float = 0.0,
    below: float = 1.0,
    right_from: float = 1.0,
    temperature: float = 1.0,
    **settings: Any,
) -> MeasuredRows:
    """Answer every row ``n`` times and note how often it was right.

    Args:
        model, processor, dataset, reward_funcs: as for ``foveal.evaluate.evaluate``; the first
            reward says what is right.
        n: answers to each row.
        above, below: rows with a pass rate strictly between them are kept. 0 and 1 drop what is
            solved never or always.
        right_from: the first reward's value from which an answer is right.
        temperature: that of the training to come.
        settings: ``max_completion_length``, ``batch_size``, ``seed``, ``backend`` and
            ``show_progress`` of ``evaluate``.

    Raises:
        ValueError: for bounds that keep nothing, or ``n`` below 1.
    """
    if not (above < below and above >= 0 and below <= 1):
        raise ValueError(f"above is {above} and below {below}; give 0 <= above < below <= 1")
    if n < 1:
        raise ValueError(f"n is {n}; give 1 answer a row or more")
    source = dataset if isinstance(dataset, RowSource) else load_rows(dataset)
    evaluation = evaluate(
        model,
        processor,
        source,
        reward_funcs,
        num_generations=n,
        temperature=temperature,
        **settings,
    )
    return MeasuredRows(source, _pass_rates(evaluation, right_from), above, below)


def _pass_rates(evaluation: Evaluation, right_from: float) -> tuple[float | None, ...]:
    first = next(iter(evaluation.rewards))
    rates: list[float | None] = []
    for prompt in evaluation.results:
        said = [sample.rewards[first] for sample in prompt.samples]
        right = [reward >= right_from for reward in said if reward is not None]
        rates.append(sum(right) / len(right) if right else None)
    return tuple(rates)


def write_kept(found: MeasuredRows, path: str | os.PathLike[str]) -> int:
    """Write the kept rows, with their ``pass_rate``, as ``foveal.data.write_rows`` does.

    Raises:
        ValueError: for another extension than .parquet and .jsonl, or if no row is kept.
    """
    kept = found.kept
    if not kept:
        raise ValueError(
            f"none of the {len(found.pass_rates)} rows is kept ({found.counts()}); move the bounds "
            "apart, or take easier or harder rows"
        )
    rows = ({**found.source.rows[index], COLUMN: found.pass_rates[index]} for index in kept)
    return write_rows(rows, path, found.source.base_dir)
