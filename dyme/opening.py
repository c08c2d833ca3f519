"""Opening: from a configuration to a run that is ready to train. All ranks go through it together."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from dyme.batching.objective import resolve
from dyme.checkpoint import store
from dyme.clock import StepClock
from dyme.config import RunConfig, dump_config
from dyme.data import Record, RecordSet, load_records
from dyme.data.paths import expand
from dyme.engine.train_engine import TrainEngine, deepspeed_config, gather_tokens
from dyme.families import Family, ModelError, build_family, load_family
from dyme.families.files import read_weights
from dyme.families.processors import strays
from dyme.families.scratch import FREQUENT, kept_tokenizer
from dyme.fault_tolerance.lock import Lock, LockedError, take
from dyme.fault_tolerance.watchdog import Watchdog
from dyme.metrics.logger import open_metrics
from dyme.metrics.profile import Profile
from dyme.metrics.progress import ProgressLine
from dyme.position import Position
from dyme.prompts import PromptCache, check_context, prompt_text, reply_text
from dyme.provenance.contents import changed_data, describe, fingerprints
from dyme.provenance.place import check_place, check_writable, free_bytes
from dyme.rewards.calls import Failures, UserRewards
from dyme.rewards.round_trip import round_trip
from dyme.rewards.user import load_rewards
from dyme.rollout.registry import engine_class, open_engine
from dyme.run import Run
from dyme.run_folder import RunFolder, check_unused, checkpoints_of, claim
from dyme.schedule import Schedule
from dyme.scoring import Scorer
from dyme.selectors import make_selector, needs_of
from dyme.settings.errors import ConfigError
from dyme.supervision.judge_prompts import load_prompts
from dyme.supervision.supervisor import Supervisor

TOKENIZER = "tokenizer.json"
"""Of a run from scratch, beside its checkpoints."""
TOKENIZER_RECORDS = 4000  # records per source a from-scratch tokenizer is trained on


@dataclass(frozen=True)
class Prepared:
    """What a run needs that no other rank and no device is asked for."""

    rewards: UserRewards
    records: RecordSet
    eval_records: RecordSet | None


def prepare(cfg: RunConfig) -> Prepared:
    """Checks everything that one process can check, before the ranks meet, and loads the records. Raises `ConfigError`,
    `DataError` and `ModelError`; the folder is as before."""
    folder, model = Path(cfg.run.dir), expand(cfg.model.path) if cfg.model.path else None
    check_place(folder, model)
    deepspeed_config(cfg)
    if model is not None and not model.is_dir():
        raise ModelError(f"model.path: {model} does not exist: give a local Hugging Face checkpoint folder")
    if model is not None and not (cfg.model.lora or cfg.model.freeze):
        _check_room(cfg, folder, model)
    if model is not None and cfg.run.export and (lost := strays(model)):
        raise ModelError(
            f"model.path: {lost[0]} is a link out of the folder, and the export would publish what it points at: put "
            "the file itself there, or set run.export=false"
        )
    make_selector(cfg.selector)
    load_prompts(cfg.supervision.prompts)
    rewards = UserRewards(load_rewards(cfg.reward.user))
    usable = round_trip(cfg.reward, cfg.prompt)
    records = load_records(cfg.data.train, cfg.data.max_bad_fraction, usable)
    eval_records = load_records(cfg.data.eval, cfg.data.max_bad_fraction, usable) if cfg.data.eval else None
    return Prepared(rewards, records, eval_records)


def _check_room(cfg: RunConfig, folder: Path, model: Path) -> None:
    """Raises `ConfigError` where the disk has no room for two checkpoints, or for one more where there are some."""
    values = 0
    with suppress(ModelError, OSError):  # said when the model is loaded
        values = sum(read_weights(model).values.values())
    # float32 weights and two moments
    needed = 12 * values * (1 if store.steps(checkpoints_of(folder)) else 2)
    if (free := free_bytes(folder)) < needed:
        raise ConfigError(
            f"run.dir: the disk of {folder} has {free:,} bytes free, checkpoints need {needed:,}: free space, or put "
            "run.dir on another disk"
        )


def open_run(cfg: RunConfig, prepared: Prepared | None = None) -> Run:
    """Locks the folder, loads the model, and resumes where the run stopped. The process group must be there."""
    prepared = prepared or prepare(cfg)
    folder = Path(cfg.run.dir)
    lock = _lock(folder)
    watchdog = Watchdog(folder, dist.get_rank(), dist.get_world_size(), cfg.run.hang_timeout_s)
    try:
        with watchdog.opening():
            return _open(cfg, prepared, watchdog, lock)
    except BaseException:
        if lock:
            lock.release()
            with suppress(OSError):  # it may hold other files
                folder.rmdir()
        raise


def lock_early(folder: Path) -> None:
    """Locks the folder before the ranks meet (rank 0 only; `open_run` then finds the lock). Raises `LockedError`, and
    `ConfigError` where the folder cannot be written."""
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    take(folder, partial(_say_first, folder.name, 0))


def _lock(folder: Path) -> Lock | None:
    """The lock on rank 0, None on the others. All raise `ConfigError` where rank 0 does not get it. Collective."""
    lock, problem = None, ""
    if dist.get_rank() == 0:
        try:
            lock_early(folder)
            lock = take(folder, print)
        except (LockedError, ConfigError, OSError) as error:
            problem = str(error)
    if problem := _told(problem):
        raise ConfigError(problem)
    return lock


def _open(cfg: RunConfig, prepared: Prepared, watchdog: Watchdog, lock: Lock | None) -> Run:
    folder, rank = Path(cfg.run.dir), dist.get_rank()
    say = partial(_say, folder.name, rank)
    schedule = Schedule(cfg)
    check_unused(folder, cfg.run.resume)
    supervisor = Supervisor(cfg.supervision, cfg.judge, folder, rank=rank, flag=cfg.prompt.answer_flag, say=say)
    records, eval_records = prepared.records, prepared.eval_records
    spec, _ = resolve(cfg)
    watchdog.stage("model")
    kept = _kept_tokenizer(checkpoints_of(folder))
    family, model = _open_model(cfg, records, kept)
    check_modalities(cfg, family, records)
    check_context(family, cfg.prompt, cfg.longest_reply)
    watchdog.stage("engine")
    engine = TrainEngine(cfg, family, model, spec)
    rollout_engine = open_engine(cfg.rollout.engine, family, engine.rollout_copy)
    position = Position(make_selector(cfg.selector), schedule, Failures(), supervisor)
    watchdog.stage("resume")
    state = store.load_newest(engine, checkpoints_of(folder), partial(_say_first, folder.name, rank))
    if state:
        position.load(state)
    first = position.first_step
    data = engine.gather_json(fingerprints(records, eval_records) if rank == 0 else None)[0]
    replaced = changed_data(state.data, data) if state else []
    if replaced and not cfg.run.allow_changed_data:
        raise ConfigError(
            f"{folder}: the records are not those that this run was trained on ({describe(replaced)}): put them back, "
            "set run.allow_changed_data=true, or start in a new run.dir"
        )
    position.config, position.data = dump_config(cfg), data
    position.best = store.best(checkpoints_of(folder), first)[1]
    changed = claim(folder, cfg, state, data, engine.world_size) if rank == 0 else []
    if rank == 0 and cfg.model.from_scratch and kept is None:
        store.keep_text(checkpoints_of(folder) / TOKENIZER, kept_tokenizer(family.tokenizer))
    about = {"project": cfg.run.wandb, "name": folder.name, "config": cfg.model_dump(mode="json")}
    wandb = about if cfg.run.wandb else None
    logger = open_metrics(folder, rank=rank, tensorboard=cfg.run.tensorboard, wandb=wandb)
    if torn := logger.truncate(first or -1):  # without a checkpoint the first evaluation is made again too
        say(f"{torn} torn lines of its logs left out, as a power loss leaves them")
    progress = ProgressLine(folder.name, cfg.train.max_steps, first, rank)
    profile = Profile(folder) if cfg.run.profile and rank == 0 else None
    clock = StepClock(watchdog, profile, first, position.elapsed_s)
    clock.watch(engine)
    rollout_engine.update_weights()
    run = Run(
        cfg=cfg,
        records=records,
        eval_records=eval_records,
        engine=engine,
        rollout_engine=rollout_engine,
        prompt_cache=PromptCache(family, cfg.prompt, say, cfg.model.max_pixels, clock.background, cfg.longest_reply),
        scorer=Scorer(cfg, family, prepared.rewards, supervisor, position.failures, clock.background),
        supervisor=supervisor,
        schedule=schedule,
        position=position,
        clock=clock,
        folder=RunFolder(folder, cfg, engine, position, clock, logger, progress, lock=lock),
    )
    _announce(run, changed)
    clock.start()
    return run


def check_modalities(cfg: RunConfig, family: Family, records: RecordSet | list[Record]) -> None:
    """Raises `ConfigError` where the model cannot do what data or selector ask for."""
    if not family.modalities and any(r.image for r in records):
        raise ConfigError(
            f"data.train has images, model family '{family.name}' is text-only: use a vision-language model"
        )
    weighs = needs_of(cfg.method, cfg.selector).logprobs
    if weighs and not engine_class(cfg.rollout.engine, family).tells_logprobs:
        raise ConfigError(
            f"selector.name={cfg.selector.name} needs log-probabilities, which this rollout.engine does not tell: set "
            f"it to auto, or another selector where family '{family.name}' takes only hf"
        )


def _kept_tokenizer(checkpoints: Path) -> str | None:
    """The tokenizer that a resumed run from scratch began with, as rank 0 finds it; the records may have changed since.
    Collective."""
    path, text = checkpoints / TOKENIZER, ""
    if dist.get_rank() == 0 and path.is_file() and store.steps(checkpoints):
        text = path.read_text(encoding="utf-8", errors="replace")
    return _told(text) or None


def _told(text: str) -> str:
    """Rank 0's text on all ranks. Collective."""
    device = torch.device(get_accelerator().current_device_name())
    return bytes(gather_tokens([list(text.encode())], device)[0][0]).decode()


def _open_model(cfg: RunConfig, records: RecordSet, kept: str | None) -> tuple[Any, Any]:
    if cfg.model.path is not None:
        return load_family(expand(cfg.model.path), cfg.model.family, cfg.model.dtype)
    spec = cfg.model.from_scratch
    assert spec is not None
    if kept is not None:
        return build_family(cfg.model.family, spec, [], cfg.model.dtype, kept)
    texts = [*spec.tokenizer_texts, cfg.prompt.answer_flag] * FREQUENT
    for source in [records, *(load_records(s, cfg.data.max_bad_fraction) for s in spec.tokenizer_sources)]:
        for record in list(source)[:TOKENIZER_RECORDS]:
            texts += [
                cfg.prompt.system or "",
                prompt_text(record, cfg.prompt),
                " " + reply_text(record, cfg.prompt, record.hint),
                record.hint or "",
            ]
    return build_family(cfg.model.family, spec, texts, cfg.model.dtype)


def _announce(run: Run, changed: list[str]) -> None:
    cfg, engine, say = run.cfg, run.engine, run.folder.progress.say
    bad = len(run.records.bad) + (len(run.eval_records.bad) if run.eval_records else 0)
    first = run.position.first_step
    start = f"resuming at step {first}" if first else "starting"
    if changed:
        say(f"settings changed since this run started: {', '.join(changed)}")
    trained = engine.trained_parameters
    part = f" ({trained / 1e6:.2f}M of them trained)" if trained < engine.parameters else ""
    say(
        f"{start}: method {cfg.method}, {engine.family.name} with {engine.parameters / 1e6:.2f}M parameters"
        f"{part}, {len(run.records)} records ({bad} bad rows left out), {engine.world_size} ranks, "
        f"ZeRO stage {engine.stage}"
    )


def _say_first(name: str, rank: int, message: str) -> None:
    # while the run opens there is no progress line yet
    if rank == 0:
        print(f"[{name}] {message}", file=sys.stderr, flush=True)


def _say(name: str, rank: int, message: str) -> None:
    # any rank may meet a bad picture or lose its judge, so this one line does not wait for rank 0
    print(f"[{name}] rank {rank}: {message}", file=sys.stderr, flush=True)
