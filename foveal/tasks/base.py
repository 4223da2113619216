"""What the drawn tasks share: the row, its checks and the reward.

The same seed gives the same row on one machine and Pillow version; see ``canvas`` on text. All
randomness comes from ``dice.Dice``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from foveal.rewards.answer import exact_answer
from foveal.rewards.number import NumberWithin, number_within
from foveal.tasks.canvas import TYPEFACES, typeface
from foveal.tasks.dice import Dice

if TYPE_CHECKING:
    from PIL.Image import Image

DIFFICULTIES = (1, 2, 3, 4, 5)
INSTRUCTION = "Answer in <answer> tags."
_TYPEFACE_DICE = 1 << 60


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a task makes of its dice: the parts of a row."""

    picture: Image
    question: str
    answer: str
    metadata: dict[str, Any]
    """JSON; ``kind`` and ``tolerance`` (how far a number may be off; 0.0 for words) and all that
    ``reference_answer`` needs, but not the answer."""


class DrawnTask(ABC):
    """A task family that draws its pictures with ``Canvas``."""

    name: str
    kinds: ClassVar[tuple[str, ...]]
    """Kinds of question; every row's is in ``metadata["kind"]``."""
    needs: ClassVar[str | None] = None
    """An optional package that its pictures are drawn with."""

    def generate(self, seed: int, difficulty: int = 3) -> dict[str, Any]:
        """One row: ``images`` (one RGB picture), ``problem``, ``answer``, ``task``,
        ``difficulty`` and ``metadata``.

        Args:
            seed: 0 or more; the same seed and difficulty give the same row.
            difficulty: 1 (easy) to 5.

        Raises:
            ValueError: for a negative seed or an unknown difficulty.
        """
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be 0 or more")
        if difficulty not in DIFFICULTIES:
            raise ValueError(f"difficulty is {difficulty!r}; choose one of {list(DIFFICULTIES)}")
        number = seed * (max(DIFFICULTIES) + 1) + difficulty
        # Dice of its own, so that no kind of question has letters of its own.
        face = Dice(number + _TYPEFACE_DICE).pick(tuple(TYPEFACES))
        with typeface(face):
            drawn = self.draw(Dice(number), difficulty)
        return {
            "images": [drawn.picture],
            "problem": f"<image>{drawn.question} {INSTRUCTION}",
            "answer": drawn.answer,
            "task": self.name,
            "difficulty": difficulty,
            "metadata": drawn.metadata,
        }

    @abstractmethod
    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        """A picture and its question, from the dice alone."""

    @abstractmethod
    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """Solve a row from its metadata, without the answer."""

    def reward(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        """See ``tolerant_reward``."""
        return tolerant_reward(prompts, completions, **columns)


def tolerant_reward(prompts: Any, completions: Sequence[Any], **columns: Any) -> list[float]:
    """1.0 for the row's number within ``metadata["tolerance"]`` or for its word, else 0.0.

    Where the answer is, and what a list of guesses earns (nothing), is the rule of
    ``number_within`` and ``exact_answer``.

    Args:
        prompts: not used; the signature is TRL's.
        completions: B texts or conversations.
        columns: ``answer`` and ``metadata``, B values each.

    Raises:
        ValueError: without one of the two columns, or if its length is not B.
    """
    for name in ("answer", "metadata"):
        if name not in columns:
            raise ValueError(
                f"the reward of a drawn task needs the column {name!r}; rows of the task have it"
            )
        if len(columns[name]) != len(completions):
            raise ValueError(
                f"the reward got {len(completions)} completions and {len(columns[name])} values "
                f"of {name!r}; give one for each completion"
            )
    rows = zip(completions, columns["answer"], columns["metadata"], strict=True)
    return [_score(completion, answer, facts["tolerance"]) for completion, answer, facts in rows]


def _score(completion: Any, answer: str, tolerance: float) -> float:
    # "7:07" is a word: read as a number it would be 7, twice.
    is_number = answer.removeprefix("-").replace(".", "", 1).isdigit()
    function = _within(tolerance) if is_number else exact_answer
    return float(function([completion], answer=[answer])[0] or 0.0)


@lru_cache(maxsize=1024)
def _within(tolerance: float) -> NumberWithin:
    # The slack lets an answer exactly on the border in, whatever its binary fraction.
    return number_within(abs_tol=tolerance + 1e-9)


def plain(value: float) -> str:
    """A number as people write it: no ".0", at most two decimals."""
    text = f"{round(value, 2):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
