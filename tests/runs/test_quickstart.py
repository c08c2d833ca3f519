"""The quickstart keeps its promise: DyME learns to think in minutes, GRPO from the same base does not start at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.launching import launch

pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.timeout(1800)]


def run(folder: Path, config: str, *overrides: str) -> dict:
    launch("--config", f"configs/{config}.yaml", f"run.dir={folder}", "run.report=false", *overrides, timeout=900)
    return json.loads((folder / "summary.json").read_text())


def test_quickstart(tmp_path):
    base = run(tmp_path / "base", "quickstart_base")
    assert base["eval_accuracy"] > 0.8  # it reads charts ...
    path = f"model.path={tmp_path / 'base' / 'export'}"
    dyme = run(tmp_path / "dyme", "quickstart", path)
    assert dyme["eval_accuracy_first"] < 0.05  # ... but does not think
    assert dyme["eval_accuracy"] >= 0.75 and dyme["format_rate"] > 0.9
    assert base["wall_s"] + dyme["wall_s"] <= 600
    first, last = dyme["mode_shares_first_tenth"], dyme["mode_shares_last_tenth"]
    assert first["memorize"] > 0.8 and last["memorize"] < 0.2
    assert last["explore"] > first["explore"] and last["skip"] > 0.2
    grpo = run(tmp_path / "grpo", "quickstart", path, "method=grpo", f"run.max_minutes={dyme['wall_s'] / 60}")
    assert grpo["eval_accuracy"] < 0.05 and grpo["collapse_rate"] > 0.9
