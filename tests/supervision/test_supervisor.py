"""Supervisor: what a step waits for, what is counted, and that ranks keep one pool."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from dyme.data.record import LazyImage, Record
from dyme.metrics.progress import ProgressLine
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.checker import CheckRow
from dyme.supervision.judge import JudgeConfig
from dyme.supervision.supervisor import Supervisor
from dyme.supervision.templates import read_pool
from tests.helpers.judge_server import JudgeServer, free_port

LATENCY = 1.5  # long beside what a busy machine adds
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
    metrics = held.metrics(list, 1)
    assert {name: metrics[f"supervision/{name}/degraded"] for name in ("facts", "check", "refine")} == {
        "facts": 1,
        "check": 3,
        "refine": 1,
    }
    assert held.totals["facts/degraded"] == 1 and not held.metrics(list, 1)["supervision/facts/degraded"]
    held.close()


@pytest.mark.parametrize("stage", ["facts", "check", "refine"])
def test_the_progress_line_shows_it(stage, capsys):
    metrics = dict.fromkeys(("mode/explore_ratio", "mode/memorize_ratio", "mode/skip_ratio", "tokens_per_s"), 0.0)
    ProgressLine("run", 1, 0, 0).step(1, metrics)
    assert "degraded" not in capsys.readouterr().err
    ProgressLine("run", 1, 0, 0).step(1, metrics | {f"supervision/{stage}/degraded": 3.0})
    assert "degraded 3" in capsys.readouterr().err


# --- templates on ranks ---------------------------------------------------------------------------

TRACES = ["red 4, blue 2: 4 + 2 = 6", "look: red 4, blue 2 so 4 + 2 is 6"]


def on_ranks(held, act):
    """`act(supervisor, gather)` on every rank at once."""
    parts, barrier = [None] * len(held), threading.Barrier(len(held))

    def one(rank):
        def gather(value):
            parts[rank] = json.dumps(value)
            barrier.wait(5)
            everything = [json.loads(part) for part in parts]
            barrier.wait(5)
            return everything

        return act(held[rank], gather)

    with ThreadPoolExecutor(len(held)) as pool:
        return list(pool.map(one, range(len(held))))


def test_ranks_learn_one_pool_and_go_on_with_it(tmp_path):
    """Each rank finds its own template; a state saved between two updates leads to the same pool as going on."""

    def ranks(folder):
        settings = {"checker": "lexical", "refiner": "rules", "templates": {"every": 2}}
        return [supervisor(folder, "http://127.0.0.1:9", rank=rank, **settings) for rank in range(2)]

    def step(held, at):
        for one, trace in zip(held, TRACES):
            one.learn([(trace, WHOLE[0], 1.0)], at)
        on_ranks(held, lambda one, gather: one.update(at, gather))

    first = ranks(tmp_path / "first")
    for at in range(3):
        step(first, at)
    states = on_ranks(first, lambda one, gather: one.state_dict(gather))
    assert states[0] == states[1] and states[0]["found"] and states[0]["compared"]
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "templates.json").write_text("of a step that was lost")
    second = ranks(tmp_path / "second")
    for one in second:
        one.load_state_dict(states[0])
    assert read_pool(tmp_path / "second").state_dict() == first[0].pool.state_dict()
    for held in (first, second):
        for at in range(3, 8):
            step(held, at)
        assert held[0].pool == held[1].pool
    assert first[0].pool == second[0].pool and first[0].pool.version > 0
    assert len(first[0].pool.entries["sum"]) == 2 and read_pool(tmp_path / "first") == read_pool(tmp_path / "second")


def test_a_checkpoint_does_not_lose_templates_that_the_judge_is_still_making(tmp_path):
    scan = Record("s", "Is there a fracture?", ("no",), kind="PRES")
    with JudgeServer(lambda call: {"template": "Name the bone, then {answer}."}, latency_ms=200) as server:
        held = supervisor(tmp_path, server.url, templates={"every": 2})
        held.learn([("the femur is whole", scan, 1.0)], 0)
        [state] = on_ranks([held], lambda one, gather: one.state_dict(gather))
        assert not state["found"]
        held._drafts[0].result(5)
        [state] = on_ranks([held], lambda one, gather: one.state_dict(gather))
        assert [each["text"] for each in state["found"]] == ["Name the bone, then {answer}."]
        held.close()
