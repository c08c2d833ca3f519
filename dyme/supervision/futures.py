"""Futures of the judge: the interface of its client, deadlines, and futures that follow one another."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from dyme.supervision.judge.types import Answer, Question

A = TypeVar("A")
B = TypeVar("B")


class JudgeClient(Protocol):
    """Takes questions; `submit` neither raises nor blocks."""

    def submit(self, question: Question, deadline_s: float | None = None) -> Future[Answer]: ...


class Deadline:
    """Seconds that are left of a wait, over several futures."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())


def done(value: A) -> Future[A]:
    """A future that has its value already."""
    future: Future[A] = Future()
    future.set_result(value)
    return future


def wait_for(future: Future[A], seconds: float | None, otherwise: A) -> A:
    """The future's value, or `otherwise` where it is late or failed."""
    try:
        return future.result(seconds)
    except Exception:  # an edge: whatever goes wrong behind a future costs its answer, not the run
        return otherwise


def then(first: Future[A], follow: Callable[[A], Future[B]]) -> Future[B]:
    """The future that `follow` makes of the first one's value. It is called at once where the value is there, else in
    the thread that brings it. Whatever raises becomes the exception of the future."""
    out: Future[B] = Future()

    def fail(error: BaseException) -> None:
        if not out.done():
            out.set_exception(error)

    def pass_on(second: Future[B]) -> None:
        error = None if second.cancelled() else second.exception()
        if second.cancelled() or error:
            fail(error or RuntimeError("the question was cancelled"))
        else:
            out.set_result(second.result())

    def start(ready: Future[A]) -> None:
        try:
            follow(ready.result()).add_done_callback(pass_on)
        except BaseException as error:  # a cancelled future is no Exception
            fail(error)

    first.add_done_callback(start)
    return out
