"""What is measured of a cell: replies to the splits, and the curve of its run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.suite.task import Check
from dyme.config import RunConfig
from dyme.data import Record
from dyme.evaluation.driver import answer_batch, columns
from dyme.evaluation.files import COLUMNS
from dyme.families import Family
from dyme.metrics.keys import MODES
from dyme.prompts import PromptCache
from dyme.rollout.engine import RolloutEngine

CURVE = 40
METRICS = ("accuracy", "format_rate", "collapse/all_wrong", "rollout/length_mean", "policy/entropy")


def measure_split(
    cfg: RunConfig, family: Family, engine: RolloutEngine, records: Sequence[Record], check: Check | None
) -> dict[str, Any]:
    """Greedy replies to the records, a column for each way to ask: `score` in [0, 1] item by item (0 where the verifier
    failed), means of the rest, and readings: `agreed` and `read` are numbers of them in each item. `items` says which
    records these are."""
    books = [
        PromptCache(family, column.prompt, print, cfg.model.max_pixels, new_tokens=column.max_new_tokens)
        for column in columns(cfg)
    ]
    lines: list[dict[str, Any]] = []
    for at in range(0, len(records), cfg.rollout.batch_size):
        lines += answer_batch(cfg, family, engine, books, records[at : at + cfg.rollout.batch_size])[0]
    if bad := [line["id"] for line in lines if "error" in line]:
        raise ValueError(f"records {', '.join(bad[:3])} cannot be read")
    text = "\n".join(f"{r.id} {r.question} {r.answer}" for r in records)
    out: dict[str, Any] = {"items": hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}
    for name in COLUMNS:
        replies = [line[name][0] for line in lines if line[name]]
        if replies:
            out[name] = _column(replies, records, check, thinks=name == "think")
    return out


def _column(
    replies: Sequence[Mapping[str, Any]], records: Sequence[Record], check: Check | None, thinks: bool
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "score": [_short(reply["score"]) for reply in replies],
        "format": _mean([reply["format"] for reply in replies]),
        "tokens": _mean([reply["tokens"] for reply in replies]),
    }
    if not thinks:
        return out
    if check:
        read = [check(reply["thinking"], record) for reply, record in zip(replies, records, strict=True)]
    else:
        read = [(round((reply["faithfulness"] or 0.0) * reply["readings"]), reply["readings"]) for reply in replies]
    shown = [{"question": records[i].question, "reply": replies[i]["completion"]} for i in range(min(3, len(replies)))]
    return out | {
        "agreed": [agreed for agreed, _ in read],
        "read": [all_ for _, all_ in read],
        "thinking_tokens": _mean([reply["thinking_tokens"] for reply in replies]),
        "samples": shown,
    }


def curve(lines: Sequence[Mapping[str, Any]], points: int = CURVE) -> list[dict[str, Any]]:
    """The training lines of metrics.jsonl as at most `points` means of equal length; `step` is the last of each."""
    out = []
    count = min(points, len(lines))
    for k in range(count):
        some = lines[k * len(lines) // count : (k + 1) * len(lines) // count]
        point: dict[str, Any] = {"step": some[-1]["step"]}
        for key in (*(f"mode/{mode}_ratio" for mode in MODES), *METRICS):
            if (mean := mean_of(some, key)) is not None:
                point[key.removesuffix("_ratio").rpartition("/")[2]] = mean
        out.append(point)
    return out


def mean_of(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The mean over the steps that logged it."""
    return _mean([line[key] for line in lines if line.get(key) is not None])


def _mean(values: Sequence[float]) -> float | None:
    return _short(sum(map(float, values)) / len(values)) if values else None


def _short(value: float | None) -> float:
    """Four digits are enough, and whole numbers take one."""
    if value is None or math.isnan(value):
        return 0.0
    return int(value) if float(value).is_integer() else round(float(value), 4)
