"""Refiner: the reference trace of a record as it is memorized: its hint, a template filled from its facts, or what the
judge makes of them."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from dyme.data.record import Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.facts import Facts, FactStore
from dyme.supervision.futures import JudgeClient, done, then, wait_for
from dyme.supervision.judge.types import Answer
from dyme.supervision.judge_prompts import Prompts, addresses_judge, clean_text, task_of
from dyme.supervision.phrasing import BUILT_IN, fill_template, supported
from dyme.supervision.readings import contradicted_share
from dyme.supervision.templates import TemplatePool, derivation_of, kind_of
from dyme.text.normalise import normalise_text
from dyme.text.numbers import find_quantities, parse_number

_KEPT = 4096


@dataclass(frozen=True)
class Refined:
    """The trace to memorize (None: the answer alone), where it comes from, and the template it follows ("" for a hint).
    `degraded`: the judge was asked and gave no usable trace, so it is the hint; `why` says what was wrong."""

    trace: str | None
    source: Literal["hint", "rules", "judge", "degraded"]
    template: str = ""
    why: str = ""


class PendingTrace:
    """A reference trace that may wait for the judge."""

    def __init__(self, future: Future[Refined], otherwise: Refined) -> None:
        self._future, self._otherwise = future, otherwise

    @property
    def ready(self) -> bool:
        return self._future.done()

    @property
    def failed(self) -> bool:
        """Whether the judge was asked in vain."""
        return self.ready and self.result(0.0).source == "degraded"

    def result(self, deadline_s: float | None = None) -> Refined:
        """The refined trace; the unrefined one where it is not there in time."""
        return wait_for(self._future, deadline_s, self._otherwise)


@dataclass(frozen=True)
class _Ahead:
    """A trace that is being made, and the kind and best template of its record when it was begun."""

    kind: str
    template: str
    pending: PendingTrace


class Refiner:
    """Refines reference traces, ahead of time where it is told which will be needed. Safe for threads."""

    def __init__(
        self,
        cfg: SupervisionConfig,
        judge: JudgeClient | None,
        prompts: Prompts,
        facts: FactStore,
        flag: str = "Answer:",
    ) -> None:
        self._cfg, self._judge, self._prompts, self._facts, self._flag = cfg, judge, prompts, facts, flag
        self._ahead: OrderedDict[str, _Ahead] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, record: Record, pool: TemplatePool) -> PendingTrace:
        """The trace of a record; what runs for it already under the same best template is taken over. One that failed
        is tried again."""
        if self._cfg.refiner != "judge":
            return self._make(record, pool)
        known = wait_for(self._facts.future(record), 0.0, Facts("", "none"))
        with self._lock:
            held = self._ahead.get(record.id)
            if held and held.template == pool.best(held.kind, filled=False) and not held.pending.failed:
                return held.pending
            kind = kind_of(record, known)
            self._ahead[record.id] = _Ahead(kind, pool.best(kind, filled=False), self._make(record, pool))
            while len(self._ahead) > _KEPT:
                self._ahead.popitem(last=False)
            return self._ahead[record.id].pending

    def prefetch(self, records: Sequence[Record], pool: TemplatePool) -> None:
        """Starts what `start` will be asked for. Rules need no time, so there is nothing to start for them."""
        if self._cfg.refiner == "judge":
            for record in records:
                self.start(record, pool)

    def _make(self, record: Record, pool: TemplatePool) -> PendingTrace:
        return start_refine(record, self._cfg, self._judge, self._prompts, self._facts, pool, self._flag)


def start_refine(
    record: Record,
    cfg: SupervisionConfig,
    judge: JudgeClient | None,
    prompts: Prompts,
    facts: FactStore,
    pool: TemplatePool,
    flag: str = "Answer:",
) -> PendingTrace:
    """Starts to refine the reference trace of a record, and waits for nothing. `flag` is the answer flag of the
    replies, which no trace may hold."""
    hint = Refined(record.hint, "hint")
    if cfg.refiner == "none":
        return PendingTrace(done(hint), hint)
    known = facts.future(record)
    if cfg.refiner == "rules":
        return PendingTrace(then(known, lambda f: done(rules_trace(record, f, pool, cfg.max_trace_chars))), hint)
    late = Refined(record.hint, "degraded", why="late")
    if judge is None:
        return PendingTrace(done(Refined(record.hint, "degraded", why="no_judge")), late)
    client = judge  # not None, which mypy does not know in a closure

    def ask(given: Facts) -> Future[Refined]:
        template = pool.best(kind_of(record, given), filled=False)
        texts = {
            "question": record.question,
            "facts": given.text,
            "answer": record.answer,
            "hint": record.hint or "",
            "template": template,
        }

        def send(images: tuple[bytes, ...]) -> Future[Answer]:
            return client.submit(prompts.question("refine", task_of(record, cfg.task), texts, record.id, images))

        answer = then(facts.to_show(record, given), send)
        return then(answer, lambda a: done(_read(a, record, given, template, cfg.max_trace_chars, flag)))

    return PendingTrace(then(known, ask), late)


def rules_trace(record: Record, facts: Facts, pool: TemplatePool, max_chars: int = 1200) -> Refined:
    """The best template filled from the facts, without any model: readings, the step that leads to the gold answer, and
    the answer. The hint where the facts do not lead to the answer by a step that rules know (derive.py)."""
    derivation = derivation_of(record, facts)
    if derivation is None:
        return Refined(record.hint, "hint", why="no_derivation")
    for template in dict.fromkeys((pool.best(derivation.kind), BUILT_IN[derivation.kind])):
        trace = fill_template(template, derivation)
        if trace and len(trace) <= max_chars and supported(trace, derivation):
            return Refined(trace, "rules", template)
    return Refined(record.hint, "hint", why="unsupported")


def fault_of(trace: str, record: Record, facts: Facts, max_chars: int, flag: str = "Answer:") -> str:
    """What keeps a rewritten trace from being memorized: empty, too_long, addresses_judge, flag, contradicts, or answer
    (the gold answer is not in it); "" where nothing does."""
    if not trace.strip():
        return "empty"
    if len(trace) > max_chars:
        return "too_long"
    if addresses_judge(trace):
        return "addresses_judge"
    if flag.strip().casefold() in trace.casefold():
        return "flag"
    if contradicted_share(trace, facts.text) or contradicted_share(trace, record.facts):
        return "contradicts"
    return "" if any(_says(trace, answer) for answer in record.answers) else "answer"


def _read(answer: Answer, record: Record, facts: Facts, template: str, max_chars: int, flag: str) -> Refined:
    text = (answer.value or {}).get("trace")
    if not isinstance(text, str):
        return Refined(record.hint, "degraded", template, answer.reason or "bad_answer")
    # judges like to end with the answer line, which the reply has anyway
    last = re.compile(rf"\n\s*\**{re.escape(flag.strip())}", re.IGNORECASE)
    trace = last.split(clean_text(text), maxsplit=1)[0].strip()
    fault = fault_of(trace, record, facts, max_chars, flag)
    return Refined(record.hint, "degraded", template, fault) if fault else Refined(trace, "judge", template)


def _says(trace: str, answer: str) -> bool:
    """Whether a trace holds an answer, as a number or as words."""
    number = parse_number(answer)
    if number:
        return any(abs(each.value - number.value) <= 1e-6 * abs(number.value) for each in find_quantities(trace))
    return f" {normalise_text(answer)} " in f" {normalise_text(trace)} "
