"""Reading run folders: their contents, and notes on what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dyme.metrics.keys import MODES
from dyme.metrics.logger import summarize
from dyme.text.json_lines import read_jsonl


class ReportError(Exception):
    """A folder of which no report can be made; the message names it and the mend."""


@dataclass(frozen=True)
class Series:
    """One logged quantity over a run: `steps` [n] int, `times` [n] seconds since the start, `values` [n] float.

    Lines without the quantity, or with null, are left out; a time that was never logged is NaN.
    """

    steps: np.ndarray
    times: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Run:
    """Contents of a run folder. `train` and `evals` are the two kinds of lines of metrics.jsonl, in order of step.

    `summary` is summary.json, or computed from metrics.jsonl while a run goes on. `notes` say what is missing.
    """

    path: Path
    name: str
    method: str
    finished: bool
    train: tuple[dict[str, Any], ...]
    evals: tuple[dict[str, Any], ...]
    samples: tuple[dict[str, Any], ...]
    summary: dict[str, Any]
    notes: tuple[str, ...]

    def series(self, key: str, scale: float = 1.0, *, evals: bool = False) -> Series:
        """The lines of training, or of evaluations, that have a number under `key`, multiplied by `scale`."""
        kept = [line for line in (self.evals if evals else self.train) if isinstance(line.get(key), int | float)]
        times = [line["time_s"] if line.get("time_s") is not None else np.nan for line in kept]
        return Series(
            np.array([line["step"] for line in kept], dtype=np.int64),
            np.array(times, dtype=np.float64),
            np.array([line[key] * scale for line in kept], dtype=np.float64),
        )

    def has(self, prefix: str) -> bool:
        """Whether a training line holds a number under a key that begins with `prefix`."""
        return any(key.startswith(prefix) and value is not None for line in self.train for key, value in line.items())


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of these folders under distinct short names. Raises `ReportError` on a folder that is not a run."""
    resolved = [path.resolve() for path in paths]
    repeated = sorted({path.name for path in resolved if resolved.count(path) > 1})
    if repeated:
        raise ReportError(f"run {repeated[0]} is given twice: name each run folder once")
    return [_load_run(path, name) for path, name in zip(paths, distinct_names(resolved))]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path; equal names get as many parents as needed to differ."""
    depths = [1] * len(paths)
    while True:
        names = ["/".join(path.parts[-depth:]) for path, depth in zip(paths, depths)]
        alike = [names.count(name) > 1 for name in names]
        if not any(alike):
            return names
        depths = [depth + again for depth, again in zip(depths, alike)]


def _load_run(path: Path, name: str) -> Run:
    metrics = path / "metrics.jsonl"
    if not path.is_dir():
        raise ReportError(f"{path} is no folder: give a run folder, the run.dir of its config")
    if not metrics.exists():
        raise ReportError(f"{path} is no run folder, it has no metrics.jsonl: give the run.dir of a run that has begun")
    try:
        lines, samples = read_jsonl(metrics), read_jsonl(path / "samples.jsonl")
    except ValueError as error:
        raise ReportError(str(error)) from None
    for line in (*lines, *samples):
        if not isinstance(line.get("step"), int):
            raise ReportError(f"{path} has a line without an integer step: it was not written by dyme.metrics.logger")
    lines = _with_times(sorted(lines, key=lambda line: (line["step"], bool(line.get("eval")))))
    config = _read_config(path / "config.yaml")
    written = _read_summary(path / "summary.json")
    summary = {**summarize(lines), **{key: value for key, value in (written or {}).items() if value is not None}}
    run = Run(
        path=path,
        name=name,
        method=str(summary.get("method") or config.get("method") or "unknown"),
        # The trainer writes a report after summary.json and before DONE.
        finished=written is not None or (path / "DONE").exists(),
        train=tuple(line for line in lines if not line.get("eval")),
        evals=tuple(line for line in lines if line.get("eval")),
        samples=tuple(sorted(samples, key=lambda line: line["step"])),
        summary=summary,
        notes=(),
    )
    return replace(run, notes=_notes(run, written is not None))


def _notes(run: Run, has_summary: bool) -> tuple[str, ...]:
    notes = []
    if not run.train:
        notes.append("no training step has been logged yet")
    if not run.finished:
        notes.append("the run has not finished; the figures are those so far")
    elif not has_summary:
        notes.append("summary.json is missing; its figures were computed from metrics.jsonl")
    if isinstance(failed := run.summary.get("reward_errors"), dict) and failed:
        told = ", ".join(f"{kind} ({count} rows)" for kind, count in failed.items())
        notes.append(f"verifiers or rewards failed: {told}")
    if isinstance(counts := run.summary.get("supervision"), dict):
        notes += _supervised(counts)
    if run.train and not run.has("rollout/"):
        notes.append(f"method {run.method} makes no rollouts, so it has no rewards, collapse rates or lengths")
    if run.train and not any(run.has(f"mode/{mode}_ratio") for mode in MODES):
        notes.append("no mode shares were logged")
    if not run.evals:
        notes.append("no evaluation has been made yet (run.eval_every)")
    if not run.samples:
        notes.append("no sample answers were written")
    return tuple(notes)


def _supervised(counts: Mapping[str, float]) -> list[str]:
    """Notes on the calls of a judge and on degraded supervision."""
    sent, cached, failed = (int(counts.get(f"judge/{name}", 0)) for name in ("sent", "cached", "failed"))
    groups, rows, traces = (int(counts.get(f"{stage}/degraded", 0)) for stage in ("facts", "check", "refine"))
    notes = []
    if sent or cached:
        tokens = f"{counts.get('judge/tokens_in', 0):.0f} tokens in, {counts.get('judge/tokens_out', 0):.0f} out"
        money = f", money {paid:.4g}" if (paid := counts.get("judge/money", 0.0)) else ""
        notes.append(
            f"judge: {sent} questions sent, {cached} answered from the cache, {failed} without an answer; "
            f"{tokens}{money}"
        )
    if groups or rows or traces:
        notes.append(
            f"degraded, for want of an answer that could be used: {groups} groups went by the facts of rules, "
            f"{rows} rows were checked by words alone, {traces} demonstrations were not refined"
        )
    return notes


def _with_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Evaluation lines without a time get that of the last training line, 0 before the first."""
    clock: float | None = 0.0
    timed = []
    for line in lines:
        if line.get("time_s") is None and line.get("eval"):
            line = {**line, "time_s": clock}
        clock = line.get("time_s")
        timed.append(line)
    return timed


def _read_summary(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    except (TypeError, ValueError):
        raise ReportError(f"{path} is not a JSON object: delete it, the report then goes by metrics.jsonl") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except yaml.YAMLError:
        raise ReportError(f"{path} is not YAML: restore it or delete it") from None
    return loaded if isinstance(loaded, dict) else {}
