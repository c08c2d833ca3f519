"""Opening: from a configuration to a run that is ready to train. All ranks go through it together."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dyme.batching.objective import resolve
from dyme.checkpoint import store
from dyme.clock import StepClock
from dyme.config import RunConfig
from dyme.data import Record, RecordSet, load_records
from dyme.data.paths import expand
from dyme.engine.train_engine import TrainEngine, deepspeed_config
from dyme.families import Family, build_family, load_family
from dyme.families.scratch import FREQUENT
from dyme.fault_tolerance.watchdog import Watchdog
from dyme.metrics.logger import open_metrics
from dyme.metrics.profile import Profile
from dyme.metrics.progress import ProgressLine
from dyme.position import Position
from dyme.prompts import PromptCache, check_context, prompt_text, reply_text
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
from dyme.supervision.supervisor import Supervisor

TOKENIZER_RECORDS = 4000  # records per source a from-scratch tokenizer is trained on


def open_run(cfg: RunConfig) -> Run:
    """Checks the folder, loads data and model, and resumes where the run stopped. The process group must be there."""
    watchdog = Watchdog(Path(cfg.run.dir), dist.get_rank(), dist.get_world_size(), cfg.run.hang_timeout_s)
    with watchdog.opening():
        return _open(cfg, watchdog)


def _open(cfg: RunConfig, watchdog: Watchdog) -> Run:
    folder, rank = Path(cfg.run.dir), dist.get_rank()
    say = partial(_say, folder.name, rank)
    schedule = Schedule(cfg)
    deepspeed_config(cfg)  # a mistake in it must show before data and model load
    user_rewards = UserRewards(load_rewards(cfg.reward.user))  # and so must one in them
    check_unused(folder, cfg.run.resume)
    supervisor = Supervisor(cfg.supervision, cfg.judge, folder, rank=rank, flag=cfg.prompt.answer_flag, say=say)
    watchdog.stage("records")
    usable = round_trip(cfg.reward, cfg.prompt)
    records = load_records(cfg.data.train, cfg.data.max_bad_fraction, usable)
    eval_records = load_records(cfg.data.eval, cfg.data.max_bad_fraction, usable) if cfg.data.eval else None
    spec, _ = resolve(cfg)
    watchdog.stage("model")
    family, model = _open_model(cfg, records)
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
    position.best = store.best(checkpoints_of(folder), first)[1]
    changed = claim(folder, cfg, resumed=first > 0) if rank == 0 else []
    about = {"project": cfg.run.wandb, "name": folder.name, "config": cfg.model_dump(mode="json")}
    wandb = about if cfg.run.wandb else None
    logger = open_metrics(folder, rank=rank, tensorboard=cfg.run.tensorboard, wandb=wandb)
    logger.truncate(first or -1)  # without a checkpoint the first evaluation is made again too
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
        scorer=Scorer(cfg, family, user_rewards, supervisor, position.failures, clock.background),
        supervisor=supervisor,
        schedule=schedule,
        position=position,
        clock=clock,
        folder=RunFolder(folder, cfg, engine, position, clock, logger, progress),
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


def _open_model(cfg: RunConfig, records: RecordSet) -> tuple[Any, Any]:
    if cfg.model.path is not None:
        return load_family(expand(cfg.model.path), cfg.model.family, cfg.model.dtype)
    spec = cfg.model.from_scratch
    assert spec is not None
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
