"""Questions, judges and fixtures for tests; a test file takes the fixtures with `running_server, server = SERVER`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dyme.supervision.judge import Judge, JudgeConfig, Question, open_judge, worker
from tests.helpers.judge_server import JudgeServer, default_answer

RATING: dict[str, Any] = {
    "type": "object",
    "properties": {"rating": {"type": "string", "enum": ["low", "medium", "high"]}},
    "required": ["rating"],
    "additionalProperties": False,
}


def question(user: str, **fields: Any) -> Question:
    return Question(
        **({"purpose": "check", "version": "1", "system": "Rate.", "user": user, "schema": RATING} | fields)
    )


def config(server: JudgeServer | str | None, **fields: Any) -> JudgeConfig:
    url = server.url if isinstance(server, JudgeServer) else server
    endpoints = [{"url": url, "model": "m0"}] if url else []
    return JudgeConfig.model_validate({"endpoints": endpoints} | fields)


@contextmanager
def judge_of(
    server: JudgeServer | str | None, folder: Path | None = None, said: list[str] | None = None, **fields: Any
) -> Iterator[Judge]:
    """An open judge whose messages go to `said`."""
    judge: Judge = open_judge(config(server, **fields), folder, say=(said if said is not None else []).append)
    try:
        yield judge
    finally:
        judge.close()


def in_a_child(judge: Judge, results: Any) -> None:
    """Of a multiprocessing child; here, since a spawned child imports the whole file of its function."""
    answer = judge.submit(question("child")).result(10)
    counts = judge.counts()
    judge.close()
    results.put((answer.value, counts.asked))


@pytest.fixture(scope="module")
def running_server() -> Iterator[JudgeServer]:
    with JudgeServer() as running:
        yield running


@pytest.fixture
def server(running_server: JudgeServer) -> JudgeServer:
    """The scripted server as new; it answers at once."""
    running_server.clear()
    running_server.answer, running_server.latency_ms = default_answer, 0.0
    return running_server


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off between tries, ten times faster."""
    monkeypatch.setattr(worker, "BACKOFF_S", 0.05)


SERVER = (running_server, server)
