"""What a person sees while a run trains: one live line on rank 0 of a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 30.0  # between plain lines where there is no terminal


class ProgressLine:
    """Step, mode shares, reward, accuracy, tokens/s and time left."""

    def __init__(self, name: str, total: int, start: int, rank: int) -> None:
        self._rank, self._name, self._total = rank, name, total
        self._console = Console(stderr=True)
        self._last = 0.0
        self._bar: Progress | None = None
        if rank == 0 and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(name, total=total, completed=start, state="")

    def __enter__(self) -> ProgressLine:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Shows a finished step."""
        state = _state(metrics)
        if self._bar:
            self._bar.update(self._task, completed=step, state=state)
        elif self._rank == 0 and (time.monotonic() - self._last > QUIET_SECONDS or step == self._total):
            self._last = time.monotonic()
            print(f"[{self._name}] step {step}/{self._total}  {state}", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """A line above the bar (rank 0)."""
        if self._rank == 0:
            (self._bar.console if self._bar else self._console).print(
                f"[{self._name}] {message}", markup=False, highlight=False, soft_wrap=True
            )


def _state(metrics: dict[str, float]) -> str:
    shares = "/".join(f"{100 * metrics[f'mode/{mode}_ratio']:.0f}" for mode in ("explore", "memorize", "skip"))
    parts = [f"explore/memorize/skip {shares} %"]
    if "accuracy" in metrics:
        parts += [f"reward {metrics['reward/total_mean']:.2f}", f"accuracy {metrics['accuracy']:.2f}"]
    else:
        parts.append(f"loss {metrics.get('loss', float('nan')):.3f}")
    if degraded := sum(metrics.get(f"supervision/{stage}/degraded", 0) for stage in ("facts", "check", "refine")):
        parts.append(f"degraded {degraded:.0f}")
    return "  ".join([*parts, f"{metrics['tokens_per_s']:.0f} tok/s"])
