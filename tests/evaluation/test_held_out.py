"""What needs no model: the rates of an answerer that never looks, and the collected results."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dyme.data import Record
from dyme.evaluation.held_out import majority_rates
from tests.helpers.launching import ROOT


def test_majority_rates():
    rows = [
        ("yes", "q"),
        ("yes", "q"),
        ("no", "q"),
        ("red", "c"),
        ("red", "c"),
        ("blue", "c"),
        ("red", "c"),
        ("no", "q"),
    ]
    records = [Record(str(i), "?", (answer,), kind=kind) for i, (answer, kind) in enumerate(rows)]
    assert majority_rates(records) == {
        "eval_majority_rate": pytest.approx(3 / 8),
        "eval_majority_rate_by_kind": pytest.approx(5 / 8),
    }


def test_record_collects_finished_runs_only(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps({"method": "dyme", "eval_accuracy": 0.5}))
    (run / "config.yaml").write_text("method: dyme\n")
    out = tmp_path / "results" / "all.json"
    command = [sys.executable, "-m", "benchmarks.record", str(run), "--out", str(out)]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2 and "has no DONE marker" in failed.stderr and not out.exists()
    (run / "DONE").touch()
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    expected = {"summary": {"method": "dyme", "eval_accuracy": 0.5}, "config": {"method": "dyme"}}
    assert json.loads(out.read_text()) == {"run": expected}
