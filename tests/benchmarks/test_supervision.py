"""The judge of benchmarks.supervision, asked by the trainer's own client."""

from __future__ import annotations

import time

from benchmarks.supervision.__main__ import answer
from benchmarks.supervision.judge import Judge
from tests.helpers.judge_asking import judge_of, question


def test_the_judge_answers_by_purpose_counts_and_is_late():
    traces = "<<<FACTS a\nred 4\na FACTS>>> <<<TRACE a\nred is 7\na TRACE>>>"
    with Judge(answer, latency_ms=50) as server, judge_of(server.url) as judge:
        begin = time.monotonic()
        asked = [judge.submit(question(f"{traces} {i}")) for i in range(20)]
        assert [future.result(20).value for future in asked] == [{"rating": "low"}] * 20
        assert time.monotonic() - begin >= 0.05
        assert server.counts["check"] == 20
