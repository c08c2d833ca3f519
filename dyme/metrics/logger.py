"""What a run writes down while it trains: metrics.jsonl, samples.jsonl with its pictures, TensorBoard and wandb."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dyme.metrics.keys import MODES
from dyme.text.json_lines import append_jsonl, plain, truncate_jsonl


@dataclass(frozen=True)
class Sample:
    """One generated answer to a held-out record; a line of samples.jsonl.

    `image` is the name of a PNG inside the run's samples/ folder (see `MetricsLogger.save_image`), None for text-only
    records. `format` is 1 where the answer flag was found as it must be. `guessed` says that the text did not say
    plainly what the answer is.
    """

    step: int
    id: str
    kind: str
    question: str
    gold: str
    completion: str
    thinking: str
    answer: str
    correct: bool
    format: int
    image: str | None = None
    guessed: bool = False


def summarize(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of summary.json that follow from the lines of metrics.jsonl; None where nothing was logged.

    Accuracies and rates are shares in [0, 1], `wall_s` seconds. `train_accuracy` and the mode shares of a tenth are
    means over that tenth of the steps (at least one step), `format_rate` is the last evaluation's, or that of the last
    tenth's rollouts where there was none, `collapse_rate` the mean over all steps of the share of groups without a
    right answer.
    """
    train = [line for line in lines if not line.get("eval")]
    evals = [line for line in lines if line.get("eval")]
    tenth = max(1, len(train) // 10)
    head, tail = train[:tenth], train[-tenth:]
    last_eval = evals[-1] if evals else {}
    format_rate = last_eval.get("eval/format_rate")
    return {
        "steps": max((line["step"] for line in train), default=0),
        "wall_s": max((line["time_s"] for line in lines if line.get("time_s") is not None), default=None),
        "train_accuracy": _mean(tail, "accuracy"),
        "eval_accuracy": last_eval.get("eval/accuracy"),
        "eval_accuracy_first": evals[0].get("eval/accuracy") if evals else None,
        "format_rate": format_rate if format_rate is not None else _mean(tail, "format_rate"),
        "mode_shares_first_tenth": {mode: _mean(head, f"mode/{mode}_ratio") for mode in MODES},
        "mode_shares_last_tenth": {mode: _mean(tail, f"mode/{mode}_ratio") for mode in MODES},
        "collapse_rate": _mean(train, "collapse/all_wrong"),
    }


def _mean(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines if line.get(key) is not None]
    return sum(values) / len(values) if values else None


class MetricsLogger:
    """Writes a run's measurements into its folder; one per run, on rank 0. Other ranks hold a `SilentLogger`.

    `run_dir` is created when missing; lines are appended to what is there, so a resumed run calls `truncate` first.
    `wandb` is the settings of `wandb.init` (project, name, config ...), None for no wandb.
    """

    def __init__(self, run_dir: Path, *, tensorboard: bool = True, wandb: Mapping[str, Any] | None = None) -> None:
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self._tensorboard = tensorboard
        self._purge_step: int | None = None
        self._writer: Any = None
        self._wandb = _start_wandb(run_dir, wandb) if wandb is not None else None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one training line; `step` counts optimizer steps from 1. Keys: docs/report.md."""
        self._write({"step": step, **values})

    def log_eval(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one evaluation line (`"eval": true`); `step` 0 is the model before training."""
        self._write({"step": step, "eval": True, **values})

    def log_modes(self, step: int, line: Mapping[str, Any]) -> None:
        """Append the modes of a step (`mode_line`) to modes.jsonl, to all digits."""
        with (self.run_dir / "modes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")

    def log_samples(self, samples: Iterable[Sample]) -> None:
        """Append generated answers to samples.jsonl; every evaluation should bring the same ids."""
        append_jsonl(self.run_dir / "samples.jsonl", [asdict(sample) for sample in samples])

    def save_image(self, record_id: str, load: Callable[[], Image.Image]) -> str:
        """The file name under which a record's picture lies in samples/; `load` is called the first time only."""
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", record_id)[:60].strip(".-")
        name = f"{stem}-{hashlib.sha256(record_id.encode()).hexdigest()[:8]}.png"
        target = self.run_dir / "samples" / name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            unfinished = target.with_suffix(".part")
            load().save(unfinished, format="PNG")
            unfinished.replace(target)
        return name

    def truncate(self, step: int) -> int:
        """Forget what was logged after `step`, the step of the checkpoint that a resumed run goes on from. Returns the
        number of torn lines, which go too.

        Call it before the first `log`: TensorBoard hides the later points from the moment its writer opens.
        """
        self._purge_step = step + 1
        names = ("metrics.jsonl", "samples.jsonl", "modes.jsonl")
        return sum(truncate_jsonl(self.run_dir / name, step) for name in names)

    def close(self) -> None:
        """Flush and close TensorBoard and wandb; the JSON files are complete after every call."""
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, line: Mapping[str, Any]) -> None:
        line = plain(line)
        append_jsonl(self.run_dir / "metrics.jsonl", [line])
        scalars = {
            key: value
            for key, value in line.items()
            if key not in ("step", "eval") and isinstance(value, int | float) and not isinstance(value, bool)
        }
        if self._tensorboard:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # seconds to import, so only where it is used

                folder = str(self.run_dir / "tensorboard")
                self._writer = SummaryWriter(folder, purge_step=self._purge_step)  # type: ignore[no-untyped-call]
            for key, value in scalars.items():
                self._writer.add_scalar(key, value, line["step"])
        if self._wandb is not None:
            # wandb drops lines whose step went back, so the step is a value and the axis of every other one.
            self._wandb.log({"step": line["step"], **scalars})


class SilentLogger:
    """The interface of `MetricsLogger` for the ranks that write nothing."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_eval(self, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_modes(self, step: int, line: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_samples(self, samples: Iterable[Sample]) -> None:
        """Nothing."""

    def save_image(self, record_id: str, load: Callable[[], Image.Image]) -> str:
        """An empty name; the picture is not loaded."""
        return ""

    def truncate(self, step: int) -> int:
        """Nothing."""
        return 0

    def close(self) -> None:
        """Nothing."""


def open_metrics(
    run_dir: Path, *, rank: int, tensorboard: bool = True, wandb: Mapping[str, Any] | None = None
) -> MetricsLogger | SilentLogger:
    """The logger of this rank: rank 0 writes into `run_dir`, the others are silent."""
    return MetricsLogger(run_dir, tensorboard=tensorboard, wandb=wandb) if rank == 0 else SilentLogger()


def _start_wandb(run_dir: Path, settings: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise RuntimeError("wandb is asked for but not installed: pip install 'dyme[wandb]', or turn it off") from None
    run = wandb.init(dir=str(run_dir), **settings)
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
