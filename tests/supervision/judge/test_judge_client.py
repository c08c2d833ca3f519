"""The judge between faults: one question sent once, the bound of questions under way, accounting, pictures, the end."""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import pickle
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dyme.supervision.judge import JudgeConfig, open_judge
from tests.helpers import judge_asking as asking
from tests.helpers.judge_asking import RATING, config, judge_of, question
from tests.helpers.judge_server import JudgeServer, raw, reset, silence, status
from tests.helpers.launching import environment

running_server, server = asking.SERVER
GOOD = {"rating": "low"}


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(out, kind)
    return out.getvalue()


def test_what_is_sent(server: JudgeServer) -> None:
    images = (picture("PNG"), picture("JPEG"))
    with judge_of(server, temperature=0.25) as judge:
        judge.submit(question("look \ud800", images=images, record="r1", max_tokens=7)).result(10)
        judge.submit(question("text", system="", purpose="refine")).result(10)
    seen, plain = server.calls
    assert seen.images == images and seen.user == "look ?" and seen.system == "Rate." and seen.purpose == "check"
    assert (seen.body["model"], seen.body["max_tokens"], seen.body["temperature"]) == ("m0", 7, 0.25)
    form = seen.body["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"] == RATING
    urls = [part["image_url"]["url"] for part in seen.body["messages"][1]["content"][:2]]
    assert [url[:22] for url in urls] == ["data:image/png;base64,", "data:image/jpeg;base64"]
    assert base64.b64decode(urls[1].partition(",")[2]) == images[1]
    assert "r1" not in str(seen.body) + str(seen.headers)
    assert plain.body["messages"] == [{"role": "user", "content": "text"}] and plain.purpose == "refine"


def test_identical_questions_under_way_are_sent_once(server: JudgeServer) -> None:
    server.latency_ms = 200
    with judge_of(server) as judge:
        answers = judge.ask([question("same", record=str(i)) for i in range(20)] + [question("other")])
        assert [answer.value for answer in answers] == [GOOD] * 21
        assert len({id(answer.value) for answer in answers}) == 21, "an answer that a caller changes is its own"
        counts = judge.counts()
    assert server.count() == 2 and counts.deduplicated == 19 and counts.answered == 21 and counts.cached == 0


CHANGES = (
    {"version": "2"},
    {"system": "x"},
    {"images": (picture("PNG"),)},
    {"purpose": "refine"},
    {"max_tokens": 9},
    {"schema": {**RATING, "description": "x"}},
    {"user": "sam", "system": "eRate."},
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_another_question_is_another_question(server: JudgeServer, change: dict[str, Any], tmp_path: Path) -> None:
    with judge_of(server, folder=tmp_path) as judge:
        judge.ask([question("same"), question(**({"user": "same"} | change))])
        assert server.count() == 2 and judge.counts().deduplicated == 0


def test_concurrency_is_bounded(server: JudgeServer) -> None:
    server.latency_ms = 60
    with judge_of(server, concurrency=3) as judge:
        started = time.monotonic()
        assert all(answer.ok for answer in judge.ask([question(str(i)) for i in range(12)]))
        assert server.busiest == 3 and time.monotonic() - started >= 4 * 0.06


def test_submit_does_not_wait_and_ask_waits_no_longer_than_told(server: JudgeServer) -> None:
    server.always(silence(30))
    with judge_of(server) as judge:
        started = time.monotonic()
        futures = [judge.submit(question(str(i))) for i in range(200)]
        assert time.monotonic() - started < 5 and not any(future.cancel() for future in futures)
        started = time.monotonic()
        answers = judge.ask([question(f"r{i}") for i in range(40)], 0.3)
        assert 0.25 < time.monotonic() - started < 5
        assert [answer.reason for answer in answers] == ["time_out"] * 40
        assert judge.ask([], 0.3) == []


def test_a_long_deadline_leaves_time_to_wait_in_line(server: JudgeServer) -> None:
    server.latency_ms = 100
    with judge_of(server, concurrency=1, timeout_s=0.6) as judge:
        answers = judge.ask([question(str(i)) for i in range(10)], 30)
        assert all(answer.ok for answer in answers)
        assert judge.ask([question(f"again {i}") for i in range(10)])[-1].reason == "time_out"


def test_accounting(server: JudgeServer, tmp_path: Path) -> None:
    cfg = JudgeConfig.model_validate(
        {"endpoints": [{"url": server.url, "model": "m", "input_price": 2.0, "output_price": 30.0}], "retries": 1}
    )
    judge = open_judge(cfg, tmp_path, say=print)
    server.next(status(500))
    judge.ask([question("a"), question("b", purpose="refine")])
    judge.ask([question("a"), question("a")])
    server.always(status(413))
    judge.ask([question("c")])
    counts = judge.counts()
    judge.close()
    assert (counts.asked, counts.answered, counts.cached, counts.deduplicated) == (5, 4, 2, 1)
    assert (counts.sent, counts.retries, counts.failed) == (4, 1, {"refused": 1})
    assert counts.asked == counts.answered + sum(counts.failed.values())
    assert (counts.tokens_in, counts.tokens_out) == (200, 20)
    assert counts.money == pytest.approx((200 * 2.0 + 20 * 30.0) / 1e6)
    assert sum(counts.by_purpose.values()) == counts.sent and counts.by_purpose["refine"] in (1, 2)
    assert counts.seconds > 0 and counts.cache_errors == 0
    assert counts.state == "closed"


@pytest.mark.parametrize("usage", ["silent", None, True])
def test_a_server_that_does_not_count_tokens(server: JudgeServer, usage: Any) -> None:
    told = {} if usage == "silent" else {"usage": {"prompt_tokens": usage, "completion_tokens": -3}}
    server.next(raw(json.dumps({"choices": [{"message": {"content": "high"}}]} | told)))
    with judge_of(server) as judge:
        assert judge.submit(question("q")).result(10).value == {"rating": "high"}
        assert judge.counts().tokens_in == judge.counts().tokens_out == 0


def test_close_does_not_wait_for_calls_under_way(server: JudgeServer, tmp_path: Path) -> None:
    server.always(silence(30))
    before = set(threading.enumerate())
    with judge_of(server, folder=tmp_path) as judge:
        futures = [judge.submit(question(str(i))) for i in range(50)]
        time.sleep(0.2)
        started = time.monotonic()
        judge.close()
        took = time.monotonic() - started
        assert {future.result(0).reason for future in futures} == {"closed"} and took < 5
        assert judge.submit(question("late")).result(0).reason == "closed"
        judge.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)  # on a busy machine the thread ends a little later
        assert not thread.is_alive()


def test_a_program_that_forgets_to_close_ends_all_the_same(server: JudgeServer) -> None:
    server.always(silence(30))
    program = (
        "import time; from tests.helpers.judge_asking import *; from dyme.supervision.judge import open_judge\n"
        f"judge = open_judge(config('{server.url}'), None); judge.submit(question('q')); time.sleep(0.3); print('end')"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_judge_goes_on_in_a_child(server: JudgeServer, method: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context(method)
    results = context.Queue()
    with judge_of(server, folder=tmp_path) as judge:
        if method == "spawn":  # messages go to a list of this test, which a child cannot have
            judge = open_judge(judge.cfg, tmp_path)
        assert judge.submit(question("parent")).result(10).ok
        child = context.Process(target=asking.in_a_child, args=(judge, results))
        child.start()
        assert results.get(timeout=60) == (GOOD, 1)
        child.join(10)
        assert child.exitcode == 0
        assert judge.submit(question("parent again")).result(10).ok and judge.counts().asked == 2
        judge.close()


def test_pickled_it_is_its_settings(tmp_path: Path) -> None:
    judge = open_judge(config("http://localhost:1"), tmp_path)
    again = pickle.loads(pickle.dumps(judge))
    assert again.cfg == judge.cfg
    judge.close()


def test_nothing_starts_before_the_first_question() -> None:
    before = threading.active_count()
    judge = open_judge(config("http://localhost:1"), None)
    judge.counts()
    assert threading.active_count() == before
    judge.close()


def test_proxies_of_the_environment_do_not_stand_before_localhost(server: JudgeServer, monkeypatch: Any) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "socks5://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for url in (server.url.replace("127.0.0.1", "localhost"), server.url):
        with judge_of(url) as judge:
            assert all(answer.ok for answer in judge.ask([question("a"), question("b")]))
    with judge_of("http://judge.example", retries=0) as judge:
        assert judge.submit(question("far away")).result(10).reason == "connection", "a proxy that is not there"


def test_a_name_that_is_looked_up_for_ever(monkeypatch: Any) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: hanging.wait(30))
    try:
        with judge_of("http://judge.example", timeout_s=0.3) as judge:
            started = time.monotonic()
            assert judge.submit(question("q")).result(10).reason == "time_out"
            judge.close()
            assert time.monotonic() - started < 5
    finally:
        hanging.set()


def test_pictures_are_let_go_when_the_answer_is_there(server: JudgeServer) -> None:
    """Even where the deadline is far: extracting facts asks about every picture of a data set."""
    with judge_of(server) as judge:
        asked = question("q", images=(picture("PNG"),))
        held = weakref.ref(asked)
        assert judge.submit(asked, 3600).result(10).ok
        del asked
        end = time.monotonic() + 5
        while held() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert held() is None


def test_questions_that_no_wire_can_carry(server: JudgeServer) -> None:
    with judge_of(server) as judge:
        odd = [question("q", schema={"type": {1, 2}}), question(None), question("q", images=("text",))]
        assert [answer.reason for answer in judge.ask(odd, 5)] == ["bad_answer"] * 3
        assert judge.submit(question("fine")).result(10).ok
    assert server.count() == 1


def test_questions_from_many_threads_all_come_back(server: JudgeServer) -> None:
    server.always(None)
    server.next(*[reset(), status(500)] * 3)
    with judge_of(server, breaker_failures=99) as judge:
        answers: list[Any] = []
        threads = [
            threading.Thread(
                target=lambda k=k: answers.extend(judge.ask([question(f"{k % 4} {i}") for i in range(10)]))
            )
            for k in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        counts = judge.counts()
    assert len(answers) == 80 and all(answer.ok for answer in answers)
    assert counts.asked == counts.answered == 80
