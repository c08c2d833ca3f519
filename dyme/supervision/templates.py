"""TemplatePool: the best-known forms of a reference trace, for each kind of record.

Templates come from the model's own best traces, so that what is memorized is close to what it would write. A pool
never changes: `propose` gives the next one, a pure function of pool, candidates and verdicts, so one rank decides and
all hold the same version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dyme.data.record import Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.derive import Derivation, derive
from dyme.supervision.facts import Facts
from dyme.supervision.futures import Deadline, JudgeClient, wait_for
from dyme.supervision.judge.types import Answer
from dyme.supervision.judge_prompts import Prompts, addresses_judge, clean_text, task_of
from dyme.supervision.lexical import thinking_score
from dyme.supervision.phrasing import BUILT_IN, fill_template, learn_template
from dyme.supervision.readings import list_facts

FORMAT = 1
POOL_FILE = "templates.json"
OWN_BONUS = 0.1
"""What a phrasing of the model's own may lack in score beside the built-in one and still be preferred."""

_HISTORY = 500


class PoolError(ValueError):
    """A saved pool that cannot be used; the message says what is wrong and the mend."""


@dataclass(frozen=True)
class Candidate:
    """A template that a trace gave. `score` is t of the trace less t of the built-in form for the same record, both
    against the facts alone; for a template without slots (`filled` False, only a judge can follow it) t less 1/2."""

    kind: str
    text: str
    score: float
    step: int
    record: str
    source: str
    filled: bool = True


@dataclass(frozen=True)
class Entry:
    """A template of the pool: its first candidate's provenance, mean score over `seen` candidates, and whether the
    judge preferred it to the best one of its time."""

    kind: str
    text: str
    score: float
    seen: int
    step: int
    record: str
    source: str
    filled: bool = True
    preferred: bool = False

    @property
    def rank(self) -> float:
        """What entries are compared by: the mean shrunk towards 0, so one lucky trace does not win."""
        return (self.score + OWN_BONUS) * self.seen / (self.seen + 2)

    @property
    def leads(self) -> bool:
        """Whether it is better than the built-in template of its kind, if there is one."""
        return self.preferred or self.rank > 0 or self.kind not in BUILT_IN


@dataclass(frozen=True)
class PoolChange:
    """One change of the pool; `beaten` is the text that had to go or is no longer the best."""

    version: int
    step: int
    kind: str
    action: str
    text: str
    score: float
    record: str
    source: str
    beaten: str = ""


@dataclass(frozen=True)
class TemplatePool:
    """Entries by kind, best first; at most `size` of each kind. `history` holds the last 500 changes."""

    size: int
    version: int = 0
    entries: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    history: tuple[PoolChange, ...] = ()

    def best(self, kind: str, *, filled: bool = True) -> str:
        """The best template of a kind, "" where there is none. With `filled` one that can be filled without a judge:
        the built-in one unless the pool has a better one."""
        held = next((e for e in self.entries.get(kind, ()) if e.filled or not filled), None)
        if held and held.leads:
            return held.text
        return BUILT_IN.get(kind, "")

    def propose(
        self, candidates: Sequence[Candidate], verdicts: Mapping[tuple[str, str], bool] | None = None
    ) -> TemplatePool:
        """The pool with these candidates compared and put in their place; itself where nothing changes.

        `verdicts` maps (kind, text) of a candidate to whether the judge prefers it to this pool's best of its kind;
        they go before scores. The order of the candidates does not matter.
        """
        if not self.size or not candidates:
            return self
        entries = {kind: list(held) for kind, held in self.entries.items()}
        changes: list[PoolChange] = []
        for each in sorted(candidates, key=lambda c: (c.kind, c.text, -c.score, c.step, c.record, c.source, c.filled)):
            held = entries.setdefault(each.kind, [])
            verdict = (verdicts or {}).get((each.kind, each.text))
            compared_with = self.best(each.kind, filled=each.filled)
            if verdict is False and all(entry.text != compared_with for entry in held):
                continue  # the built-in one is better
            changes += _place(held, each, verdict, compared_with, self.size, self.version + 1)
        kept = {kind: tuple(held) for kind, held in sorted(entries.items()) if held}
        if kept == self.entries:
            return self
        return TemplatePool(self.size, self.version + 1, kept, (*self.history, *changes)[-_HISTORY:])

    def state_dict(self) -> dict[str, Any]:
        """The pool as JSON values."""
        held = {kind: [asdict(entry) for entry in entries] for kind, entries in self.entries.items()}
        return {
            "format": FORMAT,
            "version": self.version,
            "entries": held,
            "history": [asdict(change) for change in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> TemplatePool:
        """The pool of a `state_dict`, with this one's size; entries beyond it go. An empty state gives this pool.
        Raises `PoolError` for a state of another format."""
        if not state:
            return self
        if state.get("format") != FORMAT:
            raise PoolError(f"template pool: format {state.get('format')!r} is not {FORMAT}; start the pool anew")
        held = {k: tuple(Entry(**e) for e in entries)[: self.size] for k, entries in state["entries"].items()}
        kept = {kind: entries for kind, entries in sorted(held.items()) if entries}
        return TemplatePool(
            self.size, state["version"], kept, tuple(PoolChange(**change) for change in state["history"])
        )


def _place(
    held: list[Entry], new: Candidate, verdict: bool | None, compared_with: str, size: int, version: int
) -> list[PoolChange]:
    """Puts a candidate into the entries of its kind, best first; `compared_with` is the other text of the verdict."""
    before = held[0].text if held else ""
    at = next((i for i, entry in enumerate(held) if entry.text == new.text), None)
    if at is None:
        held.append(Entry(new.kind, new.text, new.score, 1, new.step, new.record, new.source, new.filled))
        at = len(held) - 1
    else:
        entry = held[at]
        mean = (entry.score * entry.seen + new.score) / (entry.seen + 1)
        held[at] = replace(entry, score=mean, seen=entry.seen + 1)
    added = held[at].seen == 1
    if verdict is not None:
        winner = new.text if verdict else compared_with
        held[:] = [replace(entry, preferred=entry.text == winner) for entry in held]
    held.sort(key=lambda e: (not e.preferred, -e.rank, -e.seen, len(e.text), e.text))
    dropped = held.pop() if len(held) > size else None
    changes = []
    if added and (dropped is None or dropped.text != new.text):
        gone = dropped.text if dropped else ""
        action = "replace" if dropped else "add"
        changes.append(
            PoolChange(version, new.step, new.kind, action, new.text, new.score, new.record, new.source, gone)
        )
    top = held[0]
    if before and top.text != before and top.leads:
        changes.append(
            PoolChange(version, new.step, top.kind, "best", top.text, top.score, top.record, top.source, before)
        )
    return changes


# --- candidates -----------------------------------------------------------------------------------


def derivation_of(record: Record, facts: Facts) -> Derivation | None:
    """How the record's answer follows from its facts, where rules can tell."""
    return derive(record.question, list_facts(facts.text), record.answer)


def kind_of(record: Record, facts: Facts) -> str:
    """The kind of template a record takes: that of its derivation, else the record's own."""
    derivation = derivation_of(record, facts)
    return derivation.kind if derivation else record.kind or "any"


def candidate(trace: str, record: Record, facts: Facts, step: int, max_chars: int = 1200) -> Candidate | None:
    """What rules can learn from one right trace of a record; None where there is nothing to learn."""
    derivation = derivation_of(record, facts)
    if derivation is None or len(trace) > max_chars:
        return None
    text = learn_template(trace, derivation)
    if text is None or len(text) > max_chars:
        return None
    bare = replace(record, hint=None, facts=facts.text)
    own = thinking_score(fill_template(text, derivation) or "", bare, 1.0) or 0.0
    built_in = thinking_score(fill_template(BUILT_IN[derivation.kind], derivation) or "", bare, 1.0) or 0.0
    return Candidate(derivation.kind, text, round(own - built_in, 6), step, record.id, "rules")


class PendingCandidates:
    """Templates that the judge is making of traces."""

    def __init__(self, asked: Sequence[tuple[Candidate, Future[Answer]]], max_chars: int) -> None:
        self._asked, self._max_chars = asked, max_chars

    @property
    def ready(self) -> bool:
        return all(future.done() for _, future in self._asked)

    def result(self, deadline_s: float | None) -> list[Candidate]:
        """Those that came in time, without templates that speak to a judge, are empty or are too long."""
        limit, out = Deadline(deadline_s), []
        for draft, future in self._asked:
            text = (wait_for(future, limit.left(), Answer(None)).value or {}).get("template")
            cleaned = clean_text(text) if isinstance(text, str) else ""
            if cleaned and len(cleaned) <= self._max_chars and not addresses_judge(cleaned):
                out.append(replace(draft, text=cleaned))
        return out


def start_candidates(
    traces: Sequence[tuple[str, Record, Facts, float]],
    cfg: SupervisionConfig,
    judge: JudgeClient | None,
    prompts: Prompts,
    step: int,
) -> PendingCandidates:
    """Asks the judge for templates of (trace, record, facts, thinking score); for kinds that rules cannot fill."""
    asked = []
    for trace, record, facts, score in traces:
        if judge is None or derivation_of(record, facts) or len(trace) > cfg.max_trace_chars or addresses_judge(trace):
            continue
        draft = Candidate(kind_of(record, facts), "", round(score - 0.5, 6), step, record.id, "judge", filled=False)
        texts = {"question": record.question, "trace": trace}
        question = prompts.question("template", task_of(record, cfg.task), texts, record.id)
        asked.append((draft, judge.submit(question)))
    return PendingCandidates(asked, cfg.max_trace_chars)


class PendingVerdicts:
    """Comparisons of candidates with the best of their kind."""

    def __init__(self, asked: Mapping[tuple[str, str], Future[Answer]]) -> None:
        self._asked = asked

    def result(self, deadline_s: float | None) -> dict[tuple[str, str], bool]:
        """Whether the judge prefers a candidate, for those it compared in time: what `propose` takes."""
        limit = Deadline(deadline_s)
        answers = {key: wait_for(future, limit.left(), Answer(None)) for key, future in self._asked.items()}
        return {
            key: answer.value["better"] == "second"
            for key, answer in answers.items()
            if answer.value and answer.value.get("better") in ("first", "second")
        }


def start_compare(
    pool: TemplatePool,
    candidates: Sequence[Candidate],
    cfg: SupervisionConfig,
    judge: JudgeClient | None,
    prompts: Prompts,
) -> PendingVerdicts:
    """Asks the judge about each new text, one of a kind at most (the one with the best score)."""
    asked: dict[tuple[str, str], Future[Answer]] = {}
    for each in sorted(candidates, key=lambda c: (c.kind, -c.score, c.text)):
        best = pool.best(each.kind, filled=each.filled)
        known = any(each.text == entry.text for entry in pool.entries.get(each.kind, ()))
        if judge is None or not best or known or any(kind == each.kind for kind, _ in asked):
            continue
        texts = {"kind": each.kind, "template": best, "other": each.text}
        task = cfg.task if cfg.task != "auto" else "chart" if each.kind in BUILT_IN else "natural"
        asked[each.kind, each.text] = judge.submit(prompts.question("compare", task, texts, each.record))
    return PendingVerdicts(asked)


# --- on disk --------------------------------------------------------------------------------------


def write_pool(folder: Path, pool: TemplatePool) -> None:
    """Writes the pool beside a run's other files, for people and `python -m dyme.supervision templates`."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (POOL_FILE + ".tmp")
    temporary.write_text(json.dumps(pool.state_dict(), ensure_ascii=False, indent=1), encoding="utf-8")
    temporary.replace(folder / POOL_FILE)


def read_pool(folder: Path) -> TemplatePool:
    """The pool that `write_pool` wrote. Raises `PoolError` where there is none."""
    file = folder / POOL_FILE
    if not file.is_file():
        raise PoolError(
            f"{file}: no such file; name the folder of a run with supervision.refiner: rules or judge that has learned "
            "a template (it looks every supervision.templates.every steps)"
        )
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        size = max((len(held) for held in state["entries"].values()), default=1)
        return TemplatePool(size).load_state_dict(state)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise PoolError(f"{file}: is no pool of templates ({reason}); restore the file") from error
