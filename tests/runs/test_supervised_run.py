"""Whole runs with a judge: it dies and returns, is never there, and what it learns goes on after a resume."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.judge_server import Call, JudgeServer
from tests.helpers.launching import run_on_ranks
from tests.helpers.runs import lines, same, same_weights, write_config

pytestmark = pytest.mark.dist


def answer(call: Call) -> dict | str:
    """A judge that always finds something to say; what it says depends on the question alone."""
    if call.purpose == "refine":
        gold = re.search(r"<<<ANSWER \w+\n(.*?)\n\w+ ANSWER>>>", call.user, re.DOTALL)
        return {"trace": f"I look at the picture and find {gold[1] if gold else 'nothing'}."}
    if call.purpose == "check":
        count = len(set(re.findall(r"<<<(TRACE\w*) ", call.user)))
        ratings = random.Random(call.user).choices(["low", "medium", "high"], k=count)
        return {"ratings": ratings} if count > 1 else {"rating": ratings[0]}
    if call.purpose == "template":
        return {"template": "I look at the [thing] and find [answer]."}
    return {"better": "second"}


def config(folder: Path, server: JudgeServer, **changes: object) -> Path:
    """Steps of a moment each, on four records of a chart."""
    return write_config(
        folder,
        data={"train": {"source": "charts", "count": 12, "trace": "low", "kinds": ["value"], "charts": ["bar"]}},
        rollout={"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 2},
        judge={
            "endpoints": [{"url": server.url, "model": "m"}],
            "timeout_s": 2.0,
            "retries": 1,
            "breaker_failures": 2,
            "breaker_pause_s": 0.2,
        },
        supervision={"checker": "judge", "refiner": "judge", "templates": {"every": 5}},
        run__export=False,
        **changes,
    )


def digests(said: str) -> set[str]:
    found = re.findall(r"digest (\w+)", said)
    assert len(found) == 2
    return set(found)


def test_sixty_steps_while_the_judge_dies_and_returns(tmp_path):
    run = tmp_path / "run"
    with JudgeServer(answer) as server:
        path = config(tmp_path, server, train__max_steps=60, judge__cache="")
        seen: list[int] = []

        def disturb() -> None:
            for steps, act in ((15, server.stop), (40, server.start)):
                while len(lines(run) if (run / "metrics.jsonl").exists() else []) < steps:
                    time.sleep(0.02)
                seen.append(len(lines(run)))
                act()

        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        said = run_on_ranks(2, "supervised", path, run, 30)
        thread.join(5)
    assert len(seen) == 2 and seen[1] < 60
    assert len(digests(said)) == 1, "the ranks ended in different states"
    assert (run / "DONE").exists()
    steps = [line for line in lines(run) if not line.get("eval")]
    assert [line["step"] for line in steps] == list(range(1, 61))
    rows = 8
    for line in steps:
        assert line["rollout/unscored"] == 0 and not line["skipped_update"] and not line["lost_rows"]
        parts = [line[f"supervision/check/{name}"] for name in ("judge", "both", "degraded", "skipped")]
        assert sum(parts) == rows
    degraded = [line["supervision/check/degraded"] for line in steps]
    down = [line["step"] for line in steps if line["supervision/check/degraded"]]
    assert down and min(down) > 10 and max(down) < 60, degraded
    assert sum(line["supervision/check/judge"] for line in steps if line["step"] < min(down)) > 0
    assert sum(line["supervision/check/judge"] for line in steps if line["step"] > max(down)) > 0, "it did not recover"
    summary = json.loads((run / "summary.json").read_text())["supervision"]
    assert summary["check/degraded"] == sum(degraded) and summary["judge/failed"] > 0
    assert summary["refine/judge"] > 0


def test_a_judge_that_was_never_there(tmp_path):
    run = tmp_path / "run"
    server = JudgeServer()  # not started
    said = run_on_ranks(2, "supervised", config(tmp_path, server, train__max_steps=6), run)
    assert len(digests(said)) == 1
    steps = [line for line in lines(run) if not line.get("eval")]
    assert len(steps) == 6 and not any(line["supervision/check/judge"] for line in steps)
    assert sum(line["supervision/check/degraded"] for line in steps) > 0
    assert sum(line["supervision/refine/degraded"] for line in steps) > 0
    assert sum(line["time/judge"] for line in steps) < 8  # the breaker, not a deadline in every step


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_templates(tmp_path):
    """Bit for bit, candidates that wait for the next update of the pool included."""
    supervision = {"refiner": "rules", "templates": {"every": 3}}
    tree = {"run__export": True, "train__max_steps": 8, "run__save_every": 4, "supervision": supervision}
    data = {"train": {"source": "charts", "count": 12, "trace": "low", "kinds": ["value"], "charts": ["bar"]}}
    path = write_config(tmp_path, data=data, **tree)
    tree["optim__schedule"] = "constant"  # a cosine would know of train.max_steps
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    path = write_config(tmp_path, data=data, **tree)
    assert len(digests(run_on_ranks(2, "supervised", path, whole))) == 1
    run_on_ranks(2, "supervised", write_config(tmp_path, data=data, **(tree | {"train__max_steps": 4})), parted)
    run_on_ranks(2, "supervised", write_config(tmp_path, data=data, **tree), parted)
    same(lines(whole), lines(parted))
    same_weights(whole, parted)
    pools = [json.loads((run / "templates.json").read_text()) for run in (whole, parted)]
    assert pools[0] == pools[1] and pools[0]["version"] > 0
