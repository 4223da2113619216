"""Mathematical equality through math-verify's own process."""

import concurrent.futures
import logging
import shutil
import threading

import pytest

from foveal.rewards import math_answer, maths


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"\boxed{\frac{2}{4}}", "0.5"),
        (r"<answer>$x^2+2x+1$</answer>", "(x+1)^2"),
        (r"\[ \sqrt{12} \]", r"2\sqrt{3}"),
        (r"so the answer is \(x = 3\).", "3"),
        (r"\boxed{2, 1}", r"\{1, 2\}"),
        ("$5", "5"),
    ],
)
def test_equal_mathematics_earns_one(text, reference):
    assert math_answer([text], answer=[reference]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        r"\boxed{}",
        r"\boxed{3",
        r"\boxed{1, 2, 3}",
        r"\boxed{2 \text{ or } 3}",
        "<answer>2 or 3</answer>",
        "<answer>$1$ $2$ $3$</answer>",
        "<answer>$2$, or the final answer is $3$</answer>",
        r"\boxed{\pm 3}",
        r"\boxed{x > 2}",
        r"\boxed{[0, 5]}",
        "<answer>1} 3 {</answer>",
        "answer is 2. answer is 3.",
        "3 apples are shown beside some of the pears",
        r"\boxed{3" + "+0" * 300 + "}",  # longer than any answer
    ],
)
def test_lists_ranges_and_prose_earn_nothing(text):
    assert math_answer([text], answer=["3"]) == [0.0]


def test_prose_is_not_handed_to_computer_algebra(monkeypatch):
    # It would read the words as products of letters, which takes seconds a row.
    def refuse(reference, answer):
        raise AssertionError(answer)

    monkeypatch.setattr(maths, "_equal", refuse)
    prose = "I see a cat, a dog and three birds"
    assert math_answer([prose, ""], answer=["3"] * 2) == [0.0, 0.0]


def test_a_reference_that_is_no_mathematics_is_skipped():
    assert math_answer(["3", "3"], answer=["{{", "3"]) == [None, 1.0]


@pytest.fixture
def patience(monkeypatch):
    maths._worker.equal("1", "1")  # so that starting up does not count
    monkeypatch.setattr(maths, "SECONDS_AN_ANSWER", 1.0)


def test_an_answer_that_never_ends_earns_nothing_and_the_next_is_scored(patience, caplog):
    hang = r"\boxed{9^{9^{9^9}}}"
    logged = {}
    with caplog.at_level(logging.WARNING):
        rewards = math_answer([hang, "3", hang], log_metric=logged.__setitem__, answer=["3"] * 3)
    assert rewards == [0.0, 1.0, 0.0]
    assert logged == {"math_answer/given_up": 1.0}
    # Once, though it was answered twice.
    assert caplog.text.count("took more than 1 s to compare; it earns nothing") == 1


def test_a_worker_that_was_killed_is_started_again():
    maths._worker.equal("1", "1")
    process = maths._worker._process
    assert process is not None
    process.kill()
    process.wait()
    assert math_answer([r"\boxed{\frac{4}{2}}"], answer=["2"]) == [1.0]


def test_worker_threads_may_call_at_the_same_time():
    start = threading.Barrier(4)

    def call(number):
        start.wait()
        return math_answer([rf"\boxed{{\frac{{{2 * number}}}{{2}}}}"] * 3, answer=[str(number)] * 3)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(11, 15))) == [[1.0] * 3] * 4


def test_an_interrupt_does_not_leave_a_stale_verdict_for_the_next_row(monkeypatch):
    maths._worker.equal("1", "1")
    receive = maths._worker._receive

    def interrupted(process):
        monkeypatch.setattr(maths._worker, "_receive", receive)
        raise KeyboardInterrupt

    monkeypatch.setattr(maths._worker, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        math_answer([r"\boxed{71}"], answer=["72"])
    assert math_answer([r"\boxed{\frac{146}{2}}"], answer=["73"]) == [1.0]


def test_a_library_that_cannot_be_imported_is_named(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no parser generator')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"did not start \(no parser generator\); check that"):
        maths._Worker().equal("1", "1")


def test_a_broken_installation_is_named_with_a_remedy(monkeypatch):
    worker = maths._Worker()
    monkeypatch.setattr(maths.sys, "executable", shutil.which("true"))
    with pytest.raises(RuntimeError, match=r"did not start.*import math_verify"):
        worker.equal("1", "1")
