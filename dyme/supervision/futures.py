"""Futures of the judge: the interface of its client, deadlines, and chained futures."""

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
    """The seconds left to wait for several futures together."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())


def done(value: A) -> Future[A]:
    """A future with its value set."""
    future: Future[A] = Future()
    future.set_result(value)
    return future


def wait_for(future: Future[A], seconds: float | None, otherwise: A) -> A:
    """The value of the future, or `otherwise` if it is late or failed."""
    try:
        return future.result(seconds)
    except Exception:  # an edge: a failure behind a future costs its answer, not the run
        return otherwise


def then(first: Future[A], follow: Callable[[A], Future[B]]) -> Future[B]:
    """The future that `follow` makes of the value of `first`. Whatever raises becomes the exception of the result.

    `follow` runs at once if the value is known, else in the thread that sets it.
    """
    out: Future[B] = Future()

    def finish(second: Future[B]) -> None:
        try:
            out.set_result(second.result())
        except Exception as error:
            out.set_exception(error)

    def start(ready: Future[A]) -> None:
        try:
            follow(ready.result()).add_done_callback(finish)
        except Exception as error:
            out.set_exception(error)

    first.add_done_callback(start)
    return out
