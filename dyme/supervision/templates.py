"""TemplatePool: the best-known forms of a demonstration, for each kind of record.

Templates come from the model's own best traces, so demonstrations stay close to what it would write. A pool is
immutable: `propose` returns the next one, a pure function of pool, candidates and verdicts, so one rank decides and all
hold the same version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dyme.data.record import Record
from dyme.supervision.derive import Derivation, derive
from dyme.supervision.facts import Facts, FactStore
from dyme.supervision.futures import done, then, wait_for
from dyme.supervision.judge.types import Answer
from dyme.supervision.judge_prompts import addresses_judge, clean_text
from dyme.supervision.lexical import thinking_score
from dyme.supervision.phrasing import BUILT_IN, fill_template, learn_template
from dyme.supervision.readings import list_facts

FORMAT = 1
POOL_FILE = "templates.json"
OWN_BONUS = 0.1
"""How far the model's own phrasing may score below the built-in one and still be preferred."""

_HISTORY = 500
_BETTER = ("first", "second")


class PoolError(ValueError):
    """A saved pool that cannot be used; the message says what is wrong and how to fix it."""


@dataclass(frozen=True)
class Candidate:
    """A template from a trace. `score`: t of the trace minus t of the built-in form for the same record, both against
    the facts alone; t - 1/2 for a template without slots (`filled` False), which only a judge can follow."""

    kind: str
    text: str
    score: float
    step: int
    record: str
    source: str
    filled: bool = True


@dataclass(frozen=True)
class Entry(Candidate):
    """A template of the pool: its first candidate, with the mean score over `seen` candidates, and whether the judge
    preferred it to the best one at the time."""

    seen: int = 1
    preferred: bool = False

    @property
    def rank(self) -> float:
        """Order of the entries: the mean shrunk towards 0, so one lucky trace does not win."""
        return (self.score + OWN_BONUS) * self.seen / (self.seen + 2)

    @property
    def leads(self) -> bool:
        """Whether it is better than the built-in template of its kind, if there is one."""
        return self.preferred or self.rank > 0 or self.kind not in BUILT_IN


@dataclass(frozen=True)
class PoolChange:
    """One change of the pool; `beaten` is the text that was removed or is no longer the best."""

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
        """The best template of a kind, "" if there is none: the built-in one unless the pool has a better one. With
        `filled` only one that needs no judge."""
        held = next((e for e in self.entries.get(kind, ()) if e.filled or not filled), None)
        return held.text if held and held.leads else BUILT_IN.get(kind, "")

    def propose(
        self, candidates: Sequence[Candidate], verdicts: Mapping[tuple[str, str], bool] | None = None
    ) -> TemplatePool:
        """The pool with these candidates sorted in; itself if nothing changes.

        `verdicts` maps (kind, text) of a candidate to whether the judge prefers it to this pool's best of its kind;
        they take precedence over scores. The order of the candidates does not matter.
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
        history = [asdict(change) for change in self.history]
        return {"format": FORMAT, "version": self.version, "entries": held, "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> TemplatePool:
        """The pool of a `state_dict`, with this one's size; entries beyond it go. An empty state gives this pool.
        Raises `PoolError` for a state of another format."""
        if not state:
            return self
        if state.get("format") != FORMAT:
            raise PoolError(f"template pool: format {state.get('format')!r} is not {FORMAT}; start the pool anew")
        held = {k: tuple(Entry(**e) for e in entries)[: self.size] for k, entries in state["entries"].items()}
        kept = {kind: entries for kind, entries in sorted(held.items()) if entries}
        history = tuple(PoolChange(**change) for change in state["history"])
        return TemplatePool(self.size, state["version"], kept, history)


def _place(
    held: list[Entry], new: Candidate, verdict: bool | None, compared_with: str, size: int, version: int
) -> list[PoolChange]:
    """Puts a candidate into the entries of its kind, best first; `compared_with` is the other text of the verdict."""
    before = held[0].text if held else ""
    at = next((i for i, entry in enumerate(held) if entry.text == new.text), None)
    if at is None:
        held.append(Entry(**vars(new)))
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
    dropped = held.pop().text if len(held) > size else ""

    def change(action: str, each: Candidate, beaten: str) -> PoolChange:
        told = (each.kind, action, each.text, each.score, each.record, each.source, beaten)
        return PoolChange(version, new.step, *told)

    changes = [change("replace" if dropped else "add", new, dropped)] if added and dropped != new.text else []
    if before and held[0].text != before and held[0].leads:
        changes.append(change("best", held[0], before))
    return changes


def derivation_of(record: Record, facts: Facts) -> Derivation | None:
    """How the record's answer follows from its facts, if rules can tell."""
    return derive(record.question, list_facts(facts.text), record.answer)


def kind_of(record: Record, facts: Facts) -> str:
    """The kind of template for a record: that of its derivation, else the record's own."""
    derivation = derivation_of(record, facts)
    return derivation.kind if derivation else record.kind or "any"


def candidate(trace: str, record: Record, facts: Facts, step: int, max_chars: int = 1200) -> Candidate | None:
    """The template that rules learn from one right trace of a record, if any."""
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


def start_candidates(
    traces: Sequence[tuple[str, Record, Facts, float]], store: FactStore, step: int
) -> list[Future[Candidate | None]]:
    """Asks the judge for templates of (trace, record, facts, thinking score), for kinds that rules cannot fill. The
    result is None if the template addresses a judge, is empty or is too long."""
    asked = []
    longest = store.cfg.max_trace_chars
    for trace, record, facts, score in traces:
        if store.judge is None or derivation_of(record, facts) or len(trace) > longest or addresses_judge(trace):
            continue
        draft = Candidate(kind_of(record, facts), "", round(score - 0.5, 6), step, record.id, "judge", filled=False)
        answer = store.ask("template", record, {"question": record.question, "trace": trace})
        asked.append(then(answer, partial(_with_text, draft, longest)))
    return asked


def _with_text(draft: Candidate, longest: int, answer: Answer) -> Future[Candidate | None]:
    text = (answer.value or {}).get("template")
    cleaned = clean_text(text) if isinstance(text, str) else ""
    usable = cleaned and len(cleaned) <= longest and not addresses_judge(cleaned)
    return done(replace(draft, text=cleaned) if usable else None)


def start_compare(
    pool: TemplatePool, candidates: Sequence[Candidate], store: FactStore
) -> dict[tuple[str, str], Future[Answer]]:
    """Asks the judge to compare new texts with the best template of their kind: at most one of each kind, the one with
    the best score. By (kind, text)."""
    asked: dict[tuple[str, str], Future[Answer]] = {}
    for each in sorted(candidates, key=lambda c: (c.kind, -c.score, c.text)):
        best = pool.best(each.kind, filled=each.filled)
        known = any(each.text == entry.text for entry in pool.entries.get(each.kind, ()))
        if store.judge is None or not best or known or any(kind == each.kind for kind, _ in asked):
            continue
        texts = {"kind": each.kind, "template": best, "other": each.text}
        task = store.cfg.task if store.cfg.task != "auto" else "chart" if each.kind in BUILT_IN else "natural"
        asked[each.kind, each.text] = store.judge.submit(store.prompts.question("compare", task, texts, each.record))
    return asked


def read_verdicts(asked: Mapping[tuple[str, str], Future[Answer]]) -> dict[tuple[str, str], bool]:
    """Whether the judge prefers each candidate, for the comparisons that have arrived: what `propose` takes."""
    answers = {key: wait_for(future, 0.0, Answer(None)).value or {} for key, future in asked.items()}
    return {key: value["better"] == "second" for key, value in answers.items() if value.get("better") in _BETTER}


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
