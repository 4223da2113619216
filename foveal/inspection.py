"""What is in a data set, and which of its rows training would stumble over.

    inspection = inspect_rows(load_rows("questions.parquet"))
    inspection.findings        # row numbers and reasons
    inspection.would_fail      # whether one of them would stop a run

Every row is read as training reads it, by the same functions, so what passes here passes there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.progress import track

from foveal.data import (
    NormalRow,
    PictureError,
    PromptBuilder,
    RowSource,
    detect_format,
    question_key,
    row_key,
    stored_picture,
)
from foveal.data.columns import stored_pictures
from foveal.rewards.call import RewardCaller, RewardError
from foveal.rewards.extract import NOT_COLUMNS, reference_texts
from foveal.train.window import reward_groups
from foveal.types import Completion, Group, Prompt

CONSTANT_SHARE = 0.6
"""A constant answer that is right more often than this is worth a warning: two balanced choices
stay below it."""
FEWEST_ROWS = 10
"""Rows of a task from which the share of a constant answer means something."""
_NEED_NO_ANSWER = ("foveal.rewards.format", "foveal.rewards.length")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a row, or about the whole data set."""

    row: int | None
    """Its number, from 0; None for the whole data set."""
    kind: str
    """"columns", "row", "picture", "answer", "reward", "length", "duplicate", "contradiction" or
    "constant"."""
    reason: str
    is_error: bool
    """Training would stop; otherwise it is only worth knowing."""


@dataclass(slots=True, kw_only=True)
class Inspection:
    """What was seen in a data set."""

    name: str
    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    columns: dict[str, Counter[str]] = field(default_factory=dict)
    """Column -> types of its values; None of an empty one is "missing"."""
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    """Task (empty where rows have none) -> how often each answer occurs."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height in pixels of every picture that could be read, upright."""
    stored: Counter[str] = field(default_factory=Counter)
    """Format and mode of pictures as they are stored, such as "PNG RGBA"."""
    pictures_per_row: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    """Rows with a picture that is there and cannot be used."""
    missing: int = 0
    """Rows with a picture that is not there."""
    characters: list[int] = field(default_factory=list)
    """Of the text of each prompt."""
    tokens: list[int] = field(default_factory=list)
    """Of each prompt, pictures included; empty without a model."""
    picture_tokens: list[int] = field(default_factory=list)
    """Of each picture; empty without a model."""
    max_prompt_length: int | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def would_fail(self) -> bool:
        """Whether training on all rows would stop somewhere."""
        return any(finding.is_error for finding in self.findings)

    @property
    def too_long(self) -> int:
        """Prompts longer than ``max_prompt_length``."""
        bound = self.max_prompt_length
        return 0 if bound is None else sum(length > bound for length in self.tokens)

    def add(self, row: int | None, kind: str, reason: str, is_error: bool = True) -> None:
        prefix = f"row {row}: "
        self.findings.append(Finding(row, kind, reason.removeprefix(prefix), is_error))


class OwnAnswers:
    """What a row's rewards say about the row's own answer: an oracle that they should believe."""

    def __init__(self, seen: Inspection, rewards_of: RowRewards) -> None:
        self.seen, self.rewards_of = seen, rewards_of
        self._callers: dict[tuple[int, ...], RewardCaller] = {}

    def note(self, row: NormalRow, index: int) -> None:
        """Judge ``<answer>..</answer>`` around the answer; anything below 1 is a finding."""
        functions = list(self.rewards_of(row, index))
        if row.answer is None or not functions:
            return
        key = tuple(map(id, functions))
        if key not in self._callers:
            self._callers[key] = RewardCaller(functions)
        caller = self._callers[key]
        prompt = Prompt(index, (0,), (), row.messages, row.columns)
        answer = Completion((0,), f"<answer>{row.answer}</answer>", "stop")
        try:
            value = reward_groups(caller, [Group(prompt, (answer,))]).rewards_BF[0][0]
        except (RewardError, ValueError) as error:
            self.seen.add(index, "reward", str(error))
            return
        if math.isnan(value):
            said = f"{caller.names[0]} says nothing about it: the row is never judged"
            self.seen.add(index, "reward", said, is_error=False)
        elif value < 1:
            said = f"{caller.names[0]} gives the row's own answer {value:g}, not 1"
            self.seen.add(index, "reward", said, is_error=False)


RowRewards = Callable[[NormalRow, int], Iterable[Callable[..., Any]]]
"""The reward functions of a row, given it and its number."""


def inspect_rows(
    source: RowSource,
    builder: PromptBuilder | None = None,
    *,
    rewards_of: RowRewards | None = None,
    show_progress: bool = False,
) -> Inspection:
    """Read every row and note what is in it and what is wrong with it.

    Args:
        source: rows with a length.
        builder: of the model to be trained: counts tokens, and refuses what its processor
            refuses. None looks at rows and pictures only.
        rewards_of: the reward functions of each row, which then judge its own answer.
        show_progress: draw a bar.

    Raises:
        TypeError: ``source`` is streamed.
    """
    seen = Inspection(
        name=source.name,
        rows=len(source),
        max_prompt_length=builder.max_prompt_length if builder else None,
    )
    first_of: dict[str, int] = {}
    asked: dict[str, int] = {}
    judge = None if rewards_of is None else OwnAnswers(seen, rewards_of)
    indices = track(range(len(source)), "reading rows", disable=not show_progress)
    for index in indices:
        raw = source.rows[index]
        if isinstance(raw, Mapping):
            _note_columns(seen, raw, source)
        row = _read(seen, source, index)
        if row is None:
            continue
        _note_row(seen, row, index)
        _note_repeats(seen, row, index, first_of, asked)
        if builder is not None:
            _note_tokens(seen, row, index, builder)
        if judge is not None:
            judge.note(row, index)
    _judge_whole(seen)
    return seen


def check_rows(
    source: RowSource,
    functions: Iterable[Callable[..., Any]] | RowRewards,
    shown: int = 5,
    *,
    show_progress: bool = False,
) -> None:
    """Refuse data that an evaluation or a run would fail on, before weights are loaded.

    Args:
        source: rows with a length.
        functions: the reward functions, or for each row its own; ours that compare with an
            answer need one in every row.
        shown: how many bad rows the message names.
        show_progress: draw a bar.

    Raises:
        ValueError: names the first bad rows with their reasons, and counts the others.
    """
    functions_of = functions if callable(functions) else _always(functions)
    seen = Inspection(name=source.name, rows=len(source))
    for index in track(range(len(source)), f"checking {source.name}", disable=not show_progress):
        row = _read(seen, source, index)
        if row is None or not any(map(reads_answer, functions_of(row, index))):
            continue
        fault = answer_fault(row)
        if fault is not None:
            seen.add(index, "answer", fault)
    if not seen.findings:
        return
    listed = "; ".join(f"row {found.row}: {found.reason}" for found in seen.findings[:shown])
    more = len(seen.findings) - shown
    raise ValueError(
        f"{source.name}: {len(seen.findings)} of {seen.rows} rows cannot be used: {listed}"
        + (f"; and {more} more" if more > 0 else "")
        + ". `foveal data inspect` lists all"
    )


def _always(functions: Iterable[Callable[..., Any]]) -> RowRewards:
    kept = list(functions)
    return lambda row, index: kept


def reads_answer(function: Callable[..., Any]) -> bool:
    """Whether a reward function is one of ours that compares with the row's answer.

    What a user's own function reads is not known before it is called.
    """
    module = str(getattr(function, "__module__", None) or type(function).__module__)
    return module.startswith("foveal.rewards.") and module not in _NEED_NO_ANSWER


def answer_fault(row: NormalRow) -> str | None:
    """Why the built-in rewards cannot compare with the row's answer; None if they can."""
    columns = {name: [row.columns.get(name)] for name in ("answer", "solution")}
    if not any(_filled(value) for (value,) in columns.values()):
        return "it has no answer, which the built-in rewards need. Fill it, or drop the row"
    try:
        reference_texts(columns, 1)
    except ValueError as error:
        return str(error).removeprefix("row 0: ")
    except TypeError:
        return None  # boxes as a list are no text, and no fault
    return None


def _filled(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def _read(seen: Inspection, source: RowSource, index: int) -> NormalRow | None:
    """The row as training would read it; None, and a finding, if it cannot be read."""
    try:
        return source[index]
    except PictureError as error:
        seen.missing += error.missing
        seen.broken += not error.missing
        seen.add(index, "picture", str(error))
    except (TypeError, ValueError) as error:
        seen.add(index, "row", str(error))
    return None


def _note_columns(seen: Inspection, raw: Mapping[str, Any], source: RowSource) -> None:
    for name, value in raw.items():
        kind = "missing" if value is None else type(value).__name__
        seen.columns.setdefault(str(name), Counter())[kind] += 1
    try:
        seen.formats[detect_format(raw)] += 1
    except ValueError:
        seen.formats["unknown"] += 1
    for value in stored_pictures(raw):
        stored = stored_picture(value, source.base_dir)
        if stored is not None:
            seen.stored[f"{stored.format} {stored.mode}"] += 1


def _note_row(seen: Inspection, row: NormalRow, index: int) -> None:
    seen.sizes += [picture.size for picture in row.images]
    seen.pictures_per_row[len(row.images)] += 1
    seen.characters.append(len(question_text(row)))
    fault = answer_fault(row)
    if fault is not None:
        seen.add(index, "answer", fault)
    elif row.answer is not None:
        task = row.columns.get("task")
        seen.answers.setdefault("" if task is None else str(task), Counter())[row.answer] += 1


def question_text(row: NormalRow) -> str:
    """The conversation's text, turns on lines of their own, pictures as ``<image>``."""
    return "\n".join(
        "".join(part.get("text", "<image>") for part in message["content"])
        for message in row.messages
    )


def _note_repeats(
    seen: Inspection,
    row: NormalRow,
    index: int,
    first_of: dict[str, int],
    asked: dict[str, int],
) -> None:
    same, question = first_of.setdefault(row_key(row), index), question_key(row)
    before = asked.setdefault(question, index)
    if same != index:
        seen.add(index, "duplicate", f"it is the same as row {same}", is_error=False)
    elif before != index:
        reason = f"it asks what row {before} asks, and has another answer"
        seen.add(index, "contradiction", reason, is_error=False)


def _note_tokens(seen: Inspection, row: NormalRow, index: int, builder: PromptBuilder) -> None:
    try:
        length = builder.length(row, index)
        seen.picture_tokens += [builder.picture_tokens(*image.size) for image in row.images]
    except ValueError as error:
        seen.add(index, "row", str(error))
        return
    seen.tokens.append(length)
    bound = builder.max_prompt_length
    if bound is not None and length > bound:
        reason = f"its prompt has {length} tokens, more than {bound}: training drops it"
        seen.add(index, "length", reason, is_error=False)


def _judge_whole(seen: Inspection) -> None:
    """What no single row shows."""
    if seen.characters and not seen.answers:
        # Rewards of one's own may need none.
        seen.findings = [found for found in seen.findings if found.kind != "answer"]
        reason = "no row has an answer: the built-in rewards cannot be used"
        seen.add(None, "answer", reason, is_error=False)
    clash = sorted(NOT_COLUMNS & seen.columns.keys())
    if clash:
        reason = (
            f"the columns {clash} have names that reward functions are given for other things. "
            "Rename them"
        )
        seen.add(None, "columns", reason)
    if seen.tokens and seen.too_long == len(seen.tokens):
        reason = (
            f"all prompts are longer than max_prompt_length={seen.max_prompt_length}; the "
            f"shortest has {min(seen.tokens)} tokens. Raise it, or lower the processor's max_pixels"
        )
        seen.add(None, "length", reason)
    for task, answers in seen.answers.items():
        answer, share = constant_answer(answers)
        if answers.total() >= FEWEST_ROWS and share > CONSTANT_SHARE:
            of = f"the task {task!r}" if task else "the data"
            reason = f"always answering {answer!r:.60} is right in {share:.0%} of {of}"
            seen.add(None, "constant", reason, is_error=False)


def constant_answer(answers: Counter[str]) -> tuple[str, float]:
    """The most frequent answer and its share."""
    ((answer, count),) = answers.most_common(1)
    return answer, count / answers.total()


def quartiles(values: Sequence[int]) -> tuple[int, int, int, int]:
    """Smallest, middle (the lower of two), 95th percentile (nearest rank) and largest value."""
    ranked = sorted(values)
    last = len(ranked) - 1
    return ranked[0], ranked[last // 2], ranked[-(-95 * len(ranked) // 100) - 1], ranked[last]
