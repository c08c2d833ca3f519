"""Round robin and circuit breaker, with a clock of the test's own."""

from __future__ import annotations

import time

import pytest

from dyme.supervision.judge.rotation import LONGEST, Line, Rotation
from dyme.supervision.judge.wire import parse_retry_after


def lines(count: int) -> list[Line]:
    return [Line(str(i)) for i in range(count)]


def picks(rotation: Rotation, count: int, now: float = 0.0, avoid: tuple[int, ...] = ()) -> list[int | None]:
    return [rotation.pick(now, avoid)[0] for _ in range(count)]


def test_each_in_its_turn() -> None:
    assert picks(Rotation(lines(3)), 7) == [0, 1, 2, 0, 1, 2, 0]
    assert picks(Rotation(lines(3), first=2), 4) == [2, 0, 1, 2]


def test_open_ones_are_passed_over() -> None:
    some = lines(3)
    rotation = Rotation(some)
    some[1].open(0.0)
    assert picks(rotation, 4) == [0, 2, 0, 2]
    some[1].state = "half_open"
    assert picks(rotation, 2) == [0, 2]
    some[1].close()
    assert sorted(picks(rotation, 3)) == [0, 1, 2]
    for line in some:
        line.open(0.0)
    assert rotation.pick(0.0) == (None, 0.0)


def test_one_that_failed_a_question_comes_last() -> None:
    rotation = Rotation(lines(3))
    assert picks(rotation, 4, avoid=(0,)) == [1, 2, 1, 2]
    assert rotation.pick(0.0, (0, 1, 2))[0] is not None


def test_busy_ones_are_waited_for_only_where_all_are() -> None:
    some = lines(2)
    rotation = Rotation(some)
    some[0].busy_until = 5.0
    assert [rotation.pick(0.0) for _ in range(2)] == [(1, 0.0), (1, 0.0)]
    assert rotation.pick(0.0, avoid=(1,)) == (1, 0.0), "one that failed is better than one that must be waited for"
    some[1].busy_until = 8.0
    assert rotation.pick(1.0) == (0, 4.0)
    assert not rotation.others(1.0, 0) and rotation.others(9.0, 0)


def test_failures_in_a_row_open_the_circuit() -> None:
    line = Line("x")
    assert [line.failed(t, t + 0.5, 1, 3) for t in (0.0, 1.0, 2.0)] == [False, False, True]
    assert line.state == "open" and line.opened_at == 2.5
    assert not line.failed(3.0, 3.5, 1, 3), "it opens once"


def test_an_answer_between_breaks_the_row() -> None:
    line = Line("x")
    line.failed(0.0, 0.5, 1, 2)
    line.answered(0.8)
    assert not line.failed(1.0, 1.5, 1, 2) and line.failed(2.0, 2.5, 1, 2)


def test_failures_at_the_same_time_count_once() -> None:
    line = Line("x")
    assert not any(line.failed(0.0, 1.0 + i / 100, 1, 2) for i in range(16))
    assert line.failures == 1


def test_one_slow_question_among_answered_ones_is_no_failure() -> None:
    line = Line("x")
    line.answered(5.0)
    assert not line.failed(1.0, 21.0, 3, 3) and line.failures == 0
    assert line.failed(22.0, 42.0, 3, 3), "silence for the whole time weighs as much as all of them"


def test_pauses_double_until_a_question_is_answered() -> None:
    line = Line("x")
    pauses = []
    for _ in range(7):
        pauses.append(line.next_pause(2.0))
        line.close()  # its ping was answered, which is not yet a question
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0] and pauses[-1] == 2.0 * LONGEST
    line.answered(1.0)
    assert line.next_pause(2.0) == 2.0


def test_retry_after() -> None:
    assert parse_retry_after("3") == 3.0 and parse_retry_after(" 0.5 ") == 0.5 and parse_retry_after("0") == 0.0
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert parse_retry_after(date) == pytest.approx(30, abs=2)
    assert parse_retry_after("Fri, 01 Jan 2010 00:00:00 GMT") == 0.0
    assert parse_retry_after("999999999") == 3600.0
    for odd in (None, "", "soon", "-3", "1e5", "nan", "\u0663"):
        assert parse_retry_after(odd) is None
