"""The cache: shared by runs and by processes that write at once; whatever happens to it costs the cache alone."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dyme.data.errors import DataError
from dyme.supervision.judge import JudgeConfig, cache, open_judge, worker
from tests.helpers import judge_asking as asking
from tests.helpers.judge_asking import judge_of, question
from tests.helpers.judge_server import Call, JudgeServer, status
from tests.helpers.launching import environment

running_server, server = asking.SERVER
GOOD = {"rating": "low"}


def cache_file(folder: Path) -> Path:
    return folder / "judge-cache" / "answers.sqlite"


def test_the_next_run_asks_nothing(server: JudgeServer, tmp_path: Path) -> None:
    with judge_of(server, folder=tmp_path) as judge:
        first = judge.ask([question(str(i)) for i in range(10)])
        assert all(answer.ok and not answer.cached for answer in first)
        again = judge.ask([question(str(i), record="another") for i in range(10)])
        assert [(answer.value, answer.cached) for answer in again] == [(GOOD, True)] * 10
    with judge_of(server, folder=tmp_path) as judge:
        again = judge.ask([question(str(i)) for i in range(10)])
        assert [(answer.value, answer.cached) for answer in again] == [(GOOD, True)] * 10
        assert judge.counts().sent == 0 and judge.counts().cached == 10
    assert server.count() == 10


def test_a_broken_judge_still_answers_what_it_knows(server: JudgeServer, tmp_path: Path) -> None:
    with judge_of(server, folder=tmp_path) as judge:
        judge.ask([question("known")])
    server.always(status(500))
    with judge_of(server, folder=tmp_path, retries=0, breaker_failures=1, breaker_pause_s=60) as judge:
        assert judge.submit(question("unknown")).result(10).reason == "server_error"
        assert judge.submit(question("unknown")).result(10).reason == "breaker_open"
        assert judge.submit(question("known")).result(10).cached


def test_what_makes_an_entry(server: JudgeServer, tmp_path: Path) -> None:
    """Model, version, temperature and length of the answer; not the address, which moves with the cluster's nodes."""

    def sent(model: str = "m", version: str = "1", **fields: Any) -> int:
        before = server.count()
        cfg = JudgeConfig.model_validate({"endpoints": [{"url": server.url, "model": model}], **fields})
        judge = open_judge(cfg, tmp_path, say=print)
        assert judge.submit(question("q", version=version)).result(10).ok
        judge.close()
        return server.count() - before

    assert [sent(), sent()] == [1, 0]
    assert [sent(model="other"), sent(version="2"), sent(temperature=0.5), sent(max_tokens=100)] == [1, 1, 1, 1]
    assert [sent(model="other"), sent(), sent(cache=str(tmp_path / "elsewhere"))] == [0, 0, 1]
    assert (tmp_path / "elsewhere" / "answers.sqlite").exists()
    with JudgeServer() as moved, judge_of(moved) as judge:
        judge = open_judge(JudgeConfig.model_validate({"endpoints": [{"url": moved.url, "model": "m"}]}), tmp_path)
        assert judge.submit(question("q")).result(10).cached
        judge.close()


def test_environment_variables_in_its_folder(server: JudgeServer, tmp_path: Path, monkeypatch: Any) -> None:
    """A common folder of a cluster is seldom at the same path everywhere."""
    with pytest.raises(DataError, match="environment variable DYME_TEST_SCRATCH is not set"):
        open_judge(asking.config(server, cache="$DYME_TEST_SCRATCH/judge"), None)
    monkeypatch.setenv("DYME_TEST_SCRATCH", str(tmp_path))
    with judge_of(server, cache="$DYME_TEST_SCRATCH/judge") as judge:
        assert judge.submit(question("q")).result(10).ok
    assert (tmp_path / "judge" / "answers.sqlite").exists()


def test_failures_are_not_kept(server: JudgeServer, tmp_path: Path) -> None:
    server.next(status(413))
    with judge_of(server, folder=tmp_path) as judge:
        assert judge.submit(question("q")).result(10).reason == "refused"
        assert judge.submit(question("q")).result(10).ok


def test_the_file_holds_no_question(server: JudgeServer, tmp_path: Path) -> None:
    with judge_of(server, folder=tmp_path) as judge:
        judge.ask([question("the patient's name", system="a secret prompt", record="record-17")])
    held = cache_file(tmp_path).read_bytes()
    assert b"rating" in held and not any(word in held for word in (b"patient", b"secret", b"record-17"))


def test_four_processes_write_at_once(server: JudgeServer, tmp_path: Path) -> None:
    """The same 100 questions from each, in orders of their own: nothing fails, and most are asked once."""

    def answer(call: Call) -> dict[str, Any]:
        time.sleep(0.002)
        return {"rating": "high"}

    server.answer = answer
    command = [sys.executable, "-m", "tests.programs.cache_writer", server.url, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    writers = [subprocess.Popen([*command, str(seed)], env=environment(), text=True, **pipes) for seed in range(4)]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        ends = [writer.communicate(timeout=60) for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
    assert [error for _, error in ends] == [""] * 4
    counts = [json.loads(output) for output, _ in ends]
    assert all(each["wrong"] == [] and each["answered"] == 100 and each["cache_errors"] == 0 for each in counts)
    assert sum(each["sent"] for each in counts) == server.count() < 300, "they share what they learn"
    with sqlite3.connect(cache_file(tmp_path)) as file:
        assert file.execute("SELECT count(*) FROM answers").fetchone() == (100,)
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def spoil_header(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 500)


def spoil_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200:] = os.urandom(len(content) - 200)
    path.write_bytes(bytes(content))


def spoil_table(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("DROP TABLE answers")
        file.execute("CREATE TABLE answers (something)")


def empty_it(path: Path) -> None:
    path.write_bytes(b"")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [spoil_header, spoil_pages, spoil_table, make_folder])
def test_a_corrupt_file_costs_the_cache_and_is_said_once(server: JudgeServer, tmp_path: Path, spoil: Any) -> None:
    with judge_of(server, folder=tmp_path) as judge:
        judge.ask([question(str(i)) for i in range(50)])
    spoil(cache_file(tmp_path))
    said: list[str] = []
    with judge_of(server, folder=tmp_path, said=said) as judge:
        for _ in range(2):
            assert all(answer.ok and not answer.cached for answer in judge.ask([question(str(i)) for i in range(50)]))
        counts = judge.counts()
    assert counts.answered == 100 and counts.cache_errors >= 1 and counts.failed == {}
    assert len(said) == 1 and str(cache_file(tmp_path)) in said[0] and "delete the file" in said[0]


def test_an_empty_file_becomes_a_cache(server: JudgeServer, tmp_path: Path) -> None:
    cache_file(tmp_path).parent.mkdir()
    empty_it(cache_file(tmp_path))
    with judge_of(server, folder=tmp_path) as judge:
        judge.ask([question("q")])
        assert judge.submit(question("q")).result(10).cached


@pytest.mark.parametrize(
    "value", ['{"rating": "hig', '{"rating": "huge"}', "[]", "", '{"other": 1}', b"\xff\xfe", None, 3]
)
def test_a_damaged_entry_is_no_entry(server: JudgeServer, tmp_path: Path, value: Any) -> None:
    with judge_of(server, folder=tmp_path) as judge:
        judge.ask([question("q")])
    with sqlite3.connect(cache_file(tmp_path)) as file:
        file.execute("UPDATE answers SET value = ?", (value,)) if value is not None else file.execute(
            "DELETE FROM answers"
        )
    with judge_of(server, folder=tmp_path) as judge:
        answer = judge.submit(question("q")).result(10)
        assert answer.value == GOOD and not answer.cached


def test_a_folder_that_cannot_be_made(server: JudgeServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with judge_of(server, said=said, cache=str(tmp_path / "file" / "cache")) as judge:
        assert all(answer.ok for answer in judge.ask([question(str(i)) for i in range(5)]))
    assert len(said) == 1 and "judge.cache" in said[0]


def test_a_lock_that_another_holds_costs_time_but_no_answer(
    server: JudgeServer, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cache, "BUSY_S", 0.1)
    monkeypatch.setattr(worker, "CACHE_WAIT_S", 0.3)
    with judge_of(server, folder=tmp_path) as judge:
        judge.ask([question("before")])
        time.sleep(0.1)
        with sqlite3.connect(cache_file(tmp_path), isolation_level=None) as other:
            other.execute("BEGIN EXCLUSIVE")
            answer = judge.submit(question("meanwhile")).result(10)
            assert answer.value == GOOD and answer.seconds < 3
            judge.close()
            other.execute("COMMIT")
        assert judge.counts().cache_errors >= 1
    with judge_of(server, folder=tmp_path) as judge:
        assert judge.submit(question("before")).result(10).cached


def test_a_file_system_that_hangs_costs_one_wait(server: JudgeServer, tmp_path: Path, monkeypatch: Any) -> None:
    hanging = threading.Event()

    def hang(cache: Any) -> None:
        hanging.wait(20)
        raise OSError("stale file handle")

    monkeypatch.setattr(worker, "CACHE_WAIT_S", 1.0)
    monkeypatch.setattr(cache.AnswerCache, "_open", hang)
    try:
        with judge_of(server, folder=tmp_path) as judge:
            answers = [judge.submit(question(str(i))).result(10) for i in range(5)]
            assert all(answer.ok for answer in answers) and judge.counts().cache_errors == 5
            assert answers[0].seconds >= 1.0 > max(answer.seconds for answer in answers[1:])
            started = time.monotonic()
            judge.close()
            assert time.monotonic() - started < 5
    finally:
        hanging.set()
