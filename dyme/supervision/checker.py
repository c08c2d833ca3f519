"""Checker: thinking scores of the completions of one group, lexical, by the judge, or both.

The judge sees only what can matter, and every trace once. The rows of a group are compared with each other, so they
are scored on one scale: where a verdict of the group is missing, the whole group is scored lexically and said to be
degraded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from dyme.data.record import Record
from dyme.supervision.asking import Asker, Deadline, done, then, wait_for
from dyme.supervision.facts import Facts, FactsBook, with_facts
from dyme.supervision.judge.types import Answer
from dyme.supervision.lexical import thinking_score
from dyme.supervision.prompts import Prompts, task_of
from dyme.supervision.settings import SupervisionConfig

Source = Literal["lexical", "judge", "both", "degraded", "skipped", "none"]
RATINGS: Mapping[str, float] = {"low": 0.0, "medium": 0.5, "high": 1.0}


@dataclass(frozen=True)
class CheckRow:
    """A completion of a group: its thinking, whether its format is valid and its answer right."""

    record: Record
    thinking: str
    valid: bool
    correct: bool


@dataclass(frozen=True)
class Thinking:
    """t in [0, 1] and who gave it; None where nothing is known to compare with. `skipped`: the judge is used, but this
    row cannot matter (a mastered group) or is worth 0 to it (invalid format, no thinking)."""

    score: float | None
    source: Source


class PendingCheck:
    """Scores that wait for verdicts; `asked` says how many."""

    def __init__(
        self,
        rows: Sequence[CheckRow],
        cfg: SupervisionConfig,
        verdicts: Mapping[str, Future[Answer]],
        facts: Future[Facts] | None,
        mastered: bool,
    ) -> None:
        self._rows, self._cfg, self._verdicts, self._facts = rows, cfg, verdicts, facts
        self._mastered = mastered

    @property
    def asked(self) -> int:
        return len(self._verdicts)

    def result(self, deadline_s: float | None = None) -> list[Thinking]:
        """The score of every row, in their order; waits at most `deadline_s` for all of them together."""
        if self._cfg.checker == "none":
            return [Thinking(None, "none")] * len(self._rows)
        limit = Deadline(deadline_s)
        if self._cfg.checker == "lexical" or self._mastered or not self._rows:
            source: Source = "lexical" if self._cfg.checker == "lexical" else "skipped"
            return [Thinking(t, source) for t in self._lexical(limit)]
        ratings = {trace: _rating(wait_for(v, limit.left(), Answer(None))) for trace, v in self._verdicts.items()}
        if any(rating is None for rating in ratings.values()):
            return [Thinking(t, "degraded") for t in self._lexical(limit)]
        if self._cfg.checker == "judge":
            return [Thinking(*_judged(row, ratings)) for row in self._rows]
        return [_both(t, *_judged(row, ratings)) for row, t in zip(self._rows, self._lexical(limit))]

    def _lexical(self, limit: Deadline) -> list[float | None]:
        if not self._rows:
            return []
        record = self._rows[0].record
        if self._facts:
            record = with_facts(record, wait_for(self._facts, limit.left(), Facts("", "none")))
        scores = {
            trace: thinking_score(trace, record, self._cfg.contradiction_penalty)
            for trace in dict.fromkeys(row.thinking for row in self._rows)
        }
        return [scores[row.thinking] for row in self._rows]


def start_check(
    rows: Sequence[CheckRow],
    cfg: SupervisionConfig,
    judge: Asker | None,
    prompts: Prompts | None,
    facts: FactsBook | None,
) -> PendingCheck:
    """Starts to score the rows of one group, which share their record; asks the judge where the settings want one, and
    waits for nothing. Without `prompts`, `facts` or a judge the verdicts are missing.

    Judged are different traces, of valid format, of a group in which not all rows are right.
    """
    mastered = all(row.correct and row.valid for row in rows)
    future = facts.future(rows[0].record) if facts and rows else None
    verdicts: dict[str, Future[Answer]] = {}
    if cfg.checker in ("judge", "both") and not mastered:
        for trace in dict.fromkeys(_trace(row) for row in rows if row.valid and _trace(row)):
            if judge is None or prompts is None or facts is None or future is None:
                verdicts[trace] = done(Answer(None, "no_judge"))
            else:
                verdicts[trace] = _ask(rows[0].record, trace, cfg, judge, prompts, facts, future)
    return PendingCheck(rows, cfg, verdicts, future, mastered)


def _ask(
    record: Record,
    trace: str,
    cfg: SupervisionConfig,
    judge: Asker,
    prompts: Prompts,
    facts: FactsBook,
    future: Future[Facts],
) -> Future[Answer]:
    """A verdict on one trace, asked for as soon as the facts are there; without facts the judge sees the pictures."""
    task = task_of(record, cfg.task)

    def send(known: Facts, images: tuple[bytes, ...]) -> Future[Answer]:
        texts = {"question": record.question, "facts": known.text, "trace": trace}
        return judge.submit(prompts.question("check", task, texts, record.id, images))

    def follow(known: Facts) -> Future[Answer]:
        if known.text or not record.images:
            return send(known, ())
        return then(facts.pictures(record), lambda images: send(known, images))

    return then(future, follow)


def _trace(row: CheckRow) -> str:
    return " ".join(row.thinking.split())


def _rating(answer: Answer) -> float | None:
    return RATINGS.get(str((answer.value or {}).get("rating")))


def _judged(row: CheckRow, ratings: Mapping[str, float | None]) -> tuple[float, Source]:
    if not row.valid or not _trace(row):
        return 0.0, "skipped"
    return ratings[_trace(row)] or 0.0, "judge"


def _both(lexical: float | None, judged: float, source: Source) -> Thinking:
    """The mean; the judge's alone where the record gives the words nothing to be compared with."""
    if lexical is None:
        return Thinking(judged, source)
    return Thinking((lexical + judged) / 2, "both" if source == "judge" else source)
