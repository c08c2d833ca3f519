"""Answers on disk: one SQLite file that ranks and runs may share. It holds hashes, parsed values, model and version of
the prompt; neither questions nor pictures.

Whatever happens to the file costs the cache, never the run. A thread of its own reads and writes, since a shared file
system may take its time; SQLite's rollback journal is kept (the faster WAL does not work across machines).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dyme.supervision.judge.types import Question

FILE = "answers.sqlite"
BUSY_S = 5.0
"""How long another writer is waited for."""
BATCH = 256
"""Answers written in one transaction."""
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value TEXT NOT NULL, model TEXT, purpose TEXT, "
    "version TEXT, written REAL) WITHOUT ROWID"
)


def question_key(question: Question, max_tokens: int, temperature: float) -> bytes:
    """Hash of all that is sent, but for the model: what makes two questions the same."""
    parts = (
        question.purpose,
        question.version,
        question.system,
        question.user,
        json.dumps(question.schema, sort_keys=True),
        str(question.max_tokens or max_tokens),
        repr(temperature),
    )
    digest = hashlib.sha256()
    for part in (*(text.encode("utf-8", "surrogatepass") for text in parts), *question.images):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def answer_key(key: bytes, model: str) -> bytes:
    """Hash under which a model's answer to the question of `key` lies."""
    return hashlib.sha256(key + model.encode("utf-8", "surrogatepass")).digest()


class AnswerCache:
    """The cache in `folder`; `say` tells the first failure, `failed` is called for each."""

    def __init__(self, folder: Path, say: Callable[[str], None], failed: Callable[[], None]) -> None:
        self._path = folder / FILE
        self._say, self._failed = say, failed
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._told = self._off = False
        self._thread = threading.Thread(target=self._run, name="judge cache", daemon=True)
        self._thread.start()

    def get(self, keys: Sequence[bytes]) -> Future[str | None]:
        """The JSON text under the first of `keys` that has one; to be checked, since the file may be anybody's."""
        future: Future[str | None] = Future()
        future.set_running_or_notify_cancel()
        if self._off:
            future.set_result(None)
        else:
            self._jobs.put((keys, future))
        return future

    def put(self, key: bytes, value: dict[str, Any], model: str, question: Question) -> None:
        """Written soon; another writer's answer to the same question stays."""
        if not self._off:
            row = (key, json.dumps(value), model, question.purpose, question.version, time.time())
            self._jobs.put(row)

    def close(self, timeout_s: float) -> None:
        """Writes what was put before and closes the file, as far as `timeout_s` allows."""
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        going_on = True
        while going_on:
            jobs = [self._jobs.get()]
            while len(jobs) < BATCH and not self._jobs.empty():
                jobs.append(self._jobs.get())
            going_on = None not in jobs
            reads = [job for job in jobs if job is not None and len(job) == 2]
            rows = [job for job in jobs if job is not None and len(job) != 2]
            if not self._off:
                connection = self._work(connection, reads, rows)
            for _, future in reads:
                if not future.done():
                    future.set_result(None)
        if connection is not None:
            connection.close()

    def _work(self, connection: sqlite3.Connection | None, reads: Any, rows: Any) -> sqlite3.Connection | None:
        try:
            if connection is None:
                connection = self._open()
            fresh = {row[0]: row[1] for row in rows}
            for keys, future in reads:  # first: somebody waits for them
                known = next((fresh[key] for key in keys if key in fresh), None)
                future.set_result(known or self._find(connection, keys))
            if rows:
                with connection:
                    connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:  # an edge, as below: a file that others and disks have a hand in
            busy = "locked" in str(error) or "busy" in str(error)
            self._trouble(error, lasting=not busy)
        except (sqlite3.Error, OSError) as error:
            self._trouble(error, lasting=True)
        return connection

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=BUSY_S)
        connection.execute("PRAGMA synchronous=NORMAL")
        with connection:
            connection.execute(_TABLE)
        return connection

    def _find(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> str | None:
        for key in keys:
            row = connection.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
            if row is not None and isinstance(row[0], str):
                return row[0]
        return None

    def _trouble(self, error: Exception, lasting: bool) -> None:
        self._failed()
        self._off = self._off or lasting
        if not self._told:
            self._told = True
            mend = (
                "its answers are not kept; delete the file, or set judge.cache to a folder that can be written"
                if lasting
                else "an answer was not kept; others write at the same time (said once)"
            )
            self._say(f"judge cache {self._path}: {error}; {mend}")
