"""Extraction of facts offline: a source in, a JSONL file out that the source `jsonl` reads, one line a record."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyme.data.errors import ImageError
from dyme.data.record import Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.facts import RULES, Facts, FactStore, rule_facts
from dyme.supervision.judge_prompts import Prompts, task_of

if TYPE_CHECKING:
    from dyme.supervision.judge.client import Judge

WINDOW = 64
"""Records that are asked about at the same time."""
MAX_OUTAGE_S = 600.0
"""How long a judge that went away is waited for."""


class ExtractError(ValueError):
    """A file that cannot be gone on with; the message names it and the mend."""


@dataclass
class Extracted:
    """What a call did: records by the source of their facts, and why others were skipped ("id: reason")."""

    written: Counter[str] = field(default_factory=Counter)
    before: int = 0
    bad: list[str] = field(default_factory=list)


def extract(
    records: Iterable[Record],
    out: Path,
    store: FactStore,
    cfg: SupervisionConfig,
    prompts: Prompts,
    advance: Callable[[int], None] = lambda n: None,
    ready: Callable[[], None] = lambda: None,
) -> Extracted:
    """Appends the records that `out` does not hold yet, in their order, each with its facts. A record whose picture or
    facts fail is written to the file beside it (`<out>.bad.jsonl`) and skipped; the next call tries it again.

    `advance` is told how many records are done; `ready` is called before each question and returns when it may be
    asked. Raises `ExtractError` where `out` holds facts of another version.
    """
    report = Extracted()
    held = _held(out)
    report.before = len(held)
    waiting: deque[tuple[Record, Future[Facts]]] = deque()
    out.parent.mkdir(parents=True, exist_ok=True)
    bad = out.with_name(out.name + ".bad.jsonl")
    with out.open("a", encoding="utf-8") as file, bad.open("w", encoding="utf-8") as refused:

        def write_next() -> None:
            record, future = waiting.popleft()
            reason = _write(file, out, record, future.result(), report.written)
            if reason:
                report.bad.append(f"{record.id}: {reason}")
                refused.write(json.dumps({"id": record.id, "error": reason}, ensure_ascii=False) + "\n")
                refused.flush()
            advance(1)

        for record in records:
            if record.id in held:
                _check_version(out, record, held[record.id], _version(record, cfg, prompts))
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
    """Returns when the judge's server can be asked, so that an outage costs the records under way and not all that
    follow. Raises `ExtractError` if it does not come back for `MAX_OUTAGE_S`."""
    end = time.monotonic() + MAX_OUTAGE_S
    while judge.counts().state not in ("closed", "busy"):
        if time.monotonic() > end:
            raise ExtractError(
                f"the judge has not come back for {MAX_OUTAGE_S:g} s: look at its servers "
                "(python -m dyme.supervision.judge ping), then give the same command again, which goes on from here"
            )
        time.sleep(0.1)


def _held(out: Path) -> dict[str, str]:
    """Version of the facts of each record in the file, by id. A last line that was cut by a kill is taken off."""
    if not out.exists():
        return {}
    data = out.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with out.open("rb+") as file:
            file.truncate(whole)
    held = {}
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            held[row["id"]] = row["facts_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ExtractError(f"{out}:{number}: not written by extract; give another --out") from error
    return held


def _version(record: Record, cfg: SupervisionConfig, prompts: Prompts) -> str:
    """Version of the facts that this call would write of a record."""
    by_rules = cfg.facts == "rules" or rule_facts(record).source == "record"
    return RULES if by_rules else prompts.version("facts", task_of(record, cfg.task))


def _check_version(out: Path, record: Record, found: str, wanted: str) -> None:
    if found != wanted:
        raise ExtractError(
            f"{out}: record {record.id} has facts of version {found}, these are {wanted}; "
            "give another --out, or the settings it was made with"
        )


def _write(file: Any, out: Path, record: Record, facts: Facts, written: Counter[str]) -> str:
    """Writes the line of a record. Returns why it could not be written, or ""."""
    if facts.degraded:
        return "the judge gave no facts"
    try:
        images = [_image(out, record, at) for at in range(len(record.images))]
    except ImageError as error:
        return str(error)
    row: dict[str, Any] = {"id": record.id, "question": record.question}
    row |= {"answer": record.answer} if len(record.answers) == 1 else {"answers": list(record.answers)}
    row |= {"choices": list(record.choices)} if record.choices else {}
    row |= {key: value for key, value in (("hint", record.hint), ("facts", facts.text), ("kind", record.kind)) if value}
    row |= {"images": images} if images else {}
    row |= {"facts_source": facts.source, "facts_version": facts.version}
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()
    written[facts.source] += 1
    return ""


def _image(out: Path, record: Record, at: int) -> str:
    """The picture as the row names it: the record's file, or a drawn one saved beside `out`. Raises `ImageError`."""
    lazy = record.images[at]
    if lazy.path is not None:
        return os.path.relpath(lazy.path.resolve(), out.parent.resolve())
    folder = out.parent / f"{out.stem}-images"
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.-]", "_", record.id)
    file = folder / f"{name}-{at}.png"
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        lazy.load().save(temporary, "PNG")
        temporary.replace(file)
    return str(file.relative_to(out.parent))
