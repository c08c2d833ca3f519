"""Bad steps: what a step trained in which a loss or gradient was not finite, for finding out why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dyme.engine.update import TrainBatch
from dyme.text.json_lines import plain

KEPT = 20  # files of a run: the first ones say most


def write_bad_step(
    folder: Path, step: int, ranks: Sequence[int], records: Sequence[str], work: TrainBatch
) -> Path | None:
    """bad_steps/step-N.json in the run folder: the ranks that saw the value, and every live row with the rank that
    trained it. `records`: the id of each group's record. None where the run has `KEPT` such files already."""
    path = folder / "bad_steps" / f"step-{step:08d}.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() and len(list(path.parent.glob("step-*.json"))) >= KEPT:
        return None
    trained_by = {
        row: rank
        for rank, micro_batches in enumerate(work.plan.micro_batches)
        for micro_batch in micro_batches
        for item in micro_batch
        for row in item.rows
    }
    ids = sorted({records[row.group] for row in work.rows})
    rows = [
        {
            "record": records[row.group],
            "mode": "memorize" if row.memorize else "explore",
            "row": row.row,
            "rank": trained_by.get(i),
            "advantage": row.advantage,
            "weight": float(work.weights[i]),
            "token_ids": list(work.tokens[i]),
        }
        for i, row in enumerate(work.rows)
    ]
    bad = {"step": step, "ranks": list(ranks), "records": ids, "rows": rows}
    path.write_text(json.dumps(plain(bad), indent=1), encoding="utf-8")
    return path
