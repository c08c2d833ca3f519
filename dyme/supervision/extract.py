"""Extraction of facts offline: from a source to a JSONL file, one line a record, which the source `jsonl` reads."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from dyme.data.errors import ImageError
from dyme.data.record import Record
from dyme.supervision.facts import RULES, Facts, FactStore, rule_facts
from dyme.supervision.judge.client import Judge
from dyme.supervision.judge_prompts import task_of

WINDOW = 64
"""Records whose facts are asked for at the same time."""
MAX_OUTAGE_S = 600.0
"""Longest wait for a judge that went away."""


class ExtractError(ValueError):
    """A file or record that cannot be used; the message says why."""


@dataclass
class Extracted:
    """The result of a call: records by the source of their facts, and why others were skipped ("id: reason")."""

    written: Counter[str] = field(default_factory=Counter)
    before: int = 0
    bad: list[str] = field(default_factory=list)


def extract(
    records: Iterable[Record],
    out: Path,
    store: FactStore,
    advance: Callable[[int], None] = lambda n: None,
    ready: Callable[[], None] = lambda: None,
) -> Extracted:
    """Appends the records that `out` lacks, in order, each with its facts. A record whose picture or facts fail is
    skipped and listed in `<out>.bad.jsonl`; the next call tries it again.

    `advance` gets the number of records just done; `ready` is called before each question and returns when it may be
    asked. Raises `ExtractError` if `out` holds facts of another version.
    """
    held = _held(out)
    report = Extracted(before=len(held))
    waiting: deque[tuple[Record, Future[Facts]]] = deque()
    out.parent.mkdir(parents=True, exist_ok=True)
    bad = out.with_name(out.name + ".bad.jsonl")
    with out.open("a", encoding="utf-8") as file, bad.open("w", encoding="utf-8") as refused:

        def write_next() -> None:
            record, future = waiting.popleft()
            facts = future.result()
            try:
                _write_line(file, _row(out, record, facts))
                report.written[facts.source] += 1
            except (ExtractError, ImageError) as error:
                report.bad.append(f"{record.id}: {error}")
                _write_line(refused, {"id": record.id, "error": str(error)})
            advance(1)

        for record in records:
            if record.id in held:
                by_rules = store.cfg.facts == "rules" or rule_facts(record).source == "record"
                task = task_of(record, store.cfg.task)
                version = RULES if by_rules else store.prompts.version("facts", task)
                if held[record.id] != version:
                    raise ExtractError(
                        f"{out}: record {record.id} has facts of version {held[record.id]}, these are {version}; "
                        "give another --out, or the settings it was made with"
                    )
                advance(1)
                continue
            ready()
            waiting.append((record, store.future(record)))
            if len(waiting) >= WINDOW:
                write_next()
        while waiting:
            write_next()
    if not report.bad:
        bad.unlink()
    return report


def wait_for_judge(judge: Judge) -> None:
    """Returns when the judge's server can be asked, so an outage costs only the records under way. Raises
    `ExtractError` if it lasts `MAX_OUTAGE_S`."""
    end = time.monotonic() + MAX_OUTAGE_S
    while judge.counts().state not in ("closed", "busy"):
        if time.monotonic() > end:
            raise ExtractError(
                f"the judge has not come back for {MAX_OUTAGE_S:g} s: look at its servers "
                "(python -m dyme.supervision.judge ping), then give the same command again, which goes on from here"
            )
        time.sleep(0.1)


def _held(out: Path) -> dict[str, str]:
    """Version of the facts of each record in the file, by id. Removes a last line that was cut by a kill."""
    if not out.exists():
        return {}
    data = out.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(out, whole)
    held = {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            held[row["id"]] = row["facts_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ExtractError(f"{out}:{number}: not written by extract; give another --out") from error
    return held


def _row(out: Path, record: Record, facts: Facts) -> dict[str, Any]:
    """The line of a record. Raises `ExtractError` without facts, and `ImageError`."""
    if facts.degraded:
        raise ExtractError("the judge gave no facts")
    images = [_image(out, record, at) for at in range(len(record.images))]
    row: dict[str, Any] = {"id": record.id, "question": record.question}
    row |= {"answer": record.answer} if len(record.answers) == 1 else {"answers": list(record.answers)}
    optional = {"choices": list(record.choices), "hint": record.hint, "facts": facts.text, "kind": record.kind}
    row |= {key: value for key, value in (optional | {"images": images}).items() if value}
    return row | {"facts_source": facts.source, "facts_version": facts.version}


def _write_line(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def _image(out: Path, record: Record, at: int) -> str:
    """The path of a picture in its row: the record's file, or a drawn one saved beside `out`. Raises `ImageError`."""
    lazy = record.images[at]
    if lazy.path is not None:
        return os.path.relpath(lazy.path.resolve(), out.parent.resolve())
    folder = out.parent / f"{out.stem}-images"
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.-]", "_", record.id)
    if len(name.encode()) > 200:  # file systems take 255 bytes
        name = f"{name[:40]}-{hashlib.sha256(record.id.encode()).hexdigest()[:16]}"
    file = folder / f"{name}-{at}.png"
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        lazy.load().save(temporary, "PNG")
        temporary.replace(file)
    return str(file.relative_to(out.parent))
