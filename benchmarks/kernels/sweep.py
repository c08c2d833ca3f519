"""Measures cases one after another and writes the file of results after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import ours, peers
from benchmarks.kernels.accuracy import over_torch, relative_errors
from benchmarks.kernels.case import Case, Inputs, live_mask, make_inputs
from benchmarks.kernels.provider import Calls, Provider
from benchmarks.kernels.results import load, reason, save
from benchmarks.kernels.roofline import Ceilings, floor_ms, work
from benchmarks.kernels.timing import Clock, Effort, Spread, interleave

PROVIDERS: tuple[Provider, ...] = (*ours.PROVIDERS, *peers.PROVIDERS)
YARDSTICK = "torch eager"
ULP = 6e-8  # of float32, in which losses and log-probabilities are returned


class DeviceLost(RuntimeError):
    """A provider broke the GPU's context: nothing more can run in this process."""

    def __init__(self, provider: str, why: str) -> None:
        super().__init__(f"{provider}: {why}")
        self.provider, self.why = provider, why


@dataclass(frozen=True)
class Row:
    """One line of the results. mode: "forward" or "forward_backward"; cache: "hot" or "cold". A row with a reason has
    no times, and mode and cache are None: what is missing has its line too.

    bytes, flops: the least work (roofline.Work); floor_ms: its time at the measured ceilings; *_percent: share of the
    floor, and of each ceiling, that the median reaches. errors: relative norm errors against the oracle;
    errors_over_torch: divided by those of plain PyTorch.
    """

    case: dict[str, Any]
    name: str
    live_tokens: int
    provider: str
    dead: str
    reason: str | None = None
    mode: str | None = None
    cache: str | None = None
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    runs: int = 0
    bytes: int | None = None
    flops: int | None = None
    floor_ms: float | None = None
    floor_percent: float | None = None
    copy_percent: float | None = None
    matmul_percent: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    errors_over_torch: dict[str, float] = field(default_factory=dict)


def of_task(task: str, providers: Sequence[Provider]) -> list[Provider]:
    return [p for p in providers if task in p.tasks]


def _row(case: Case, provider: str, dead: str) -> Row:
    return Row(case.as_dict(), case.name, int(live_mask(case).sum()), provider, dead)


def timed_row(base: Row, case: Case, mode: str, cache: str, found: Spread, ceilings: Ceilings) -> Row:
    needed = work(case, mode)
    seconds = found.median_ms / 1e3
    comparable = needed.flops == 0 or case.dtype == ceilings.dtype
    floor = floor_ms(needed, ceilings) if comparable else None
    return replace(
        base,
        mode=mode,
        cache=cache,
        **asdict(found),
        bytes=needed.bytes,
        flops=needed.flops,
        floor_ms=floor,
        floor_percent=None if floor is None else 100 * floor / found.median_ms,
        copy_percent=100 * needed.bytes / seconds / ceilings.copy,
        matmul_percent=100 * needed.flops / seconds / ceilings.matmul if comparable else None,
    )


def measure_case(
    case: Case,
    device: torch.device,
    ceilings: Ceilings,
    effort: Effort,
    providers: Sequence[Provider] = PROVIDERS,
    avoid: dict[str, str] | None = None,
    starting: Callable[[str | None], None] = lambda name: None,
) -> list[Row]:
    """Rows of every provider of the case's task. `avoid`: provider -> why it is not to be tried. `starting` is told the
    provider that runs for the first time, and None when all have.

    Raises DeviceLost where a provider breaks the GPU's context.
    """
    torch.compiler.reset()  # otherwise the eighth shape falls back to eager
    inputs = make_inputs(case, device)
    clock = Clock(device)
    rows: dict[str, Row] = {}
    calls: dict[str, Calls] = {}
    for provider in of_task(case.task, providers):
        row = _row(case, provider.name, provider.dead)
        obstacle = (avoid or {}).get(provider.name) or provider.obstacle(device)
        if obstacle is not None:
            rows[provider.name] = replace(row, reason=obstacle)
            continue
        starting(provider.name)
        try:
            calls[provider.name], errors = _first_calls(provider, inputs, effort)
        except Exception as error:  # a provider's, whatever it is
            _raise_if_lost(error, provider.name)
            rows[provider.name] = replace(row, reason=reason(error))
            if device.type == "cuda":
                torch.cuda.empty_cache()  # what ran out of memory leaves pieces
            continue
        rows[provider.name] = replace(row, errors=errors)
    if YARDSTICK in rows:
        eager = rows[YARDSTICK].errors
        rows = {name: replace(r, errors_over_torch=over_torch(r.errors, eager, ULP)) for name, r in rows.items()}
    starting(None)

    def failed(key: tuple[str, str], error: Exception) -> None:
        _raise_if_lost(error, key[0])
        rows[key[0]] = replace(rows[key[0]], reason=reason(error))

    work_list = {(name, mode): (f, c.reset) for name, c in calls.items() for mode, f in c.modes().items()}
    times = interleave(clock, work_list, effort, failed)
    out = [row for row in rows.values() if row.reason is not None]
    for ((name, mode), cache), found in times.items():
        if rows[name].reason is None:
            out.append(timed_row(rows[name], case, mode, cache, found, ceilings))
    return out


def _first_calls(provider: Provider, inputs: Inputs, effort: Effort) -> tuple[Calls, dict[str, float]]:
    """Warm-up, and the errors of one call."""
    calls = provider.make(inputs)
    errors: dict[str, float] = {}
    for mode, call in calls.modes().items():
        for _ in range(effort.warmup):
            calls.reset()
            outcome = call()
        if mode == "forward_backward":
            errors = relative_errors(inputs, outcome)
        del outcome
    return calls, errors


def _raise_if_lost(error: Exception, provider: str) -> None:
    text = str(error)
    if "CUDA error" in text and "out of memory" not in text:
        raise DeviceLost(provider, reason(error)) from error


def sweep(
    path: Path, cases: Iterable[Case], device: torch.device, ceilings: Ceilings, effort: Effort, deadline: float,
    providers: Sequence[Provider] = PROVIDERS,
) -> bool:  # fmt: skip
    """Measure the cases that `path` does not hold yet and write it after each. True when none is left at `deadline`
    (of time.monotonic). A provider that broke the GPU's context, or during whose first call an earlier process died, is
    not tried again at that case."""
    data = load(path)
    data.setdefault("rows", [])
    avoid: dict[str, dict[str, str]] = data.setdefault("avoid", {})
    if data.get("at"):
        name, provider = data["at"]
        avoid.setdefault(name, {})[provider] = "did not come back from its first call here in an earlier run"
    done: list[str] = data.setdefault("cases_done", [])
    for case in cases:
        if case.name in done:
            continue
        if time.monotonic() > deadline:
            return False

        def starting(provider: str | None, name: str = case.name) -> None:
            data["at"] = [name, provider] if provider else None
            save(path, data)

        try:
            rows = measure_case(case, device, ceilings, effort, providers, avoid.get(case.name), starting)
        except DeviceLost as error:
            avoid.setdefault(case.name, {})[error.provider] = error.why
            starting(None)
            raise
        except torch.OutOfMemoryError as error:  # the inputs themselves
            rows = [replace(_row(case, "inputs", ""), reason=reason(error))]
        data["rows"] += [asdict(row) for row in rows]
        done.append(case.name)
        starting(None)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
