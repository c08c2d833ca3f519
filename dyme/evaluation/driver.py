"""Evaluates a finished model: every rank answers its share of the held-out records, rank 0 writes the summary.

No rank waits for another while it generates. Finished items are in the folder, so a new start continues there.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from dyme.checkpoint.store import versions
from dyme.config import RunConfig
from dyme.data import Record, load_records
from dyme.engine.train_engine import gather_tokens
from dyme.evaluation import folder as files
from dyme.evaluation.folder import DoneItem, EvaluationError
from dyme.evaluation.held_out import majority_rates
from dyme.evaluation.items import Reply, bad_line, item_line, judge
from dyme.evaluation.summary import summarize
from dyme.families import Family, ModelError, load_family
from dyme.families.attention import resolve_attention, set_attention
from dyme.families.files import refuse_adapter
from dyme.metrics import cut_replies
from dyme.prompts import PromptCache, check_context
from dyme.rewards.compose import Style
from dyme.rewards.round_trip import round_trip
from dyme.rollout.engine import FixedWeights, RolloutEngine
from dyme.rollout.noise import row_key
from dyme.rollout.registry import open_engine
from dyme.rollout.types import RolloutRequest, Sampling, sampling_of
from dyme.settings.errors import ConfigError
from dyme.settings.prompt import PromptConfig

SAY_EVERY = 10.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Column:
    """One column of the evaluation: a prompt, how its replies are read, and their limit in tokens with its key."""

    name: Style
    prompt: PromptConfig
    max_new_tokens: int
    key: str = "rollout.max_new_tokens"


def columns(cfg: RunConfig) -> tuple[Column, ...]:
    """The column of the run's prompt, and the direct one where it is configured. A run in style "direct" has only the
    latter."""
    own = Column(cfg.prompt.style, cfg.prompt, cfg.rollout.max_new_tokens)
    if cfg.prompt.style == "direct" or not cfg.evaluate.direct:
        return (own,)
    key = "evaluate.direct_max_new_tokens"
    template = {"template": cfg.evaluate.direct_template, "style": "direct"}
    return own, Column("direct", cfg.prompt.model_copy(update=template), cfg.evaluate.direct_max_new_tokens, key)


def evaluate_model(cfg: RunConfig, path: Path, out: Path, command: str) -> dict[str, Any] | None:
    """Evaluates the model in `path` into the folder `out`. Returns the summary on rank 0, None on the others.

    Collective. Raises `ConfigError`, `DataError`, `ModelError` and `EvaluationError`, each with one line.
    """
    started = time.monotonic()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if cfg.data.eval is None:
        raise ConfigError("data.eval is not set: name the records to evaluate on")
    if not (path / "config.json").is_file():
        refuse_adapter(path)
        raise ModelError(f"{path / 'config.json'} does not exist: give --model a Hugging Face checkpoint folder")
    usable = round_trip(cfg.reward, cfg.prompt)
    records = load_records(cfg.data.eval, cfg.data.max_bad_fraction, usable)[: cfg.evaluate.records]
    settings = files.settings_text(cfg, path, records) if rank == 0 else ""
    _check_folder(out, settings)
    before = files.read_summary(out) if rank == 0 else None
    if _from_rank_0([[int(before is not None)]])[0][0]:
        if before:
            _say(f"{out} is finished: nothing to do")
        return before

    device = torch.device(get_accelerator().current_device_name())
    family, model = load_family(path, cfg.model.family, cfg.model.dtype)
    model = model.eval().requires_grad_(False).to(device)
    whole, _ = resolve_attention(cfg.model.attention, "auto", cfg.model.dtype, cuda=device.type == "cuda")
    set_attention(model, whole, whole)
    if not family.modalities and any(r.image for r in records):
        raise ConfigError(
            f"data.eval has images, model family '{family.name}' is text-only: use a vision-language model"
        )
    for column in columns(cfg):
        check_context(family, column.prompt, column.max_new_tokens, column.key)
    pending = _claim(out, settings, records)
    with closing(open_engine(cfg.rollout.engine, family, FixedWeights(model))) as engine:
        _answer(cfg, family, engine, records, pending[rank::ranks], out)
    dist.barrier()
    if rank:
        return None
    done = files.done_items(out, records)
    lines = files.write_items(out, done, len(records))
    good = [record for record, line in zip(records, lines, strict=True) if "error" not in line]
    seconds = sum(item.seconds for item in done.values())
    figures = summarize(lines, pass_at=cfg.evaluate.pass_at, resamples=cfg.evaluate.bootstrap, seed=cfg.run.seed)
    summary = {
        "command": command,
        "model": str(path),
        "config": cfg.run.dir,
        **figures,
        "warnings": _warnings(cfg, figures),
        **(majority_rates(good) if good else {}),
        "samples": cfg.evaluate.samples,
        "ranks": ranks,
        "seconds": time.monotonic() - started,
        "rank_seconds": seconds,
        "tokens_per_s": ranks * _tokens(lines) / seconds if seconds else None,
        "versions": versions(),
    }
    files.finish(out, summary)
    return summary


def answer_batch(
    cfg: RunConfig, family: Family, engine: RolloutEngine, caches: Sequence[PromptCache], records: Sequence[Record]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Lines of a few records in order, and the verifier's failures. `caches` encode for each of `columns(cfg)`."""
    samples = cfg.evaluate.samples
    for cache in caches:
        cache.encode_all(records)
    good = [r for r in records if all(cache.encode(r) is not None for cache in caches)]
    replies: dict[str, dict[str, list[Reply]]] = {r.id: {} for r in good}
    failures: Counter[str] = Counter()
    for column, cache in zip(columns(cfg), caches, strict=True):
        asked = [r for r in good for _ in range(samples)]
        requests = [
            RolloutRequest(prompt, row_key(cfg.run.seed, 0, record.id, i % samples))
            for i, record in enumerate(asked)
            if (prompt := cache.encode(record)) is not None
        ]
        rollouts = engine.generate(requests, _sampling(cfg, column))
        judged, errors = judge(
            [family.decode(r.tokens) for r in rollouts],
            [len(r.tokens) for r in rollouts],
            [r.truncated for r in rollouts],
            asked,
            reward=cfg.reward,
            flag=cfg.prompt.answer_flag,
            style=column.name,
            count_tokens=lambda text: len(family.plain_ids(text)),
        )
        failures.update(errors)
        for record, reply in zip(asked, judged, strict=True):
            replies[record.id].setdefault(column.name, []).append(reply)
    lines = [
        item_line(record, replies[record.id])
        if record.id in replies
        else bad_line(record, next(cache.failed[record.id] for cache in caches if record.id in cache.failed))
        for record in records
    ]
    for cache in caches:
        cache.clear()  # pictures are held for one batch at a time
    return lines, failures


def _answer(
    cfg: RunConfig, family: Family, engine: RolloutEngine, records: Sequence[Record], mine: Sequence[int], out: Path
) -> None:
    """Answers this rank's records batch by batch and appends each batch to the rank's partial file."""
    rank = dist.get_rank()
    caches = [
        PromptCache(family, column.prompt, _say, cfg.model.max_pixels, new_tokens=column.max_new_tokens)
        for column in columns(cfg)
    ]
    size = max(1, cfg.rollout.batch_size // cfg.evaluate.samples)
    said, tokens, begin = time.monotonic(), 0, time.monotonic()
    known: set[str] = set()
    for at in range(0, len(mine), size):
        batch = mine[at : at + size]
        start = time.monotonic()
        lines, failures = answer_batch(cfg, family, engine, caches, [records[i] for i in batch])
        each = (time.monotonic() - start) / len(batch)
        files.append_items(out, rank, [DoneItem(i, line, each) for i, line in zip(batch, lines, strict=True)])
        for kind in sorted(failures.keys() - known):
            _say(f"verifier failed with {kind}: these replies stay unscored (said once)")
        known |= failures.keys()
        tokens += _tokens(lines)
        now, last = time.monotonic(), at + size >= len(mine)
        if rank == 0 and (now - said > SAY_EVERY or last):
            said = now
            _say(f"{at + len(batch)}/{len(mine)} records of rank 0, {tokens / (now - begin):.0f} tokens/s")


def _warnings(cfg: RunConfig, figures: Mapping[str, Any]) -> list[str]:
    """Lines with a mend for columns whose replies never come to an answer."""
    found = []
    for column in columns(cfg):
        held = figures["columns"].get(column.name, {})
        rates = held.get("format_rate"), held.get("truncated_rate")
        if told := cut_replies.warning(*rates, column.prompt, column.max_new_tokens, column.key):
            found.append(f"{column.name}: {told}")
    return found


def _sampling(cfg: RunConfig, column: Column) -> Sampling:
    return sampling_of(cfg.rollout, column.max_new_tokens, greedy=cfg.evaluate.samples == 1)


def _check_folder(out: Path, settings: str) -> None:
    """All ranks raise the error that rank 0 finds in the folder."""
    problem = ""
    if dist.get_rank() == 0:
        try:
            files.check_owner(out, settings)
        except EvaluationError as error:  # an error on one rank alone would leave the others waiting
            problem = str(error)
    said = _from_rank_0([list(problem.encode())])
    if said and said[0]:
        raise EvaluationError(bytes(said[0]).decode())


def _claim(out: Path, settings: str, records: Sequence[Record]) -> list[int]:
    """Claims the folder and returns the indices of the records still to be done, the same on all ranks."""
    mine: list[list[int]] = []
    if dist.get_rank() == 0:
        files.claim(out, settings)
        done = files.done_items(out, records)
        files.gather_partial(out, done)
        if done:
            _say(f"{len(done)} of {len(records)} records are done already")
        mine = [sorted(done)]
    found = _from_rank_0(mine)
    done_before = set(found[0]) if found else set()
    return [i for i in range(len(records)) if i not in done_before]


def _from_rank_0(values: Sequence[Sequence[int]]) -> list[list[int]]:
    """Broadcasts lists of whole numbers from rank 0 to all ranks."""
    device = torch.device(get_accelerator().current_device_name())
    return gather_tokens(values if dist.get_rank() == 0 else [], device)[0]


def _tokens(lines: Sequence[dict[str, Any]]) -> int:
    return sum(reply["tokens"] for line in lines for name in ("think", "direct") for reply in line.get(name, ()))


def _say(message: str) -> None:
    print(f"[evaluation] {message}", file=sys.stderr, flush=True)
