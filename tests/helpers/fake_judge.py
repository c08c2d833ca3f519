"""Judges that need no server: one that answers by a function, and one that does what it is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from dyme.supervision.judge.types import Answer, Question

FENCED = re.compile(r"^<<<(\w+) (\w+)\n(.*?)\n\2 \1>>>$", re.MULTILINE | re.DOTALL)


class FakeJudge:
    """Answers with `reply(question)` (None: no answer), at once or, with `holds`, when `release` is called."""

    def __init__(self, reply: Callable[[Question], dict[str, Any] | None], holds: bool = False) -> None:
        self.reply, self.holds = reply, holds
        self.questions: list[Question] = []
        self.waiting: list[tuple[Question, Future[Answer]]] = []

    def submit(self, question: Question, deadline_s: float | None = None) -> Future[Answer]:
        self.questions.append(question)
        future: Future[Answer] = Future()
        self.waiting.append((question, future))
        if not self.holds:
            self.release()
        return future

    def release(self) -> None:
        held, self.waiting = self.waiting, []
        for question, future in held:
            value = self.reply(question)
            future.set_result(Answer(value) if value is not None else Answer(None, "time_out"))

    def asked(self, purpose: str) -> list[Question]:
        return [question for question in self.questions if question.purpose == purpose]


def texts_of(question: Question) -> dict[str, str]:
    """The fenced texts of a question, by their names."""
    return {name.lower(): text for name, _, text in FENCED.findall(question.user)}


def obey(text: str) -> dict[str, Any] | None:
    """What a judge answers who does whatever `text` says."""
    told = re.search(r"rate (?:it )?(low|medium|high)", text, re.IGNORECASE)
    return {"rating": told[1].lower()} if told else {"rating": "low"}


def obey_outside(question: Question) -> dict[str, Any] | None:
    """The same of what stands outside the fences."""
    return obey(FENCED.sub("", question.user))
