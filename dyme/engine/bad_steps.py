"""Bad steps: what a step trained in which a loss or gradient was not finite, for finding out why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dyme.engine.update import TrainBatch
from dyme.text.json_lines import plain

KEPT = 20  # files of a run: the first ones say most


def write_bad_step(
    folder: Path, step: int, ranks: Sequence[int], records: Sequence[str], train_batch: TrainBatch
) -> Path | None:
    """bad_steps/step-N.json in the run folder: the ranks that saw the value, and every sequence with the rank that
    trained it. `records`: the id of each group's record. None where the run has `KEPT` such files already."""
    path = folder / "bad_steps" / f"step-{step:08d}.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() and len(list(path.parent.glob("step-*.json"))) >= KEPT:
        return None
    trained_by = {
        sequence: rank
        for rank, micro_batches in enumerate(train_batch.plan.micro_batches)
        for micro_batch in micro_batches
        for item in micro_batch
        for sequence in item.sequences
    }
    ids = sorted({records[each.group] for each in train_batch.sequences})
    rows = [
        {
            "record": records[each.group],
            "mode": "memorize" if each.memorize else "explore",
            "row": each.completion,
            "rank": trained_by.get(i),
            "advantage": each.advantage,
            "weight": float(train_batch.weights[i]),
            "token_ids": list(train_batch.tokens[i]),
        }
        for i, each in enumerate(train_batch.sequences)
    ]
    bad = {"step": step, "ranks": list(ranks), "records": ids, "rows": rows}
    path.write_text(json.dumps(plain(bad), indent=1), encoding="utf-8")
    return path
