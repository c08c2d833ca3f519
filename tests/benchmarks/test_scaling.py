"""The scaling model on cases computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.scaling.__main__ import main
from benchmarks.scaling.model import (
    ASSUMED,
    Network,
    Workload,
    compare,
    expected_longest,
    lognormal,
    one_way_trips,
    predict,
    ring,
    trips,
    two_levels,
    with_phases,
)

NETWORK = Network("by hand", 2, 1.0, 10.0, 3.0, 5.0)
WORK = Workload(
    parameter_bytes=80.0, layers=2, micro_batches=3, rollout_s=7.0, update_s=100.0, other_s=2.0, small=0, rows=1,
    lengths=(5.0,),
)  # fmt: skip


def test_ring():
    assert ring(40.0, 4, 1.0, 10.0) == 3 * 1.0 + 40 * 3 / 4 / 10
    assert ring(40.0, 1, 1.0, 10.0) == 0


def test_two_levels():
    # between 2 nodes: 40 / 2 bytes: 3 + 20 / 2 / 5 = 5; inside: 1 + 40 / 2 / 10 = 3
    assert two_levels(40.0, 4, NETWORK) == 8
    assert two_levels(40.0, 2, NETWORK) == 3
    assert two_levels(40.0, 1, NETWORK) == 0
    with pytest.raises(ValueError, match="multiple"):
        two_levels(40.0, 3, NETWORK)


@pytest.mark.parametrize(
    ("strategy", "gather", "refresh"),
    [("zero2", 16.0, 0.0), ("zero3", 3 * 2 * 16.0, 16.0), ("hpz", 3 * (16.0 + 6.0), 16.0)],
)
def test_step_on_two_nodes(strategy, gather, refresh):
    step = predict(strategy, 4, WORK, NETWORK)  # 80 bytes in two messages of 40: 16 over all, 6 inside a node
    assert (step.gather, step.reduce, step.refresh, step.small) == (gather, 48.0, refresh, 0.0)
    assert step.exposed == 7 + 102 + gather + 48 + refresh
    assert step.hidden(WORK.update_s) == 7 + 102 + max(0.0, gather + 48 - 100) + refresh


def test_one_gpu_does_not_communicate():
    for strategy in ("zero2", "zero3", "hpz"):
        assert predict(strategy, 1, replace(WORK, small=9), NETWORK).exposed == 109


def test_stragglers():
    assert expected_longest((1.0, 3.0), 1) == 2
    assert expected_longest((1.0, 3.0), 2) == 1 * 0.25 + 3 * 0.75
    step = predict("zero2", 2, replace(WORK, lengths=(1.0, 3.0)), NETWORK)
    assert step.rollout == pytest.approx(7 * 2.5 / 2)
    lengths = lognormal(100.0, 0.4, 256.0)
    assert sorted(lengths)[len(lengths) // 2] == pytest.approx(100) and max(lengths) <= 256


def test_trips_and_validation():
    calls = {"all_reduce": 2, "all_gather": 3, "reduce_scatter_tensor": 1}
    assert trips(calls, 4) == 2 * (2 * 6 + 3 * 3 + 6)
    points = [
        {"delay_ms": 0.0, "loss": 0.0, "step_ms": 100.0},
        {"delay_ms": 10.0, "loss": 0.0, "step_ms": 320.0},
        {"delay_ms": 10.0, "loss": 0.01, "step_ms": 900.0},
    ]
    (found,) = compare({"points": points, "collectives": {"all_gather": 6, "all_reduce": 1}, "ranks": 2})
    assert found["predicted_ms"] == 100 + 16 * 10 and found["error"] == pytest.approx(260 / 320 - 1)


def test_phase_times_of_a_run(tmp_path):
    lines = [{"step": n, "time/rollout": float(n), "time/update": 2.0, "time/plan": 0.5} for n in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    work = with_phases(ASSUMED, tmp_path / "metrics.jsonl")
    assert (work.rollout_s, work.update_s, work.other_s) == (3.0, 2.0, 0.5)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="time/update"):
        with_phases(ASSUMED, tmp_path / "metrics.jsonl")


def test_command_writes_figure_and_json(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert found["phases"] == "assumed" and "512" in capsys.readouterr().out
    assert main(["--metrics", str(tmp_path / "none.jsonl")]) == 2


@pytest.mark.parametrize(
    ("name", "ranks", "trips"),
    [
        ("all_gather", 4, 3),
        ("reduce_scatter_tensor", 8, 7),
        ("all_reduce", 4, 6),
        ("broadcast", 4, 2),
        ("barrier", 5, 3),
        ("all_reduce", 1, 0),
    ],
)
def test_one_way_trips(name, ranks, trips):
    assert one_way_trips(name, ranks) == trips
