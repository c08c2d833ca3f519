"""Refiner: the demonstration of a record: its hint, a template filled from its facts, or a rewrite by the judge."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from dyme.data.record import Record
from dyme.supervision.facts import Facts, FactStore
from dyme.supervision.futures import done, then, wait_for
from dyme.supervision.judge.types import Answer
from dyme.supervision.judge_prompts import addresses_judge, clean_text
from dyme.supervision.phrasing import BUILT_IN, fill_template, supported
from dyme.supervision.readings import contradicted_share
from dyme.supervision.templates import TemplatePool, derivation_of, kind_of
from dyme.text.flag import flag_pattern
from dyme.text.normalise import normalise_text
from dyme.text.numbers import find_quantities, parse_number

_KEPT = 4096


@dataclass(frozen=True)
class Refined:
    """A demonstration (None: the answer alone), its source, and the template it follows ("" for a hint). `degraded`:
    the judge gave no usable trace, so it is the hint; `why` says what was wrong."""

    trace: str | None
    source: Literal["hint", "rules", "judge", "degraded"]
    template: str = ""
    why: str = ""


@dataclass(frozen=True)
class PendingTrace:
    """A demonstration that may wait for the judge; `otherwise` is the unrefined one."""

    future: Future[Refined]
    otherwise: Refined

    @property
    def ready(self) -> bool:
        return self.future.done()

    @property
    def failed(self) -> bool:
        """Whether the judge was asked in vain."""
        return self.ready and self.result(0.0).source == "degraded"

    def result(self, deadline_s: float | None = None) -> Refined:
        """The refined trace; the unrefined one if it is late."""
        return wait_for(self.future, deadline_s, self.otherwise)


@dataclass(frozen=True)
class _Ahead:
    """A trace under way, with the kind of its record and the best template of that kind when it was started."""

    kind: str
    template: str
    pending: PendingTrace


class Refiner:
    """Refines demonstrations, also ahead of time. `flag` is the answer flag of the replies, which no trace may hold.
    Safe for threads."""

    def __init__(self, store: FactStore, flag: str = "Answer:") -> None:
        self._cfg, self._facts, self._flag = store.cfg, store, flag
        self._ahead: OrderedDict[str, _Ahead] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, record: Record, pool: TemplatePool) -> PendingTrace:
        """Starts to refine the demonstration of a record, without waiting. A rewrite already under way with the same
        best template is reused; a failed one is tried again."""
        hint = Refined(record.hint, "hint")
        if self._cfg.refiner == "none":
            return PendingTrace(done(hint), hint)
        facts = self._facts.future(record)
        if self._cfg.refiner == "rules":
            filled = then(facts, lambda known: done(rules_trace(record, known, pool, self._cfg.max_trace_chars)))
            return PendingTrace(filled, hint)
        with self._lock:
            held = self._ahead.get(record.id)
            if held and held.template == pool.best(held.kind, filled=False) and not held.pending.failed:
                return held.pending
            kind = kind_of(record, wait_for(facts, 0.0, Facts("", "none")))
            late = Refined(record.hint, "degraded", why="late")
            pending = PendingTrace(then(facts, lambda known: self._rewrite(record, known, pool)), late)
            self._ahead[record.id] = _Ahead(kind, pool.best(kind, filled=False), pending)
            if len(self._ahead) > _KEPT:
                self._ahead.popitem(last=False)
            return pending

    def prefetch(self, records: Sequence[Record], pool: TemplatePool) -> None:
        """Starts the rewrites that `start` will be asked for. Rules need no time, so nothing is started for them."""
        if self._cfg.refiner == "judge":
            for record in records:
                self.start(record, pool)

    def _rewrite(self, record: Record, facts: Facts, pool: TemplatePool) -> Future[Refined]:
        """The judge's trace of a record."""
        if self._facts.judge is None:
            return done(Refined(record.hint, "degraded", why="no_judge"))
        template = pool.best(kind_of(record, facts), filled=False)
        texts = {"question": record.question, "facts": facts.text, "answer": record.answer}
        texts |= {"hint": record.hint or "", "template": template}
        answer = self._facts.ask("refine", record, texts, show=not facts.text)
        return then(answer, lambda a: done(_read(a, record, facts, template, self._cfg.max_trace_chars, self._flag)))


def rules_trace(record: Record, facts: Facts, pool: TemplatePool, max_chars: int = 1200) -> Refined:
    """The best template filled from the facts: readings, the step that leads to the gold answer, and the answer. The
    hint if no step of derive.py leads from the facts to the answer."""
    derivation = derivation_of(record, facts)
    if derivation is None:
        return Refined(record.hint, "hint", why="no_derivation")
    for template in dict.fromkeys((pool.best(derivation.kind), BUILT_IN[derivation.kind])):
        trace = fill_template(template, derivation)
        if trace and len(trace) <= max_chars and supported(trace, derivation):
            return Refined(trace, "rules", template)
    return Refined(record.hint, "hint", why="unsupported")


def fault_of(trace: str, record: Record, facts: Facts, max_chars: int, flag: str = "Answer:") -> str:
    """Why a rewritten trace must not be memorized: empty, too_long, addresses_judge, flag, contradicts, or answer (it
    lacks the gold answer); "" if it may."""
    if not trace.strip():
        return "empty"
    if len(trace) > max_chars:
        return "too_long"
    if addresses_judge(trace):
        return "addresses_judge"
    if flag_pattern(flag).search(trace):
        return "flag"
    if contradicted_share(trace, facts.text) or contradicted_share(trace, record.facts):
        return "contradicts"
    return "" if any(_says(trace, answer) for answer in record.answers) else "answer"


def _read(answer: Answer, record: Record, facts: Facts, template: str, max_chars: int, flag: str) -> Refined:
    text = (answer.value or {}).get("trace")
    if not isinstance(text, str):
        return Refined(record.hint, "degraded", template, answer.reason or "bad_answer")
    # judges tend to end with the answer line, which the reply has anyway
    last = re.compile(rf"\n\s*[*_`#]*(?:{flag_pattern(flag).pattern})", re.IGNORECASE)
    trace = last.split(clean_text(text), maxsplit=1)[0].strip()
    fault = fault_of(trace, record, facts, max_chars, flag)
    return Refined(record.hint, "degraded", template, fault) if fault else Refined(trace, "judge", template)


def _says(trace: str, answer: str) -> bool:
    """Whether a trace contains an answer, as a number or as words."""
    number = parse_number(answer)
    if number:
        return any(abs(each.value - number.value) <= 1e-6 * abs(number.value) for each in find_quantities(trace))
    return f" {normalise_text(answer)} " in f" {normalise_text(trace)} "
