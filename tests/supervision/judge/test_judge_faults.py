"""Every fault of a server, against a real one: what the caller gets, how soon, and that the judge recovers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from dyme.supervision.judge import worker
from tests.helpers import judge_asking as asking
from tests.helpers.judge_asking import judge_of, question
from tests.helpers.judge_server import (
    TRUNCATED_JSON,
    WRONG_SCHEMA,
    Fault,
    JudgeServer,
    delay,
    free_port,
    raw,
    reset,
    says,
    silence,
    status,
    truncated,
)

running_server, server = asking.SERVER
short_pauses = asking.short_pauses
pytestmark = pytest.mark.usefixtures("short_pauses")
GOOD = {"rating": "low"}


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


PASSING = [
    status(500),
    status(502),
    status(503, text="x" * 100_000),
    status(408),
    status(429),
    reset(),
    truncated(),
    raw("<html>busy</html>"),
    raw('{"choices": []}'),
    raw('{"error": {"message": "overloaded"}}'),
    WRONG_SCHEMA,
    TRUNCATED_JSON,
    says("highly unlikely to be low"),
    says(""),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.code}-{fault.text[:12]}")
def test_a_passing_fault_costs_a_retry(server: JudgeServer, fault: Fault) -> None:
    server.next(fault)
    with judge_of(server) as judge:
        answer = judge.submit(question("q")).result(10)
        assert answer.value == GOOD and answer.reason == "" and not answer.cached
        counts = judge.counts()
    assert (counts.asked, counts.answered, counts.sent, counts.retries, counts.failed) == (1, 1, 2, 1, {})
    assert server.count("check") == 2


@pytest.mark.parametrize(
    ("fault", "reason", "sent"),
    [
        (status(500), "server_error", 3),
        (reset(), "connection", 3),
        (truncated(), "connection", 3),
        (raw("<html>"), "server_error", 3),
        (status(429), "rate_limited", 3),
        (WRONG_SCHEMA, "bad_answer", 2),  # a second time with the schema in words, and no more
        (TRUNCATED_JSON, "bad_answer", 2),
        (status(401), "refused", 1),
        (status(404), "refused", 1),
        (status(413), "refused", 1),
        (status(400), "refused", 2),  # once more without response_format
        (status(307), "refused", 1),
    ],
    ids=lambda value: value.kind + str(value.code) if isinstance(value, Fault) else str(value),
)
def test_a_lasting_fault_has_a_reason(server: JudgeServer, fault: Fault, reason: str, sent: int) -> None:
    server.always(fault)
    with judge_of(server, retries=2, breaker_failures=99) as judge:
        answer = judge.submit(question("q")).result(10)
        assert (answer.value, answer.reason) == (None, reason)
        counts = judge.counts()
    assert counts.failed == {reason: 1} and counts.sent == sent == server.count("check")


def test_nobody_there() -> None:
    with judge_of(f"http://127.0.0.1:{free_port()}") as judge:
        assert judge.submit(question("q")).result(10).reason == "connection"
    with judge_of(None) as judge:
        answer = judge.submit(question("q")).result(0)
        assert answer.reason == "no_judge" and not answer.ok and judge.counts().failed == {"no_judge": 1}


def test_half_a_minute_of_silence_ends_at_the_deadline(server: JudgeServer) -> None:
    server.always(silence(30))
    with judge_of(server, timeout_s=0.5, breaker_pause_s=60) as judge:
        started = time.monotonic()
        answer = judge.submit(question("q")).result(10)
        assert answer.reason == "time_out" and 0.4 < time.monotonic() - started < 10
        # one whole deadline of silence was enough
        until(lambda: judge.counts().state == "open")
        started = time.monotonic()
        assert judge.submit(question("r")).result(10).reason == "breaker_open"
        assert time.monotonic() - started < 5
        assert judge.counts().failed == {"time_out": 1, "breaker_open": 1}


def test_the_deadline_covers_all_tries(server: JudgeServer) -> None:
    server.always(status(500))
    with judge_of(server, timeout_s=0.6, retries=20, breaker_failures=99) as judge:
        started = time.monotonic()
        # the deadline comes between two tries, or in one
        assert judge.submit(question("q")).result(10).reason in ("server_error", "time_out")
        assert time.monotonic() - started < 5
        assert 2 <= server.count() < 21


def test_a_caller_may_have_less_time(server: JudgeServer) -> None:
    server.latency_ms = 3000
    with judge_of(server) as judge:
        started = time.monotonic()
        hasty, patient = judge.submit(question("q"), 0.1), judge.submit(question("q"))
        assert hasty.result(10).reason == "time_out" and time.monotonic() - started < 2.5
        assert patient.result(10).value == GOOD, "who waits longer still gets the answer"
        assert judge.submit(question("r"), 0.0).result(10).reason == "time_out"
        assert judge.counts().state != "open"


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_honoured(server: JudgeServer, code: int) -> None:
    """And is no failure: the circuit of a server that asks for a pause stays closed."""
    server.next(status(code, retry_after=0.6))
    with judge_of(server, breaker_failures=1) as judge:
        assert judge.submit(question("q")).result(10).value == GOOD
    first, second = server.calls
    assert 0.6 <= second.at - first.at < 10


def test_retry_after_holds_for_all_questions(server: JudgeServer) -> None:
    server.next(status(429, retry_after=0.6))
    with judge_of(server) as judge:
        first = judge.submit(question("first"))
        until(lambda: server.count() == 1)
        time.sleep(0.1)
        answers = judge.ask([question(str(i)) for i in range(4)])
        assert first.result(10).ok and all(answer.ok for answer in answers)
    assert min(call.at for call in server.calls[1:]) - server.calls[0].at >= 0.6


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_beyond_the_deadline_is_not_waited_for(server: JudgeServer, code: int) -> None:
    server.always(status(code, retry_after=3600))
    with judge_of(server, timeout_s=5) as judge:
        started = time.monotonic()
        assert judge.submit(question("q")).result(10).reason == "rate_limited"
        assert judge.submit(question("r")).result(10).reason == "rate_limited"
        assert time.monotonic() - started < 4 and server.count() == 1
        assert judge.counts().state == "busy"


def test_lasting_rate_limits_open_the_circuit(server: JudgeServer) -> None:
    server.always(status(429))
    with judge_of(server, retries=1, breaker_failures=2, breaker_pause_s=60) as judge:
        reasons = [judge.submit(question(str(i))).result(10).reason for i in range(4)]
    assert reasons == ["rate_limited", "rate_limited", "breaker_open", "breaker_open"]


def test_back_off_is_jittered_and_grows(server: JudgeServer, monkeypatch: Any) -> None:
    server.always(status(500))
    gaps = []
    for shortest in (True, False):
        monkeypatch.setattr(worker.random, "uniform", lambda low, high, shortest=shortest: low if shortest else high)
        server.calls.clear()
        with judge_of(server, retries=4, breaker_failures=99) as judge:
            judge.submit(question("q")).result(10)
        times = [call.at for call in server.calls]
        gaps.append([b - a for a, b in itertools.pairwise(times)])
    short, long = gaps
    # 0.05 s doubled each time, and half of it to all of it
    assert all(gap >= 0.025 * 2**i for i, gap in enumerate(short)) and short[3] < 0.39, gaps
    assert all(gap >= 0.05 * 2**i for i, gap in enumerate(long)) and len(long) == 4, gaps


def test_dies_and_returns_on_the_same_port(server: JudgeServer) -> None:
    said: list[str] = []
    with judge_of(server, said=said, breaker_pause_s=0.3, retries=4, temperature=0.5) as judge:
        assert judge.submit(question("before")).result(10).ok
        server.stop()
        assert judge.submit(question("dead")).result(10).reason == "connection"
        until(lambda: judge.counts().state != "closed")
        started = time.monotonic()
        answers = judge.ask([question(f"while {i}") for i in range(50)])
        assert {answer.reason for answer in answers} == {"breaker_open"} and time.monotonic() - started < 1.0
        server.start()
        until(lambda: judge.counts().state == "closed")
        assert judge.submit(question("after")).result(10).ok
        counts = judge.counts()
    assert counts.failed == {"connection": 1, "breaker_open": 50} and counts.probes >= 1
    assert counts.sent == 3 + counts.retries, "pings are no questions"
    assert server.count("ping") >= 1 and [call.user for call in server.calls if call.purpose == "check"] == [
        "before",
        "after",
    ], "no question of the run was spent on finding out"
    assert len(said) == 2 and "left alone for now, connection" in said[0] and "back after" in said[1]


def test_half_open_while_it_asks_and_open_again_in_vain(server: JudgeServer) -> None:
    server.always(status(500))
    with judge_of(server, retries=0, breaker_failures=1, breaker_pause_s=0.1) as judge:
        assert judge.submit(question("q")).result(10).reason == "server_error"
        server.always(delay(0.3))
        until(lambda: judge.counts().state == "half_open")
        assert judge.submit(question("r")).result(10).reason == "breaker_open"
        until(lambda: judge.counts().state == "closed")
        server.always(status(500))
        assert judge.submit(question("s")).result(10).reason == "server_error"
        probes = judge.counts().probes
        until(lambda: judge.counts().probes >= probes + 2)
        assert judge.counts().state != "closed"


def test_it_is_looked_for_again_whatever_goes_wrong_in_looking(server: JudgeServer, monkeypatch: Any) -> None:
    """An error of the client itself must not leave the server out for good."""
    ask, broken = worker.Endpoint.ask, [True]

    async def odd(self: Any, asked: Any, timeout_s: float, told_schema: bool = False) -> Any:
        if asked.purpose == "ping" and broken:
            broken.pop()
            raise RuntimeError("odd")
        return await ask(self, asked, timeout_s, told_schema)

    monkeypatch.setattr(worker.Endpoint, "ask", odd)
    server.always(status(500))
    with judge_of(server, retries=0, breaker_failures=1, breaker_pause_s=0.1) as judge:
        assert judge.submit(question("q")).result(10).reason == "server_error"
        server.always(None)
        until(lambda: judge.counts().state == "closed")
        assert judge.submit(question("r")).result(10).ok and not broken


def test_one_that_answers_pings_alone_is_asked_ever_less(server: JudgeServer) -> None:
    def answer(call: Any) -> Any:
        assert call.purpose == "ping", "the server fails: 500"
        return {"verdict": "ok"}

    server.answer = answer
    with judge_of(server, retries=0, breaker_failures=1, breaker_pause_s=0.1) as judge:
        end = time.monotonic() + 1.6
        while time.monotonic() < end:
            assert not judge.submit(question(str(time.monotonic()))).result(10).ok
            time.sleep(0.005)
    assert 2 <= server.count("check") <= 5, "after pauses of 0.1, 0.2, 0.4, 0.8 seconds"


def test_a_wrong_key_opens_the_circuit_and_is_said_once() -> None:
    said: list[str] = []
    with JudgeServer(key="right") as server, judge_of(server, said=said, breaker_pause_s=60) as judge:
        reasons = [judge.submit(question(str(i))).result(10).reason for i in range(5)]
        assert reasons == ["refused"] * 3 + ["breaker_open"] * 2 and server.count() == 3
    assert len(said) == 1 and "401" in said[0] and "api_key_env" in said[0]


def test_a_question_that_is_refused_does_not_close_the_door_for_others(server: JudgeServer) -> None:
    said: list[str] = []
    with judge_of(server, said=said, breaker_failures=1) as judge:
        server.always(status(413, text="prompt too long"))
        assert {judge.submit(question(str(i), record="r7")).result(10).reason for i in range(3)} == {"refused"}
        server.always(None)
        assert judge.submit(question("short")).result(10).ok
    assert len(said) == 1 and "record r7" in said[0] and "prompt too long" in said[0]


def test_a_server_without_response_format_is_asked_in_words() -> None:
    said: list[str] = []
    with JudgeServer(refuses=("response_format",)) as server, judge_of(server, said=said) as judge:
        answers = [judge.submit(question(str(i))).result(10) for i in range(3)]
        assert [answer.value for answer in answers] == [GOOD] * 3
        assert [call.structured for call in server.calls] == [True, False, False, False], "it is remembered"
        assert judge.counts().retries == 0
    assert len(said) == 1 and "response_format" in said[0]


def test_a_server_with_other_names_of_its_settings() -> None:
    with JudgeServer(refuses=("temperature", "max_tokens")) as server, judge_of(server) as judge:
        assert all(judge.submit(question(str(i))).result(10).ok for i in range(3))
        last = server.calls[-1].body
        assert server.count() == 5 and last["max_completion_tokens"] == 512 and "temperature" not in last
        assert server.calls[-1].structured


def test_a_server_that_ignores_response_format_is_told_the_schema(server: JudgeServer) -> None:
    def answer(call: Any) -> str:
        return 'Sure!\n```json\n{"rating": "high"}\n```' if "JSON schema" in call.user else "Nice trace, well done."

    server.answer = answer
    with judge_of(server) as judge:
        assert judge.submit(question("q")).result(10).value == {"rating": "high"}
        assert judge.counts().retries == 1


def test_endless_replies_are_given_up(server: JudgeServer) -> None:
    server.always(raw("x" * (5 << 20)))
    with judge_of(server, retries=0) as judge:
        assert judge.submit(question("q")).result(10).reason == "bad_answer"
