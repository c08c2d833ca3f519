"""Summary: what a finished run leaves to be read, summary.json and the report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyme.checkpoint import store
from dyme.evaluation.held_out import majority_rates
from dyme.metrics.logger import summarize
from dyme.text.json_lines import read_jsonl

if TYPE_CHECKING:
    from dyme.run import Run


def write_summary(run: Run) -> None:
    """summary.json: the command, figures, failures and versions of a run."""
    arguments = [a for a in sys.argv if not a.startswith("--local_rank")]
    summary: dict[str, Any] = {
        "command": " ".join(["deepspeed", f"--num_gpus {run.engine.world_size}", *arguments]),
        "method": run.cfg.method,
        **summarize(read_jsonl(run.folder / "metrics.jsonl")),
        **(majority_rates(run.eval_records[: run.cfg.run.eval_records]) if run.eval_records else {}),
        "parameters": run.parameters,
        "ranks": run.engine.world_size,
        "records": len(run.records),
        "bad_records": {
            **{b.record_id or f"{b.file}:{b.line}": b.reason for b in run.records.bad},
            **run.prompt_cache.failed,
        },
        "reward_errors": dict(run.failures.counts),
        **({"supervision": dict(run.supervisor.totals)} if run.cfg.supervision.on else {}),
        "versions": store.versions(),
        "config": run.name,
    }
    (run.folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def report_on(folder: Path) -> None:
    """report.png and report.html of a run folder."""
    from dyme.report import write_report  # matplotlib, only where it is used

    try:
        write_report([folder], folder)
    except Exception as error:  # a picture must not cost a finished run
        print(f"report not written: {error}; try python -m dyme.report {folder}", file=sys.stderr)
