"""Facts of a record: what is to be seen, in words, extracted once, by rules or by the judge."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Literal

from PIL import Image

from dyme.data.record import Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.futures import JudgeClient, done, then
from dyme.supervision.judge.types import Answer
from dyme.supervision.judge_prompts import Prompts, addresses_judge, clean_text, task_of
from dyme.supervision.readings import list_facts

RULES = "rules-1"
"""Version of the rules; it changes whenever they would give other facts."""

MAX_FACTS = 64
MAX_FACT_CHARS = 200
MAX_SIDE = 1024
"""Longer side of a picture as the judge gets it."""

_KEPT = 65536
_NAME = re.compile(r"[^\W\d_][\w' &/-]*")


@dataclass(frozen=True)
class Facts:
    """`text` is "" where nothing is known. `source` is record (its own), hint, judge, or none; `version` is that of the
    rules or of the judge's prompt. `degraded` says that the judge was asked and gave none."""

    text: str
    source: Literal["record", "hint", "judge", "none"]
    version: str = RULES
    degraded: bool = False


def rule_facts(record: Record) -> Facts:
    """The record's own facts as they are; else, of a record with pictures, what its hint plainly states as a list ("The
    red bar shows 4. The blue bar shows 2.").

    A label of which the hint states two numbers is left out: it says itself that it is not sure. So is a label that is
    no plain words, and one reading alone: that is a sentence rather than a table.
    """
    if record.facts and record.facts.strip():
        return Facts(record.facts.strip(), "record")
    stated = [f for f in list_facts(record.hint or "") if _NAME.fullmatch(f.name)] if record.images else []
    values: dict[tuple[str, ...], set[float]] = {}
    for fact in stated:
        values.setdefault(fact.label, set()).add(fact.value)
    sure = {fact.label: f"{fact.name} {fact.text}" for fact in stated if len(values[fact.label]) == 1}
    return Facts(", ".join(sure.values()), "hint") if len(sure) > 1 else Facts("", "none")


def with_facts(record: Record, facts: Facts) -> Record:
    """The record with the judge's facts as its own; any other facts are in it already."""
    return replace(record, facts=facts.text) if facts.source == "judge" else record


def picture_bytes(record: Record) -> tuple[bytes, ...]:
    """The record's pictures as PNG, at most `MAX_SIDE` on the longer side. Raises `ImageError`."""
    out = []
    for lazy in record.images:
        picture = lazy.load()
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
        buffer = BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        out.append(buffer.getvalue())
    return tuple(out)


def read_facts(answer: Answer, version: str) -> Facts | None:
    """The facts in the judge's answer; None where there are none, or where they speak to a judge themselves."""
    lines = (answer.value or {}).get("facts")
    if not isinstance(lines, list):
        return None
    cleaned = (" ".join(clean_text(line).split())[:MAX_FACT_CHARS] for line in lines if isinstance(line, str))
    text = "\n".join(line for line in cleaned if line and not addresses_judge(line))
    kept = text.split("\n")[:MAX_FACTS]
    return Facts("\n".join(kept), "judge", version) if text else None


class FactStore:
    """Facts of the records in use. Where `facts: judge` is set the judge is asked about records without facts of their
    own, once each; an answer that did not come is asked for again the next time. `deadline_s` of each question, None:
    the judge's own. Safe for threads."""

    def __init__(
        self, cfg: SupervisionConfig, prompts: Prompts, judge: JudgeClient | None, deadline_s: float | None = None
    ) -> None:
        self._cfg, self._prompts, self._judge, self._deadline_s = cfg, prompts, judge, deadline_s
        self._asked: OrderedDict[str, Future[Facts]] = OrderedDict()
        self._worker = ThreadPoolExecutor(1, "facts")  # pictures are encoded beside the step
        self._closed = False
        self._lock = threading.Lock()  # groups are scored in a thread beside the step

    def prefetch(self, records: Sequence[Record]) -> None:
        """Starts what `future` will be asked for."""
        for record in records:
            self.future(record)

    def future(self, record: Record) -> Future[Facts]:
        """The facts of a record; never fails: without the judge's they are those by rules, `degraded`."""
        if self._cfg.facts == "none":
            return done(Facts("", "none", "none"))
        known = rule_facts(record)
        if self._cfg.facts == "rules" or known.source == "record":
            return done(known)
        with self._lock:
            held = self._asked.get(record.id)
            if held is None or (held.done() and held.result().degraded):
                held = self._asked[record.id] = self._ask(record, replace(known, degraded=True))
                while len(self._asked) > _KEPT:
                    self._asked.popitem(last=False)
            return held

    def to_show(self, record: Record, known: Facts) -> Future[tuple[bytes, ...]]:
        """What a question about a record shows besides its facts: the pictures where there are none."""
        return done(()) if known.text or not record.images else self.pictures(record)

    def pictures(self, record: Record) -> Future[tuple[bytes, ...]]:
        """The record's pictures as PNG, encoded in the background."""
        if not self._closed:
            return self._worker.submit(picture_bytes, record)
        closed: Future[tuple[bytes, ...]] = Future()
        closed.set_exception(RuntimeError("the store is closed"))
        return closed

    def close(self) -> None:
        """Encodes no more pictures; what needs them is `degraded` from now on."""
        with self._lock:
            self._closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _ask(self, record: Record, otherwise: Facts) -> Future[Facts]:
        out: Future[Facts] = Future()
        if self._judge is None:
            out.set_result(otherwise)
            return out
        judge, task = self._judge, task_of(record, self._cfg.task)
        version = self._prompts.version("facts", task)
        texts = {"question": record.question, "hint": record.hint or ""}

        def finish(answer: Future[Answer]) -> None:
            failed = answer.cancelled() or answer.exception() is not None
            facts = None if failed else read_facts(answer.result(), version)
            out.set_result(facts or otherwise)

        asked = then(
            self.pictures(record),
            lambda images: judge.submit(
                self._prompts.question("facts", task, texts, record.id, images), self._deadline_s
            ),
        )
        asked.add_done_callback(finish)
        return out
