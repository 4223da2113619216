"""Repetition: a penalty on saying the same words again."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.rewards.extract import completion_texts

_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_DIGITS = re.compile(r"\d+")
_LONGEST = 30
"""Letters of a word; what is longer ("hahaha..") is no word and is read letter by letter."""


@dataclass(frozen=True)
class RepetitionPenalty:
    """The reward function that ``repetition_penalty_reward`` returns; it can be pickled."""

    ngram: int
    max_penalty: float

    __name__ = "repetition_penalty_reward"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [self._penalty(text) for text in completion_texts(completions)]

    def _penalty(self, text: str) -> float:
        # "Look at 1. Look at 2. Look at 3." repeats itself too, though each number is new.
        spoken = self._repeated(words(text)), self._repeated(words(_DIGITS.sub(" ", text)))
        return -self.max_penalty * max(spoken)

    def _repeated(self, said: Sequence[str]) -> float:
        """Share of the n-grams of words that were said before."""
        total = len(said) - self.ngram + 1
        if total < 1:
            return 0.0
        distinct = {tuple(said[place : place + self.ngram]) for place in range(total)}
        return 1 - len(distinct) / total


def words(text: str) -> list[str]:
    """Case-folded words; each character of scripts without spaces is a word."""
    pieces: list[str] = []
    for word in _WORD.findall(text.casefold()):
        pieces.extend(word if len(word) > _LONGEST else [word])
    return pieces


def repetition_penalty_reward(ngram: int = 4, max_penalty: float = 1.0) -> RepetitionPenalty:
    """Reward function: -max_penalty * share of n-grams that were said before, <= 0.

    0 where all n-grams of ``ngram`` words differ or the text is shorter, near -max_penalty where
    one is said over and over. The idea is that of arXiv:2502.03373, appendix C.2; here the whole
    completion counts, thinking included, once as it is and once without its numbers, and the higher
    share holds: a counter between the repeats does not hide them. Words are what lies between
    spaces and punctuation, in lower case; Chinese, Japanese, Thai and Lao characters count singly.
    Lists of boxes repeat their keys by nature: use it for prose.

    Silence is not punished: give it beside a reward for the answer. No column. Raises ValueError
    unless ``ngram`` is a whole number from 1 on and ``max_penalty`` is finite and above 0.
    """
    if not isinstance(ngram, int) or ngram < 1:
        raise ValueError(f"ngram is {ngram}; it must be a whole number from 1 on")
    if not (math.isfinite(max_penalty) and max_penalty > 0):
        raise ValueError(
            f"max_penalty is {max_penalty}; it must be finite and above 0, as the reward is its "
            "negative"
        )
    return RepetitionPenalty(ngram, float(max_penalty))
