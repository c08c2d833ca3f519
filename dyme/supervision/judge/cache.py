"""Answers on disk: one SQLite file that ranks and runs may share, with hashes, parsed values, model and prompt version
but neither questions nor pictures.

A fault of the file costs the cache, never the run. A separate thread reads and writes, since a shared file system may
be slow. SQLite keeps its rollback journal, because the faster WAL does not work across machines.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dyme.settings.judge import JudgeConfig
from dyme.supervision.judge.types import Counters, Question

FILE = "answers.sqlite"
BUSY_S = 5.0
"""How long to wait for another writer."""
BATCH = 256
"""Jobs of one transaction."""
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value TEXT NOT NULL, model TEXT, purpose TEXT, "
    "version TEXT, written REAL) WITHOUT ROWID"
)


def question_key(question: Question, cfg: JudgeConfig) -> bytes:
    """Hash of all that is sent, the model included; equal for equal questions."""
    texts = [question.purpose, question.version, question.system, question.user]
    texts += [json.dumps(question.schema, sort_keys=True), str(question.max_tokens or cfg.max_tokens)]
    texts.append(repr(cfg.temperature))
    digest = hashlib.sha256()
    for part in (*(text.encode("utf-8", "surrogatepass") for text in texts), *question.images):
        digest.update(len(part).to_bytes(8, "big") + part)
    return hashlib.sha256(digest.digest() + cfg.endpoints[0].model.encode("utf-8", "surrogatepass")).digest()


class AnswerCache:
    """The cache in `folder`. `say` takes the first failure; `counters` count all."""

    def __init__(self, folder: Path, counters: Counters, say: Callable[[str], None]) -> None:
        self._path, self._counters, self._say = folder / FILE, counters, say
        self._jobs: SimpleQueue[Any] = SimpleQueue()  # (key, future), a row, or None at the end
        self._said = self._off = False
        self._thread = threading.Thread(target=self._run, name="judge cache", daemon=True)
        self._thread.start()

    def get(self, key: bytes) -> Future[str | None]:
        """The JSON text under `key`, None without one. Check it, since anybody may write the file."""
        future: Future[str | None] = Future()
        future.set_running_or_notify_cancel()
        self._jobs.put((key, future))
        return future

    def put(self, key: bytes, value: dict[str, Any], model: str, question: Question) -> None:
        """Written soon. Another writer's answer to the same question stays."""
        self._jobs.put((key, json.dumps(value), model, question.purpose, question.version, time.time()))

    def close(self, timeout_s: float) -> None:
        """Writes what was put before and closes the file, as far as `timeout_s` allows."""
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        jobs: list[Any] = []
        while None not in jobs:
            jobs = [self._jobs.get()]
            while len(jobs) < BATCH and not self._jobs.empty():
                jobs.append(self._jobs.get())
            reads = [job for job in jobs if job and len(job) == 2]
            rows = [job for job in jobs if job and len(job) != 2]
            try:
                if not self._off:
                    connection = connection or self._open()
                    self._read_and_write(connection, reads, rows)
            except (sqlite3.Error, OSError) as error:  # an edge: disks, and other programs that use the file
                self._report(error)
            for _, future in reads:
                if not future.done():
                    future.set_result(None)
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=BUSY_S)
        connection.execute("PRAGMA synchronous=NORMAL")
        with connection:
            connection.execute(_TABLE)
        return connection

    def _read_and_write(self, connection: sqlite3.Connection, reads: list[Any], rows: list[Any]) -> None:
        fresh = {row[0]: row[1] for row in rows}
        for key, future in reads:  # first, since questions wait for them
            [stored] = connection.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone() or [None]
            future.set_result(fresh.get(key) or (stored if isinstance(stored, str) else None))
        if rows:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _report(self, error: Exception) -> None:
        busy = isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))
        self._off = self._off or not busy
        self._counters.add(cache_errors=1)
        if not self._said:
            self._said = True
            advice = (
                "an answer was not kept; others write at the same time (said once)"
                if busy
                else "its answers are not kept; delete the file, or set judge.cache to a folder that can be written"
            )
            self._say(f"judge cache {self._path}: {error}; {advice}")
