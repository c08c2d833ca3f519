"""Facts of a record: what its picture shows, in words, by rules or by the judge."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Literal

from PIL import Image

from dyme.data.record import Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.futures import JudgeClient, done, then, wait_for
from dyme.supervision.judge.types import Answer, Purpose
from dyme.supervision.judge_prompts import Prompts, addresses_judge, clean_text, task_of
from dyme.supervision.readings import list_facts

RULES = "rules-1"
"""Version of the rules; raise it whenever they give other facts."""

MAX_FACTS = 64
MAX_FACT_CHARS = 200
MAX_SIDE = 1024
"""Longer side in pixels of a picture as the judge gets it."""

_KEPT = 65536
_NAME = re.compile(r"[^\W\d_][\w' &/-]*")


@dataclass(frozen=True)
class Facts:
    """`text` is "" if nothing is known. `version` is that of the rules or of the judge's prompt. `degraded`: the judge
    was asked and gave none."""

    text: str
    source: Literal["record", "hint", "judge", "none"]
    version: str = RULES
    degraded: bool = False


def rule_facts(record: Record) -> Facts:
    """The record's own facts; else, for a record with pictures, the readings that its hint lists ("The red bar shows 4.
    The blue bar shows 2.").

    Left out: a label with two different numbers, since the hint is not sure; a label that is not plain words; and a
    single reading, which is a sentence rather than a table.
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
    """The record with the judge's facts as its own; it holds any other facts already."""
    return replace(record, facts=facts.text) if facts.source == "judge" else record


def picture_bytes(record: Record) -> tuple[bytes, ...]:
    """The record's pictures as PNG, at most `MAX_SIDE` on the longer side. Raises `ImageError`."""
    out = []
    for picture in (lazy.load() for lazy in record.images):
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
        buffer = BytesIO()
        picture.save(buffer, "PNG", compress_level=1)
        out.append(buffer.getvalue())
    return tuple(out)


def read_facts(answer: Answer, version: str) -> Facts | None:
    """The facts in the judge's answer, without lines that address a judge; None if nothing is left."""
    lines = (answer.value or {}).get("facts")
    if not isinstance(lines, list):
        return None
    cleaned = (" ".join(clean_text(line).split())[:MAX_FACT_CHARS] for line in lines if isinstance(line, str))
    text = "\n".join(line for line in cleaned if line and not addresses_judge(line))
    return Facts("\n".join(text.split("\n")[:MAX_FACTS]), "judge", version) if text else None


class FactStore:
    """Facts of the records in use, and questions to the judge about records. Safe for threads.

    With `facts: judge` the judge is asked once about each record without facts of its own; after a failed answer it is
    asked again the next time. `deadline_s` applies to each question, None: the judge's own.
    """

    def __init__(
        self, cfg: SupervisionConfig, prompts: Prompts, judge: JudgeClient | None, deadline_s: float | None = None
    ) -> None:
        self.cfg, self.prompts, self.judge, self._deadline_s = cfg, prompts, judge, deadline_s
        self._asked: OrderedDict[str, Future[Facts]] = OrderedDict()
        self._worker = ThreadPoolExecutor(1, "facts")  # pictures are encoded beside the step
        self._lock = threading.Lock()  # groups are scored in a thread beside the step

    def prefetch(self, records: Sequence[Record]) -> None:
        """Starts what `future` will be asked for."""
        for record in records:
            self.future(record)

    def future(self, record: Record) -> Future[Facts]:
        """The facts of a record. Never fails: without the judge's facts it has those by rules, `degraded`."""
        if self.cfg.facts == "none":
            return done(Facts("", "none", "none"))
        known = rule_facts(record)
        if self.cfg.facts == "rules" or known.source == "record":
            return done(known)
        with self._lock:
            held = self._asked.get(record.id)
            if held is None or (held.done() and held.result().degraded):
                held = self._asked[record.id] = self._ask_facts(record, replace(known, degraded=True))
                if len(self._asked) > _KEPT:
                    self._asked.popitem(last=False)
            return held

    def ask(
        self, purpose: Purpose, record: Record, texts: Mapping[str, str | Sequence[str]], *, show: bool = False
    ) -> Future[Answer]:
        """The judge's answer to a question about a record. With `show` it sees the pictures, which are encoded in the
        background. The future fails if a picture cannot be read or the store is closed."""
        judge = self.judge
        if judge is None:
            return done(Answer(None, "no_judge"))

        def send(images: tuple[bytes, ...]) -> Future[Answer]:
            question = self.prompts.question(purpose, task_of(record, self.cfg.task), texts, record.id, images)
            return judge.submit(question, self._deadline_s)

        if not show or not record.images:
            return then(done(()), send)
        return then(then(done(record), lambda each: self._worker.submit(picture_bytes, each)), send)

    def close(self) -> None:
        """Stops encoding pictures; questions that need them fail from now on."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _ask_facts(self, record: Record, otherwise: Facts) -> Future[Facts]:
        version = self.prompts.version("facts", task_of(record, self.cfg.task))
        answer = self.ask("facts", record, {"question": record.question, "hint": record.hint or ""}, show=True)
        out: Future[Facts] = Future()
        answer.add_done_callback(
            lambda given: out.set_result(read_facts(wait_for(given, 0.0, Answer(None)), version) or otherwise)
        )
        return out
