"""Summary: what a run leaves to be read: summary.json, profile and report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dyme.checkpoint import store
from dyme.config import RunConfig
from dyme.data import RecordSet
from dyme.evaluation.held_out import majority_rates
from dyme.metrics.logger import summarize
from dyme.metrics.profile import Profile
from dyme.provenance.origin import command
from dyme.text.json_lines import read_jsonl


def write_summary(
    folder: Path,
    cfg: RunConfig,
    records: RecordSet,
    eval_records: RecordSet | None,
    unreadable: Mapping[str, str],
    *,
    parameters: int,
    ranks: int,
    reward_errors: Mapping[str, int],
    supervision: Mapping[str, int],
) -> None:
    """summary.json: the command, figures, failures and versions of a run. unreadable: ids of the records whose prompt
    could not be encoded, and why; the last two: counts of the whole run."""
    summary: dict[str, Any] = {
        "command": command(ranks),
        "method": cfg.method,
        **summarize(read_jsonl(folder / "metrics.jsonl")),
        **(majority_rates(eval_records[: cfg.run.eval_records]) if eval_records else {}),
        "parameters": parameters,
        "ranks": ranks,
        "records": len(records),
        "bad_records": {**{b.record_id or f"{b.file}:{b.line}": b.reason for b in records.bad}, **unreadable},
        "reward_errors": dict(reward_errors),
        **({"supervision": dict(supervision)} if cfg.supervision.on else {}),
        "versions": store.versions(),
        "config": folder.name,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def draw_profile(profile: Profile) -> None:
    """profile.json and profile.png of the steps so far; nothing before the first one ended."""
    if not profile.spans:
        return
    from dyme.report.timeline import save_timeline  # matplotlib, only where it is used

    profile.write()
    try:
        save_timeline(profile.newest(), profile.folder / "profile.png")
    except Exception as error:  # a picture must not cost a run
        print(f"profile.png not written: {error}", file=sys.stderr)


def report_on(folder: Path) -> None:
    """report.png and report.html of a run folder."""
    from dyme.report import write_report  # matplotlib, only where it is used

    try:
        write_report([folder], folder)
    except Exception as error:  # a picture must not cost a finished run
        print(f"report not written: {error}; try python -m dyme.report {folder}", file=sys.stderr)
