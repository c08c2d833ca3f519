"""The profile of a run: spans on their tracks, the trace, the picture, and what it costs where it is off."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.patches import Patch
from PIL import Image

from dyme.clock import StepClock
from dyme.metrics.profile import PARTS, SHOWN, TRACKS, Profile, Span
from dyme.report.figure import TIME_PARTS
from dyme.report.timeline import draw
from dyme.run_summary import draw_profile
from tests.helpers.launching import launch
from tests.helpers.runs import write_config


class TrainEngine:
    """Something with the methods that are watched."""

    def __init__(self) -> None:
        self.ds = SimpleNamespace(forward=lambda x, *, y: x + y, backward=lambda loss: None)

    def step(self, factor: float) -> float:
        return factor


def check_trace(trace: dict) -> list[dict]:
    """Events of whole steps: on each track none overlaps the next, and all lie within their step. Returns them."""
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    steps = {e["args"]["step"]: e for e in events if e["cat"] == "step"}
    for track in TRACKS:
        own = sorted((e for e in events if e["cat"] == track), key=lambda e: e["ts"])
        assert {e["tid"] for e in own} <= {TRACKS.index(track)}
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(own)), f"spans of {track} overlap"
    inside = defaultdict[tuple[int, str], float](float)
    for e in events:
        step = steps[e["args"]["step"]]
        assert step["ts"] <= e["ts"] and e["ts"] + e["dur"] <= step["ts"] + step["dur"]
        inside[e["args"]["step"], e["cat"]] += e["dur"]
    assert all(seconds <= steps[step]["dur"] for (step, _), seconds in inside.items())
    return events


def test_spans_of_a_step(tmp_path):
    waited = []
    profile, engine = Profile(tmp_path, lambda: waited.append(1)), TrainEngine()
    profile.watch(engine, lambda: 7)
    draw_profile(profile)
    assert not list(tmp_path.iterdir())
    with profile.span("step", "step", 7):
        with profile.span("rollout", "phase", 7):
            time.sleep(0.002)
        with profile.span("update", "phase", 7):
            for _ in range(2):
                assert engine.ds.forward(1, y=2) == 3
                engine.ds.backward(None)
            assert engine.step(0.5) == 0.5
    assert len(waited) == 2 * 8  # the device, at both ends of every span
    parts = profile.end_step()
    assert list(parts) == list(PARTS) and all(seconds > 0 for seconds in parts.values())
    draw_profile(profile)
    events = check_trace(json.loads((tmp_path / "profile.json").read_text()))
    assert [e["name"] for e in events] == [
        "rollout", "forward", "backward", "forward", "backward", "optimizer", "update", "step",
    ]  # fmt: skip
    assert {e["args"]["step"] for e in events} == {7} and events[0]["dur"] >= 2000
    assert Image.open(tmp_path / "profile.png").width > 1000


def test_a_step_without_an_update_has_no_parts(tmp_path):
    profile = Profile(tmp_path, lambda: None)
    with profile.span("step", "step", 0):
        pass
    assert profile.end_step() == {} and [s.name for s in profile.spans] == ["step"]


def test_the_picture_has_a_line_for_each_step_and_shares():
    spans = []
    for step in range(SHOWN):
        at = 100.0 + 10 * step
        spans += [Span("phase", "rollout", step, at, 6.0), Span("update", "forward", step, at + 6, 1.0)]
        spans += [Span("phase", "update", step, at + 6, 4.0), Span("step", "step", step, at, 10.0)]
    figure = draw(spans)
    [ax] = figure.axes
    assert len(ax.get_yticks()) == SHOWN and ax.get_yticklabels()[0].get_text() == "1"
    labels = [patch.get_label() for patch in figure.legends[0].get_patches() if isinstance(patch, Patch)]
    assert labels == ["rollout 60 %", "update 40 %", "forward 10 %"]


def test_without_a_profile_the_clock_is_all_there_is():
    watchdog = SimpleNamespace(beat=lambda phase: None)
    clock = StepClock(watchdog, None)  # type: ignore[arg-type]
    for _ in range(2):
        with clock.phase("rollout"):
            time.sleep(0.001)
    assert list(clock._seconds) == ["rollout"] and 0.002 <= clock._seconds["rollout"] < 1


@pytest.mark.dist
def test_a_profiled_run(tmp_path: Path):
    config = write_config(tmp_path, run__profile=True, train__token_budget=60)
    launch("--config", config, f"run.dir={tmp_path / 'run'}", ranks=1)
    events = check_trace(json.loads((tmp_path / "run" / "profile.json").read_text()))
    names = defaultdict[tuple[int, str], list[str]](list)
    for e in events:
        names[e["args"]["step"], e["cat"]].append(e["name"])
    for step in range(3):
        assert names[step, "phase"] == list(TIME_PARTS)
        *micro, last = names[step, "update"]
        assert micro == ["forward", "backward"] * (len(micro) // 2) and len(micro) > 2 and last == "optimizer"
    assert (tmp_path / "run" / "profile.png").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in lines if not line.get("eval")):
        assert sum(line[f"time_share/{phase}"] for phase in TIME_PARTS) == pytest.approx(1.0, abs=1e-4)
        assert sum(line[f"time/{part}"] for part in PARTS) <= line["time/update"]
        took = next(e["dur"] for e in events if e["cat"] == "step" and e["args"]["step"] == line["step"] - 1)
        assert sum(line[f"time/{phase}"] for phase in TIME_PARTS) <= took / 1e6 + 1e-4
