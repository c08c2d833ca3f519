"""What the tests say about every family, collected for docs/models.md: `pytest --features docs/models.json`."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

RANK = {"failed": 2, "passed": 1, "skipped": 0}  # the worst outcome of a feature's tests counts


class Features:
    """Outcomes of tests marked `feature`, by family, checkpoint and feature."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[tuple[str, str, str], list[str]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: Any) -> None:
        told = dict(report.user_properties)
        if "feature" in told and (report.when == "call" or report.outcome != "passed"):
            self.outcomes[told["family"], told["checkpoint"], told["feature"]].append(report.outcome)

    def pytest_sessionfinish(self, session: Any) -> None:
        if hasattr(session.config, "workerinput") or not self.outcomes:
            return
        results: dict[str, Any] = {}
        for (family, checkpoint, feature), held in sorted(self.outcomes.items()):
            row = results.setdefault(family, {}).setdefault(checkpoint, {})
            row[feature] = {"outcome": max(held, key=RANK.__getitem__), "tests": len(held)}
        runs = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else []
        versions = installed()
        kept = [run for run in runs if run["versions"] != versions]
        run = {
            "date": datetime.date.today().isoformat(),
            "device": f"{os.cpu_count()} CPU cores" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
            "command": f"pytest {' '.join(session.config.invocation_params.args)}",
            "versions": versions,
            "results": results,
        }
        text = json.dumps(sorted([*kept, run], key=lambda r: r["versions"]["transformers"], reverse=True), indent=1)
        self.path.write_text(text + "\n", encoding="utf-8")


def installed() -> dict[str, str]:
    """Versions that decide whether a family works."""
    import importlib.metadata as metadata

    packages = ("torch", "transformers", "deepspeed", "peft", "torchvision")
    found = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {"python": platform.python_version(), **{p: found.get(p, "none") for p in packages}}


def tell(item: pytest.Item) -> None:
    """Notes feature, family and checkpoint of a test in its report."""
    mark = item.get_closest_marker("feature")
    params = getattr(getattr(item, "callspec", None), "params", {})
    name = params.get("opened", params.get("name"))
    if mark is not None and name is not None:
        from tests.helpers.checkpoints import makers

        told = {"feature": mark.args[0], "checkpoint": name, "family": makers()[name][0]}
        item.user_properties.extend(told.items())
