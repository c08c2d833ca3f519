"""Supervisor: what a step waits for, what is counted, and that ranks keep one pool."""

from __future__ import annotations

import time

import pytest
from PIL import Image
from supervision.judge.server import JudgeServer, free_port

from dyme.data.record import LazyImage, Record
from dyme.progress import ProgressLine
from dyme.supervision.checker import CheckRow
from dyme.supervision.judge import JudgeConfig
from dyme.supervision.settings import SupervisionConfig
from dyme.supervision.supervisor import Supervisor

LATENCY = 0.3
WHOLE = [Record(f"r{i}", "red plus blue?", ("6",), facts="red 4, blue 2", hint=f"hm {i} so 6") for i in range(16)]


def supervisor(folder, url, rank=0, **settings):
    cfg = SupervisionConfig(**{"checker": "judge", "refiner": "judge", **settings})
    judge = {"endpoints": [{"url": url, "model": "m"}], "timeout_s": 5, "retries": 0}
    return Supervisor(cfg, JudgeConfig.model_validate(judge), folder, rank=rank, flag="Answer:", say=print)


def rows(record, n=8):
    return [CheckRow(record, f"red {i}, so {record.id}", True) for i in range(n)]


def answer(call):
    if call.purpose == "check":
        return {"ratings": ["high"] * 8}
    return {"trace": "red 4, blue 2, so 6"}


def test_a_step_waits_one_latency_whatever_its_rows_and_none_when_cached(tmp_path):
    """16 groups of 8 rows, half of which memorize: ratings and references are under way together."""
    waits = []
    with JudgeServer(answer, latency_ms=1000 * LATENCY) as server:
        for _ in range(2):
            held = supervisor(tmp_path, server.url)
            held.check(rows(Record("warm", "red?", ("4",), facts="red 4")), "open").result(5)
            begin = time.monotonic()
            checks = [held.check(rows(each), "wrong" if i % 2 else "open") for i, each in enumerate(WHOLE)]
            scored = held.verdicts(checks)
            refined = held.refine(WHOLE[1::2])
            waits.append(time.monotonic() - begin)
            assert [each[0].source for each in scored] == ["judge", "skipped"] * 8
            assert {each.source for each in refined} == {"judge"}
            held.close()
        assert server.count("check") == 9 and server.count("refine") == 8
    assert LATENCY <= waits[0] < 2 * LATENCY and waits[1] < LATENCY


def test_what_is_counted(tmp_path):
    """Facts, ratings and rewrites that the judge does not give are three things."""
    picture = LazyImage(draw=lambda: Image.new("RGB", (4, 4)))
    record = Record("r", "red plus blue?", ("6",), images=(picture,), hint="The red bar shows 4. The blue bar shows 2.")
    held = supervisor(tmp_path, f"http://127.0.0.1:{free_port()}", facts="judge")
    check = held.check(rows(record, 3), "open")
    held.verdicts([check])
    held.refine([record])
    signals = held.signals(list, 1)
    assert {name: signals[f"supervision/{name}/degraded"] for name in ("facts", "check", "refine")} == {
        "facts": 1,
        "check": 3,
        "refine": 1,
    }
    assert held.totals["facts/degraded"] == 1 and not held.signals(list, 1)["supervision/facts/degraded"]
    held.close()


@pytest.mark.parametrize("stage", ["facts", "check", "refine"])
def test_the_progress_line_shows_it(stage, capsys):
    signals = dict.fromkeys(("mode/explore_ratio", "mode/memorize_ratio", "mode/skip_ratio", "tokens_per_s"), 0.0)
    ProgressLine("run", 1, 0, 0).step(1, signals)
    assert "degraded" not in capsys.readouterr().err
    ProgressLine("run", 1, 0, 0).step(1, signals | {f"supervision/{stage}/degraded": 3.0})
    assert "degraded 3" in capsys.readouterr().err
