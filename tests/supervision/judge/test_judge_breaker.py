"""The circuit breaker, with a clock of the test's own, and the header Retry-After."""

from __future__ import annotations

import time

import pytest

from dyme.supervision.judge.endpoint import parse_retry_after
from dyme.supervision.judge.worker import LONGEST, CircuitBreaker


def test_failures_in_a_row_open_the_circuit() -> None:
    breaker = CircuitBreaker(3, 2.0)
    assert [breaker.failed(t, t + 0.5) for t in (0.0, 1.0, 2.0)] == [False, False, True]
    assert breaker.state == "open" and breaker.opened_at == 2.5
    assert not breaker.failed(3.0, 3.5), "it opens once"


def test_an_answer_between_breaks_the_row() -> None:
    breaker = CircuitBreaker(2, 2.0)
    breaker.failed(0.0, 0.5)
    breaker.answered(0.8)
    assert not breaker.failed(1.0, 1.5) and breaker.failed(2.0, 2.5)


def test_failures_at_the_same_time_count_once() -> None:
    breaker = CircuitBreaker(2, 2.0)
    assert not any(breaker.failed(0.0, 1.0 + i / 100) for i in range(16))
    assert breaker.failures == 1


def test_one_slow_question_among_answered_ones_is_no_failure() -> None:
    breaker = CircuitBreaker(3, 2.0)
    breaker.answered(5.0)
    assert not breaker.failed(1.0, 21.0, 3) and breaker.failures == 0
    assert breaker.failed(22.0, 42.0, 3), "silence for the whole time weighs as much as all of them"


def test_pauses_double_until_a_question_is_answered() -> None:
    breaker = CircuitBreaker(3, 2.0)
    pauses = []
    for _ in range(7):
        pauses.append(breaker.next_pause())
        breaker.close()  # its ping was answered, which is not yet a question
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0] and pauses[-1] == 2.0 * LONGEST
    breaker.answered(1.0)
    assert breaker.next_pause() == 2.0


def test_retry_after() -> None:
    assert parse_retry_after("3") == 3.0 and parse_retry_after(" 0.5 ") == 0.5 and parse_retry_after("0") == 0.0
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert parse_retry_after(date) == pytest.approx(30, abs=2)
    assert parse_retry_after("Fri, 01 Jan 2010 00:00:00 GMT") == 0.0
    assert parse_retry_after("999999999") == 3600.0
    for odd in (None, "", "soon", "-3", "1e5", "nan", "\u0663"):
        assert parse_retry_after(odd) is None
