"""Predictor: a loaded checkpoint that answers records."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from dyme.data import Record
from dyme.families import Family, load_family
from dyme.families.attention import resolve_attention, set_attention
from dyme.predict.answer import Answer, parse_reply
from dyme.predict.outfile import answer_row
from dyme.predict.questions import Question
from dyme.predict.settings import PredictError, Settings
from dyme.prompts import PromptCache, check_context
from dyme.rollout.engine import FixedWeights, RolloutEngine
from dyme.rollout.noise import row_key
from dyme.rollout.registry import open_engine
from dyme.rollout.types import RolloutRequest, Sampling

QUIET_SECONDS = 10.0  # seconds between progress lines without a terminal


@dataclass(frozen=True)
class Predictor:
    """A rollout engine that holds the model, with the settings of its prompts and sampling."""

    family: Family
    engine: RolloutEngine
    settings: Settings
    notes: tuple[str, ...] = ()
    """For the user."""

    @property
    def sees(self) -> bool:
        """Whether the model takes pictures."""
        return bool(self.family.modalities)

    def answer(self, records: Sequence[Record]) -> list[Answer | str]:
        """Answers of records with distinct ids, decoded as one batch; a string instead of an answer is its error.

        The sampling noise depends on seed and record id, so a row's answer does not depend on the other rows.
        """
        settings = self.settings
        tokens = settings.max_new_tokens
        cache = PromptCache(self.family, settings.prompt, lambda _: None, settings.max_pixels, new_tokens=tokens)
        requests = {
            i: RolloutRequest(prompt, row_key(settings.seed, 0, record.id, 0))
            for i, record in enumerate(records)
            if (prompt := cache.encode(record)) is not None
        }
        sampling = Sampling(tokens, settings.temperature, batch_size=max(1, len(requests)))
        replies = dict(zip(requests, self.engine.generate(list(requests.values()), sampling), strict=True))
        return [
            parse_reply(self.family.decode(replies[i].tokens), settings.prompt, truncated=replies[i].truncated)
            if i in replies
            else cache.failed[record.id]
            for i, record in enumerate(records)
        ]


def open_predictor(folder: Path, settings: Settings, device: str, dtype: str) -> Predictor:
    """Loads a checkpoint folder. Raises `PredictError` for the device, `ModelError` for the checkpoint, and
    `ConfigError` for a limit of tokens beyond its context."""
    # messages of libraries would mix with the answers
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where = _device(device)
    family, model = load_family(folder, settings.family, dtype)
    check_context(family, settings.prompt, settings.max_new_tokens, "--max_new_tokens")
    notes: tuple[str, ...] = ()
    if not family.resize_by(settings.image_backend):
        trained, here = settings.image_backend, family.image_backend
        mend = "install the torchvision of the training"
        notes = (
            f"{folder} was trained on pictures resized by {trained}, {here} here gives slightly other pixels: {mend}",
        )
    whole, _ = resolve_attention("auto", "auto", dtype, cuda=where.type == "cuda")
    set_attention(model, whole, whole)
    engine = open_engine("auto", family, FixedWeights(model.to(where).eval()))
    return Predictor(family, engine, settings, notes)


def answer_all(
    predictor: Predictor, questions: Sequence[Question], done: list[dict[str, Any]], out: Path, batch_size: int
) -> int:
    """Appends the answers of the questions after the `done` ones, batch by batch; returns how many rows failed in all.

    A bad row becomes a line with its `error`. Raises `PredictError` when a batch does not fit into the
    device's memory; the answers so far are kept.
    """
    failed = sum("error" in row for row in done)
    begin = last = time.monotonic()
    live = sys.stderr.isatty()
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
            count, now = at + len(part), time.monotonic()
            whole = count == len(questions)
            if live or whole or now - last > QUIET_SECONDS:
                last = now
                rate = (count - len(done)) / max(now - begin, 1e-9)
                line = f"{count}/{len(questions)} answered, {failed} failed, {rate:.1f} a second"
                end = "\n" if whole or not live else ""
                print(f"\r{line}" if live else line, end=end, file=sys.stderr, flush=True)
    return failed


def _device(name: str) -> Any:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PredictError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:0") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise PredictError(f"--device {name}: this machine shows {count} CUDA devices; use auto or cpu")
    return device
