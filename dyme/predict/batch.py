"""A batch of questions into an answers file, with a line of progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dyme.predict.answer import Answer
from dyme.predict.errors import PredictError
from dyme.predict.outfile import answer_row
from dyme.predict.predictor import Predictor
from dyme.predict.questions import Question

QUIET_SECONDS = 10.0  # seconds between progress lines without a terminal


def answer_all(
    predictor: Predictor, questions: Sequence[Question], done: list[dict[str, Any]], out: Path, batch_size: int
) -> int:
    """Appends the answers of the questions after the `done` ones, batch by batch; returns how many rows failed in all.

    A bad row becomes a line with its `error`. Raises `PredictError` when a batch does not fit into the
    device's memory; the answers so far are kept.
    """
    failed = sum("error" in row for row in done)
    progress = _Progress(len(done), len(questions))
    with out.open("a", encoding="utf-8") as file:
        for at in range(len(done), len(questions), batch_size):
            part = questions[at : at + batch_size]
            asked = [q.record for q in part if q.record is not None]
            try:
                given = iter(predictor.answer(asked))
            except torch.OutOfMemoryError:
                mend = f"lower --batch_size ({batch_size}), the same command goes on from here"
                raise PredictError(f"out of device memory after {at} of {len(questions)} rows; {mend}") from None
            answers: list[Answer | str] = [q.error if q.record is None else next(given) for q in part]
            rows = [answer_row(q, answer) for q, answer in zip(part, answers, strict=True)]
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            failed += sum("error" in row for row in rows)
            progress.show(at + len(part), failed)
    return failed


class _Progress:
    def __init__(self, start: int, total: int) -> None:
        self._start, self._total = start, total
        self._begin = time.monotonic()
        self._last = self._begin
        self._live = sys.stderr.isatty()

    def show(self, count: int, failed: int) -> None:
        now = time.monotonic()
        whole = count == self._total
        if not (self._live or whole or now - self._last > QUIET_SECONDS):
            return
        self._last = now
        rate = (count - self._start) / max(now - self._begin, 1e-9)
        line = f"{count}/{self._total} answered, {failed} failed, {rate:.1f} a second"
        end = "\n" if whole or not self._live else ""
        print(f"\r{line}" if self._live else line, end=end, file=sys.stderr, flush=True)
