"""The result of an evaluation: every answer with its scores, the summary, the file, and two
results side by side.

    result = read_result("before.json")
    result.summary()["overall"]["metrics"]["pass@1"]     # mean, low, high, prompts, method
    compare(result, read_result("after.json")).metrics["pass@1"].test.p_value
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foveal.eval_stats import Estimate, PairedTest, estimate, majority, paired_test, pass_at_k

FORMAT = "foveal-eval-1"
LABELS = ("task", "difficulty")
"""Columns of the data by which results are grouped."""
SCORE = "score"
"""The metric of the reward that says what is right, where that is not one and the same."""
SAME_IN_BOTH = ("samples", "temperature", "max_tokens")
"""Settings without which a difference between two models may be one between settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer of the model."""

    text: str
    vote: str
    """The extracted answer in one spelling; empty if there is none."""
    stop_reason: str
    """"stop", or "length" at the token budget."""
    tokens: int
    rewards: dict[str, float | None]
    """By reward function; None where it has nothing to say about the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """One row of the data and its n samples."""

    index: int
    """Row number in the data."""
    key: str
    """``foveal.data.row_key``; a row that occurs again has ``#2``, ``#3``, ... after it."""
    answer: str | None
    """The reference."""
    labels: dict[str, str]
    """Its ``LABELS``, as text."""
    samples: tuple[Sample, ...]
    source: str = ""
    """Name of the data that it is a row of; empty where there is only one."""
    judge: str = ""
    """The reward that says whether an answer is right; the result's first if empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """A whole evaluation."""

    prompts: tuple[PromptResult, ...]
    rewards: tuple[str, ...]
    """Names of the reward functions; the first says whether an answer is right, unless a prompt
    has a ``judge`` of its own."""
    right_from: float
    """The value of that reward from which an answer is right."""
    settings: dict[str, Any]
    """What was asked for: model, data, sampling."""
    versions: dict[str, str]

    def judge_of(self, prompt: PromptResult) -> str:
        """The reward that says whether an answer to ``prompt`` is right."""
        return prompt.judge or self.rewards[0]

    def scores(self, prompt: PromptResult) -> list[float | None]:
        """What the prompt's judge says about each sample."""
        judge = self.judge_of(prompt)
        return [sample.rewards.get(judge) for sample in prompt.samples]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the data, in their order."""
        return tuple(dict.fromkeys(prompt.source for prompt in self.prompts))

    def metric_values(self, ks: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """Metric -> prompt key -> value; prompts without a value are left out.

        ``pass@k`` for each k, ``majority`` where there are several samples, ``reward/NAME``,
        ``truncated`` (share of samples cut at the token budget) and ``tokens``; and ``score``,
        the reward that says what is right, where prompts differ in it.
        """
        asked = self.default_ks() if ks is None else ks
        with_score = len({self.judge_of(prompt) for prompt in self.prompts}) > 1
        values: dict[str, dict[str, float]] = {}
        for prompt in self.prompts:
            for name, value in self._of_prompt(prompt, asked).items():
                if name != SCORE or with_score:
                    values.setdefault(name, {})[prompt.key] = value
        return values

    def default_ks(self) -> list[int]:
        """1, 2, 4, ... up to the number of samples, and that number itself."""
        most = max((len(prompt.samples) for prompt in self.prompts), default=1)
        powers = [2**power for power in range(most.bit_length()) if 2**power <= most]
        return sorted({*powers, most})

    def summary(self, ks: Sequence[int] | None = None, seed: int = 0) -> dict[str, Any]:
        """Estimates over all prompts and over each value of each of ``LABELS``.

        Args:
            ks: of pass@k; ``default_ks`` if None.
            seed: of the intervals.

        Returns:
            ``{"overall": group, "by_task": {value: group}, "by_difficulty": ..}``, where a group
            has ``prompts``, ``samples``, ``unscored`` (prompts that their judge says nothing
            about) and ``metrics``: name -> ``Estimate`` as a dict. With several sources also
            ``"by_source": {name: group}`` and ``"by_source_task": {name: {task: group}}``.
        """
        values = self.metric_values(ks)
        found: dict[str, Any] = {"overall": self._group(self.prompts, values, seed)}
        if len(self.sources) > 1:
            members = {s: [p for p in self.prompts if p.source == s] for s in self.sources}
            found["by_source"] = {s: self._group(kept, values, seed) for s, kept in members.items()}
            found["by_source_task"] = {
                s: self._by_label("task", kept, values, seed) for s, kept in members.items()
            }
        for label in LABELS:
            if groups := self._by_label(label, self.prompts, values, seed):
                found[f"by_{label}"] = groups
        return found

    def _by_label(
        self,
        label: str,
        prompts: Sequence[PromptResult],
        values: dict[str, dict[str, float]],
        seed: int,
    ) -> dict[str, Any]:
        members: dict[str, list[PromptResult]] = {}
        for prompt in prompts:
            if label in prompt.labels:
                members.setdefault(prompt.labels[label], []).append(prompt)
        return {name: self._group(members[name], values, seed) for name in sorted(members)}

    def _of_prompt(self, prompt: PromptResult, ks: Sequence[int]) -> dict[str, float]:
        samples = prompt.samples
        judged = [
            (sample, score)
            for sample, score in zip(samples, self.scores(prompt), strict=True)
            if score is not None
        ]
        right = [float(score >= self.right_from) for _, score in judged]
        count = int(sum(right))
        found = {f"pass@{k}": pass_at_k(len(right), count, k) for k in ks if k <= len(right)}
        if judged and len(samples) > 1:
            found["majority"] = majority([sample.vote for sample, _ in judged], right)
        if judged:
            found[SCORE] = sum(score for _, score in judged) / len(judged)
        for name in self.rewards:
            given = [value for s in samples if (value := s.rewards.get(name)) is not None]
            if given:
                found[f"reward/{name}"] = sum(given) / len(given)
        found["truncated"] = sum(s.stop_reason == "length" for s in samples) / len(samples)
        found["tokens"] = sum(s.tokens for s in samples) / len(samples)
        return found

    def _group(
        self, prompts: Sequence[PromptResult], values: dict[str, dict[str, float]], seed: int
    ) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for name, by_key in values.items():
            kept = [by_key[prompt.key] for prompt in prompts if prompt.key in by_key]
            if kept:
                metrics[name] = asdict(estimate(kept, seed))
        return {
            "prompts": len(prompts),
            "samples": sum(len(prompt.samples) for prompt in prompts),
            "unscored": sum(all(s is None for s in self.scores(prompt)) for prompt in prompts),
            "metrics": metrics,
        }


def write_result(path: Path, result: EvalResult, summary: dict[str, Any] | None = None) -> None:
    """Write a result and its summary as JSON."""
    whole = {"format": FORMAT, **asdict(result)}
    whole["summary"] = result.summary() if summary is None else summary
    # What is short goes first: a person who opens the file looks for the summary.
    whole["prompts"] = whole.pop("prompts")
    write_json(path, whole)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_result(path: str | Path) -> EvalResult:
    """Read what ``write_result`` wrote.

    Raises:
        ValueError: if the file is not there, or is none of its kind.
    """
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}); give a file that "
            "`foveal eval --out` wrote"
        ) from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no result of this version (its format is not {FORMAT!r}); give a file that "
            "`foveal eval --out` wrote"
        )
    return EvalResult(
        prompts=tuple(prompt_from(entry) for entry in whole["prompts"]),
        rewards=tuple(whole["rewards"]),
        right_from=whole["right_from"],
        settings=whole["settings"],
        versions=whole["versions"],
    )


def prompt_from(entry: dict[str, Any]) -> PromptResult:
    """The reverse of ``dataclasses.asdict``."""
    return PromptResult(**{**entry, "samples": tuple(Sample(**s) for s in entry["samples"])})


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric in two results, over the prompts in which both have a value."""

    first: Estimate
    second: Estimate
    test: PairedTest


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results, on their common prompts."""

    metrics: dict[str, Compared]
    common: int
    only_first: int
    only_second: int
    differing: dict[str, tuple[Any, Any]]
    """Those of ``SAME_IN_BOTH`` that differ."""
    by_source: dict[str, dict[str, Compared]] = field(default_factory=dict)
    """The same for each source of the first result, where the common prompts have several."""


def compare(first: EvalResult, second: EvalResult, seed: int = 0) -> Comparison:
    """Compare two results prompt by prompt; differences are second minus first.

    Raises:
        ValueError: if they were not judged alike, or share no prompt.
    """
    if first.right_from != second.right_from:
        raise ValueError(
            f"the first result has right_from {first.right_from} and the second "
            f"{second.right_from}; evaluate both models with the same --right-from"
        )
    others = {prompt.key: prompt for prompt in second.prompts}
    common = [prompt for prompt in first.prompts if prompt.key in others]
    if not common:
        raise ValueError(
            f"the two results share no prompt (of {len(first.prompts)} and {len(others)}); "
            "evaluate both models on the same data"
        )
    for prompt in common:
        judges = first.judge_of(prompt), second.judge_of(others[prompt.key])
        if judges[0] != judges[1]:
            raise ValueError(
                f"row {prompt.index} was judged by {judges[0]} in the first result and by "
                f"{judges[1]} in the second; evaluate both models with the same --reward"
            )
    values = first.metric_values(), second.metric_values()
    members = {s: [p.key for p in common if p.source == s] for s in first.sources}
    members = {source: keys for source, keys in members.items() if keys}
    settings = {n: (first.settings.get(n), second.settings.get(n)) for n in SAME_IN_BOTH}
    return Comparison(
        metrics=_compared([prompt.key for prompt in common], *values, seed),
        common=len(common),
        only_first=len(first.prompts) - len(common),
        only_second=len(others) - len(common),
        differing={name: pair for name, pair in settings.items() if pair[0] != pair[1]},
        by_source={source: _compared(keys, *values, seed) for source, keys in members.items()}
        if len(members) > 1
        else {},
    )


def _compared(
    keys: Sequence[str],
    first: dict[str, dict[str, float]],
    second: dict[str, dict[str, float]],
    seed: int,
) -> dict[str, Compared]:
    """Each metric over those of ``keys`` for which both results have a value."""
    found: dict[str, Compared] = {}
    for name, one in first.items():
        other = second.get(name, {})
        both = [key for key in keys if key in one and key in other]
        if both:
            sides = [one[key] for key in both], [other[key] for key in both]
            found[name] = Compared(
                estimate(sides[0], seed), estimate(sides[1], seed), paired_test(*sides, seed)
            )
    return found


def numbered(keys: Iterable[str]) -> list[str]:
    """Keys with ``#2``, ``#3``, ... where one occurs again, so that each is unique."""
    seen: dict[str, int] = {}
    found = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        found.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return found
