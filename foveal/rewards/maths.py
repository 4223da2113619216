r"""Mathematical equality by math-verify: ``\frac{2}{4}`` is ``0.5``, ``(x+1)^2`` is ``x^2+2x+1``.

math-verify runs in a process of its own (``maths_worker`` says why), which starts with the first
call, takes about two seconds to start, and ends with this one. It can be used from any thread.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, reference_texts
from foveal.rewards.maths_worker import READY

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 512
"""Longer answers earn nothing; longer references are not understood (None)."""
SECONDS_AN_ANSWER = 5.0
"""An answer that takes longer to compare earns nothing."""

_DELIMITED = re.compile(
    r"(\${1,2})(?P<dollar>[^$]*)\1|\\\[(?P<square>.*)\\\]|\\\((?P<round>.*)\\\)", re.DOTALL
)
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{4}")


def math_answer(
    completions: Sequence[Any],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    r"""1.0 where the extracted answer equals the reference as mathematics, else 0.0.

    None where the reference is not understood. The answer is one expression in LaTeX or plain
    notation, with or without ``$``; text around it, or a second expression, earns nothing, and a
    list (``1, 2``) is a set that equals only the same set. Words are products of letters here:
    use ``exact_answer`` for them.

    Columns: ``answer`` (or ``solution``). Raises ValueError naming a row that has neither, and
    RuntimeError if math-verify cannot be loaded. Logs how many answers were given up on.
    """
    references = [_expression(text) for text in reference_texts(columns, len(completions))]
    answers = [_answer(text) for text in completion_texts(completions)]
    given_up: set[tuple[str, str]] = set()
    rewards = [_reward(pair, given_up) for pair in zip(references, answers, strict=True)]
    if log_metric is not None:
        log_metric("math_answer/given_up", float(len(given_up)))
    return rewards


def _answer(text: str) -> str:
    answer = extract_answer(text)
    # Prose takes computer algebra seconds a row, and is never an answer as a whole.
    return "" if not answer.marked and _PROSE.search(answer.text) else _expression(answer.text)


def _expression(text: str) -> str:
    """``text`` without the signs around mathematics; empty if it is too long."""
    text = text.strip().rstrip(".").strip()
    if delimited := _DELIMITED.fullmatch(text):
        text = next(inside for inside in delimited.groupdict().values() if inside is not None)
    # A leading "$5" is money.
    text = " ".join(text.removeprefix("\\$").removeprefix("$").split())
    return "" if len(text) > MAX_CHARACTERS else text


def _reward(pair: tuple[str, str], given_up: set[tuple[str, str]]) -> float | None:
    reference, answer = pair
    if not reference or not answer or pair in given_up:
        return 0.0 if reference else None
    try:
        equal = _equal(reference, answer)
    except TimeoutError as error:
        given_up.add(pair)
        logger.warning("math_answer: %s", error)
        return None if isinstance(error, ReferenceTimeoutError) else 0.0
    return None if equal is None else float(equal)


@lru_cache(maxsize=4096)
def _equal(reference: str, answer: str) -> bool | None:
    # A group repeats its answers. What timed out raises, so that it is not remembered: it may
    # have been the machine.
    return _worker.equal(reference, answer)


class ReferenceTimeoutError(TimeoutError):
    """The reference, and not the answer, took too long."""


class _Worker:
    """The process, started when needed and again after a request has ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def equal(self, reference: str, answer: str) -> bool | None:
        """None if the reference is not understood; TimeoutError if either takes too long."""
        with self._lock:
            try:
                return self._exchange(self._running(), reference, answer)
            except BaseException:
                # Interrupted half-way, the pipe may still hold an answer to this request.
                self.close()
                raise

    def _exchange(self, process: subprocess.Popen[str], reference: str, answer: str) -> bool | None:
        self._send(process, [reference, answer, SECONDS_AN_ANSWER])
        understood = self._receive(process)
        if understood is None:
            raise ReferenceTimeoutError(
                f"the reference {reference!r} took more than {SECONDS_AN_ANSWER:g} s to read; "
                "its rows are skipped. Write it in a simpler form"
            )
        equal = self._receive(process) if understood else None
        if understood and equal is None:
            raise TimeoutError(
                f"the answer {answer!r} took more than {SECONDS_AN_ANSWER:g} s to compare; "
                "it earns nothing"
            )
        return equal

    def close(self) -> None:
        """End the process, if this process started it."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        # A forked copy of this process must not talk into the same pipe.
        process = self._process
        if process is not None and process.poll() is None and self._owner == os.getpid():
            return process
        self.close()
        self._owner = os.getpid()
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", "from foveal.rewards.maths_worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        said = self._receive(process)
        if said != READY:
            raise RuntimeError(
                f"the process that runs math-verify did not start ({said or 'it ended'}); check "
                f"that '{sys.executable} -c \"import math_verify\"' works"
            )
        return process

    @staticmethod
    def _send(process: subprocess.Popen[str], request: list[Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()

    @staticmethod
    def _receive(process: subprocess.Popen[str]) -> Any:
        """The next value, or None if the process has ended."""
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith("\n"):
            process.wait()
            return None
        return json.loads(line)


_worker = _Worker()
atexit.register(_worker.close)
