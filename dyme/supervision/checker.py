"""Checker: thinking scores of the completions of one group, lexical, by the judge, or both.

The judge sees only what can matter, every trace once and those of a group together. The rows of a group are compared
with each other, so they are scored on one scale: where a verdict of the group is missing, the whole group is scored
lexically and said to be degraded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from dyme.data.record import Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.facts import Facts, FactStore, with_facts
from dyme.supervision.futures import Deadline, JudgeClient, done, then, wait_for
from dyme.supervision.judge.types import Answer
from dyme.supervision.judge_prompts import Prompts, addresses_judge, task_of
from dyme.supervision.lexical import thinking_score

Source = Literal["lexical", "judge", "both", "degraded", "skipped", "none"]
TRACES_PER_QUESTION = 16
"""Traces of a group that are rated by one answer."""
RATINGS: Mapping[str, float] = {"low": 0.0, "medium": 0.5, "high": 1.0}


@dataclass(frozen=True)
class CheckRow:
    """A completion of a group: its thinking, and whether its format is valid."""

    record: Record
    thinking: str
    valid: bool


@dataclass(frozen=True)
class Thinking:
    """t in [0, 1] and who gave it; None where nothing is known to compare with. `skipped`: the judge is used, but this
    row cannot matter (its group trains no rollout) or is worth 0 to it (invalid format, no thinking)."""

    score: float | None
    source: Source


class PendingCheck:
    """Scores that wait for verdicts; `asked` is the number of questions. The lexical scores are computed at once if
    they will be wanted and the facts are known, so that `result` waits for the judge alone."""

    def __init__(
        self,
        rows: Sequence[CheckRow],
        cfg: SupervisionConfig,
        verdicts: Mapping[tuple[str, ...], Future[Answer]],
        facts: Future[Facts] | None,
        decided: bool,
    ) -> None:
        self._rows, self._cfg, self._verdicts, self._facts = rows, cfg, verdicts, facts
        self._decided = decided
        wanted = cfg.checker in ("lexical", "both") or (decided and cfg.checker != "none")
        known = facts is None or facts.done()
        self._words = self._compare(Deadline(0.0)) if wanted and known else None

    @property
    def asked(self) -> int:
        return len(self._verdicts)

    @property
    def lacks_facts(self) -> bool:
        """Whether the judge has not given the facts that it was asked for."""
        missing = Facts("", "none", degraded=True)
        return self._facts is not None and wait_for(self._facts, 0.0, missing).degraded

    def result(self, deadline_s: float | None = None) -> list[Thinking]:
        """The score of every row, in their order; waits at most `deadline_s` for all of them together."""
        if self._cfg.checker == "none":
            return [Thinking(None, "none")] * len(self._rows)
        limit = Deadline(deadline_s)
        if self._cfg.checker == "lexical" or self._decided or not self._rows:
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

    def _lexical(self, limit: Deadline) -> list[float | None]:
        if self._words is None:
            self._words = self._compare(limit)
        return self._words

    def _compare(self, limit: Deadline) -> list[float | None]:
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
    judge: JudgeClient | None,
    prompts: Prompts | None,
    facts: FactStore | None,
    *,
    decided: bool = False,
) -> PendingCheck:
    """Starts to score the rows of one group, which share their record: compares words if the facts are known, asks the
    judge if the settings want one, and does not wait. Without `prompts`, `facts` or a judge the verdicts are missing.

    The judge rates the different traces of valid format. `decided`: none of these rows trains, so their scores do not
    matter and the judge is not asked.
    """
    future = facts.future(rows[0].record) if facts and rows else None
    verdicts: dict[tuple[str, ...], Future[Answer]] = {}
    if cfg.checker in ("judge", "both") and not decided:
        for traces in _batches([trace for row in rows if row.valid and (trace := _trace(row))]):
            if judge is None or prompts is None or facts is None or future is None:
                verdicts[traces] = done(Answer(None, "no_judge"))
            else:
                verdicts[traces] = _ask(rows[0].record, traces, cfg, judge, prompts, facts, future)
    return PendingCheck(rows, cfg, verdicts, future, decided)


def _batches(traces: Sequence[str]) -> list[tuple[str, ...]]:
    """Different traces, at most `TRACES_PER_QUESTION` together. One that speaks to the judge is asked about alone, so
    that it cannot speak for the others. Sorted by text, so that the same traces are the same question."""
    plain = sorted({trace for trace in traces if not addresses_judge(trace)})
    parts = [tuple(plain[at : at + TRACES_PER_QUESTION]) for at in range(0, len(plain), TRACES_PER_QUESTION)]
    return [*parts, *((trace,) for trace in sorted(set(traces) - set(plain)))]


def _ask(
    record: Record,
    traces: tuple[str, ...],
    cfg: SupervisionConfig,
    judge: JudgeClient,
    prompts: Prompts,
    facts: FactStore,
    future: Future[Facts],
) -> Future[Answer]:
    """Verdicts on traces, asked for as soon as the facts are there; without facts the judge sees the pictures."""
    task = task_of(record, cfg.task)

    def follow(known: Facts) -> Future[Answer]:
        texts = {"question": record.question, "facts": known.text, "trace": traces}
        return then(
            facts.to_show(record, known),
            lambda images: judge.submit(prompts.question("check", task, texts, record.id, images)),
        )

    return then(future, follow)


def _trace(row: CheckRow) -> str:
    return " ".join(row.thinking.split())


def _ratings(answer: Answer, count: int) -> list[float]:
    """One for each trace, or none at all."""
    value = answer.value or {}
    given = value.get("ratings") if count > 1 else [value.get("rating")]
    known = [RATINGS[each] for each in given if each in RATINGS] if isinstance(given, list) else []
    return known if len(known) == count else []


def _judged(row: CheckRow, ratings: Mapping[str, float]) -> tuple[float, Source]:
    if not row.valid or not _trace(row):
        return 0.0, "skipped"
    return ratings[_trace(row)], "judge"


def _both(lexical: float | None, judged: float, source: Source) -> Thinking:
    """The mean; the judge's alone where the record gives the words nothing to be compared with."""
    if lexical is None:
        return Thinking(judged, source)
    return Thinking((lexical + judged) / 2, "both" if source == "judge" else source)
