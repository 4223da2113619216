"""The process in which math-verify runs; started by ``maths``, one request at a time.

A short answer can keep computer algebra busy for ever (``9^{9^{9^9}}`` is 13 characters), inside
one C call that no signal handler and no other thread can interrupt. So it runs here, under
faulthandler's watchdog: a C thread that needs no interpreter lock and ends the process when a
request takes too long. The parent sees a closed pipe, never a hang, and no process outlives its
parent.

Protocol, one JSON value a line: in ``[reference, answer, seconds]``; out first whether the
reference was understood, then (if so) whether the answer equals it.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
from typing import Any

READY = "ready"
SECONDS_TO_START = 120.0


def parse(text: str) -> list[Any]:
    """The one expression in ``text``; an empty list if it is none."""
    import math_verify

    # The box tells math-verify where the expression is, so that it does not search the text.
    return math_verify.parse(
        f"\\boxed{{{text}}}",
        extraction_config=[math_verify.LatexExtractionConfig()],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # type: ignore[arg-type]
    )


def equal(reference: list[Any], answer: list[Any]) -> bool:
    """Whether two parsed expressions are equal in math-verify's sense."""
    import math_verify

    return bool(answer) and math_verify.verify(reference, answer, timeout_seconds=None)


def serve() -> None:
    """Answer requests until the input closes."""
    # Ctrl-C reaches every process of the terminal; the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # math-verify warns that its own timeouts are off; the watchdog takes their place.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    out, sys.stdout = sys.stdout, sys.stderr

    def say(value: Any) -> None:
        print(json.dumps(value), file=out, flush=True)

    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(SECONDS_TO_START, exit=True, file=nowhere)
        equal(parse("1"), parse("1"))  # the first parse builds tables and takes far longer
        faulthandler.cancel_dump_traceback_later()
        say(READY)
        for line in sys.stdin:
            reference_text, answer_text, seconds = json.loads(line)
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            reference = parse(reference_text)
            say(bool(reference))
            if reference:
                say(equal(reference, parse(answer_text)))
            faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """``serve``, or say on one line what could not be imported."""
    try:
        serve()
    except ImportError as error:
        print(json.dumps(str(error)), file=sys.__stdout__, flush=True)
