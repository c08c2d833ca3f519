"""Checker: thinking scores of the completions of one group, lexical, by the judge, or both.

The judge sees each different trace of a group once, many in one question, and only those whose score can matter. The
rows of a group are compared with each other, so they need one scale: if a verdict is missing, the whole group is scored
lexically and marked "degraded".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from dyme.data.record import Record
from dyme.supervision.facts import Facts, FactStore, with_facts
from dyme.supervision.futures import Deadline, done, then, wait_for
from dyme.supervision.judge.types import Answer
from dyme.supervision.judge_prompts import addresses_judge
from dyme.supervision.lexical import thinking_score

Source = Literal["lexical", "judge", "both", "degraded", "skipped", "none"]
TRACES_PER_QUESTION = 16
"""Most traces in one question."""
RATINGS: Mapping[str, float] = {"low": 0.0, "medium": 0.5, "high": 1.0}


@dataclass(frozen=True)
class CheckRow:
    """A completion of a group: its thinking, and whether its format is valid."""

    record: Record
    thinking: str
    valid: bool


@dataclass(frozen=True)
class Thinking:
    """t in [0, 1] and its source; None if there is nothing to compare with. `skipped`: the judge is in use, but this
    row cannot matter (its group trains no rollout) or gets 0 from it (invalid format, no thinking)."""

    score: float | None
    source: Source


class PendingCheck:
    """Scores of the rows of one group, which share their record. Starting asks the judge if the settings want it, and
    does not wait. Without a judge its verdicts are missing.

    The judge rates the different traces of valid format, in `asked` questions. `decided`: none of these rows trains, so
    their scores do not matter and the judge is not asked. Lexical scores are computed at once if they are needed and
    the facts are known, so that `result` waits for the judge alone.
    """

    def __init__(self, rows: Sequence[CheckRow], store: FactStore, *, decided: bool = False) -> None:
        self._rows, self._cfg, self._decided = rows, store.cfg, decided
        self._facts = store.future(rows[0].record) if rows else done(Facts("", "none"))
        by_judge = self._cfg.checker in ("judge", "both") and not decided
        traces = [trace for row in rows if row.valid and (trace := _trace(row))] if by_judge else []
        self._verdicts = {batch: self._ask(store, batch) for batch in _batches(traces)}
        wanted = self._cfg.checker in ("lexical", "both") or (decided and self._cfg.checker != "none")
        self._words = self._compare(Deadline(0.0)) if wanted and self._facts.done() else None

    @property
    def asked(self) -> int:
        return len(self._verdicts)

    @property
    def lacks_facts(self) -> bool:
        """Whether the judge was asked for facts and has not given them."""
        return wait_for(self._facts, 0.0, Facts("", "none", degraded=True)).degraded

    def result(self, deadline_s: float | None = None) -> list[Thinking]:
        """The score of every row, in order; waits at most `deadline_s` in all."""
        if self._cfg.checker == "none":
            return [Thinking(None, "none")] * len(self._rows)
        limit = Deadline(deadline_s)
        if self._cfg.checker == "lexical" or self._decided:
            source: Source = "lexical" if self._cfg.checker == "lexical" else "skipped"
            return [Thinking(t, source) for t in self._lexical(limit)]
        ratings: dict[str, float] = {}
        for traces, verdict in self._verdicts.items():
            ratings |= zip(traces, _ratings(wait_for(verdict, limit.left(), Answer(None)), len(traces)))
        if len(ratings) < sum(map(len, self._verdicts)):
            return [Thinking(t, "degraded") for t in self._lexical(limit)]
        if self._cfg.checker == "judge":
            return [Thinking(*_judged(row, ratings)) for row in self._rows]
        return [_both(t, *_judged(row, ratings)) for row, t in zip(self._rows, self._lexical(limit))]

    def _ask(self, store: FactStore, traces: tuple[str, ...]) -> Future[Answer]:
        """Verdicts on traces, asked for once the facts are known; without facts the judge sees the pictures."""
        record = self._rows[0].record

        def follow(facts: Facts) -> Future[Answer]:
            texts = {"question": record.question, "facts": facts.text, "trace": traces}
            return store.ask("check", record, texts, show=not facts.text)

        return then(self._facts, follow)

    def _lexical(self, limit: Deadline) -> list[float | None]:
        if self._words is None:
            self._words = self._compare(limit)
        return self._words

    def _compare(self, limit: Deadline) -> list[float | None]:
        if not self._rows:
            return []
        record = with_facts(self._rows[0].record, wait_for(self._facts, limit.left(), Facts("", "none")))
        traces = {row.thinking for row in self._rows}
        scores = {trace: thinking_score(trace, record, self._cfg.contradiction_penalty) for trace in traces}
        return [scores[row.thinking] for row in self._rows]


def _batches(traces: Sequence[str]) -> list[tuple[str, ...]]:
    """Different traces, at most `TRACES_PER_QUESTION` together. A trace that addresses the judge is alone in its
    question, so it cannot influence the others. Sorted by text, so the same traces give the same question."""
    plain = sorted({trace for trace in traces if not addresses_judge(trace)})
    parts = [tuple(plain[at : at + TRACES_PER_QUESTION]) for at in range(0, len(plain), TRACES_PER_QUESTION)]
    return [*parts, *((trace,) for trace in sorted(set(traces) - set(plain)))]


def _trace(row: CheckRow) -> str:
    return " ".join(row.thinking.split())


def _ratings(answer: Answer, count: int) -> list[float]:
    """One rating for each of `count` traces, or none at all."""
    value = answer.value or {}
    given = value.get("ratings") if count > 1 else [value.get("rating")]
    known = [RATINGS[each] for each in given if each in RATINGS] if isinstance(given, list) else []
    return known if len(known) == count else []


def _judged(row: CheckRow, ratings: Mapping[str, float]) -> tuple[float, Source]:
    if not row.valid or not _trace(row):
        return 0.0, "skipped"
    return ratings[_trace(row)], "judge"


def _both(lexical: float | None, judged: float, source: Source) -> Thinking:
    """The mean; the judge's alone if the lexical score is None."""
    if lexical is None:
        return Thinking(judged, source)
    return Thinking((lexical + judged) / 2, "both" if source == "judge" else source)
