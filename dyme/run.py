"""Run: everything a training run holds, opened from its configuration, and what it writes into its folder."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dyme.batching.objective import TrainSequences, resolve
from dyme.checkpoint import store
from dyme.checkpoint.recipe import Recipe
from dyme.config import RunConfig, changed_keys, dump_config
from dyme.data import Record, RecordSet, load_records
from dyme.data.paths import expand
from dyme.engine.train_engine import TrainEngine, deepspeed_config, lr_factor
from dyme.engine.update import UpdateStats
from dyme.evaluation.held_out import Evaluation
from dyme.families import Prompt, build_family, load_family
from dyme.families.scratch import FREQUENT
from dyme.fault_tolerance.preemption import MARKER
from dyme.fault_tolerance.watchdog import Watchdog
from dyme.methods import memorizes_only
from dyme.metrics.logger import open_metrics
from dyme.metrics.profile import EVERY, Profile
from dyme.metrics.progress import ProgressLine
from dyme.metrics.step_metrics import MemorizeLog, mode_metrics, rollout_metrics
from dyme.prompts import PromptCache, prompt_text, reply_text
from dyme.rewards.calls import UserRewards
from dyme.rewards.failures import Failures
from dyme.rewards.user import load_rewards
from dyme.rollout.registry import engine_class, open_engine
from dyme.rollout.types import sampling_of
from dyme.run_summary import report_on, write_summary
from dyme.sampler import StepBatch, step_batch
from dyme.schedule import Schedule, Stop
from dyme.selectors import make_selector, mixed_selector
from dyme.selectors.base import GroupStats, Mode, ModeDecision, ModeSelector, mode_line
from dyme.settings.errors import ConfigError
from dyme.settings.selector import SelectorConfig
from dyme.supervision.supervisor import Supervisor

DONE = "DONE"
TOKENIZER_RECORDS = 4000  # records per source a from-scratch tokenizer is trained on


class Run:
    """A run that is ready to train. Opening it checks the folder, loads data and model, and resumes where it
    stopped."""

    def __init__(self, cfg: RunConfig) -> None:
        self.watchdog = Watchdog(Path(cfg.run.dir), dist.get_rank(), dist.get_world_size(), cfg.run.hang_timeout_s)
        with self.watchdog.opening():
            self._open(cfg)

    def _open(self, cfg: RunConfig) -> None:
        self.cfg, self.folder = cfg, Path(cfg.run.dir)
        self.rank = dist.get_rank()
        self.started = time.monotonic()
        self.schedule = Schedule(cfg)
        self.name = self.folder.name
        deepspeed_config(cfg)  # a mistake in it must show before data and model load
        self.user_rewards = UserRewards(load_rewards(cfg.reward.user))  # and so must one in them
        self._check_folder()
        self.supervisor = Supervisor(
            cfg.supervision, cfg.judge, self.folder, rank=self.rank, flag=cfg.prompt.answer_flag, say=self._say
        )
        self.watchdog.stage("records")
        self.records = load_records(cfg.data.train, cfg.data.max_bad_fraction)
        self.eval_records = load_records(cfg.data.eval, cfg.data.max_bad_fraction) if cfg.data.eval else None
        self.spec, self.normalization = resolve(cfg)
        self.watchdog.stage("model")
        self.family, model = _open_model(cfg, self.records)
        self._check_modalities()
        self.watchdog.stage("engine")
        self.engine = TrainEngine(cfg, self.family, model, self.spec)
        self.rollout_engine = open_engine(cfg.rollout.engine, self.family, self.engine.rollout_copy)
        self.parameters = self.engine.parameters
        self.sampling = sampling_of(cfg.rollout)
        self._selector = make_selector(cfg.selector)
        always = SelectorConfig(name="always_explore")
        self._fixed = mixed_selector() if cfg.method == "mixed" else make_selector(always)
        self.memorize_log = MemorizeLog()
        self._memorized = 1.0
        self.failures = Failures()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.beside = ThreadPoolExecutor(1, "scoring")
        self._elapsed_before = 0.0
        self.watchdog.stage("resume")
        self.first_step = self._resume()
        self.changed = self._claim_folder()
        about = {"project": cfg.run.wandb, "name": self.name, "config": cfg.model_dump(mode="json")}
        wandb = about if cfg.run.wandb else None
        self.metrics = open_metrics(self.folder, rank=self.rank, tensorboard=cfg.run.tensorboard, wandb=wandb)
        self.metrics.truncate(self.first_step or -1)  # without a checkpoint the first evaluation is made again too
        self.best = store.best(self.checkpoints, self.first_step)[1]
        self.progress = ProgressLine(self.name, cfg.train.max_steps, self.first_step, self.rank)
        self.prompt_cache = PromptCache(self.family, cfg.prompt, self._say, cfg.model.max_pixels, self.background)
        self.step = self.first_step
        self.profile = Profile(self.folder) if cfg.run.profile and self.rank == 0 else None
        if self.profile:
            self.profile.watch(self.engine, lambda: self.step)
        self.watchdog.watch(self.engine)
        self.rollout_engine.update_weights()
        self._announce()
        self.started = time.monotonic()

    # --- opening ----------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _check_folder(self) -> None:
        used = (self.folder / "metrics.jsonl").exists() or self.checkpoints.exists()
        if used and self.cfg.run.resume == "never":
            raise ConfigError(f"run.dir: {self.folder} already holds a run: choose another folder, or run.resume=auto")
        dist.barrier()  # nobody writes before all have looked

    def _claim_folder(self) -> list[str]:
        """Takes the folder over, once nothing can fail any more. Returns the settings that a resumed run changes."""
        if self.rank:
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self.folder / "config.yaml"
        changed = changed_keys(before.read_text(encoding="utf-8"), dump_config(self.cfg)) if self.first_step else []
        for marker in (DONE, MARKER):
            (self.folder / marker).unlink(missing_ok=True)
        before.write_text(dump_config(self.cfg), encoding="utf-8")
        return changed

    def _check_modalities(self) -> None:
        if not self.family.modalities and any(r.image for r in self.records):
            raise ConfigError(
                f"data.train has images, model family '{self.family.name}' is text-only: use a vision-language model"
            )
        weighs = self.cfg.method == "dyme" and self.cfg.selector.name == "entropy_weighted"
        if weighs and not engine_class(self.cfg.rollout.engine, self.family).tells_logprobs:
            raise ConfigError(
                "selector.name=entropy_weighted needs log-probabilities, which this rollout.engine does not tell: set "
                f"it to auto, or another selector where family '{self.family.name}' takes only hf"
            )

    def _resume(self) -> int:
        state = store.load_newest(self.engine, self.checkpoints, self._say_first)
        if state is None:
            return 0
        self._selector.load_state_dict(state.selector)
        self.memorize_log.load_state_dict(state.memorize_log)
        self._elapsed_before, self.schedule.skipped_in_a_row = state.elapsed_s, state.skipped_in_a_row
        self.schedule.evaluated = state.evaluated
        self.failures.counts.update(state.reward_errors)
        self.supervisor.load_state_dict(state.supervision)
        return state.step

    def _announce(self) -> None:
        bad = len(self.records.bad) + (len(self.eval_records.bad) if self.eval_records else 0)
        start = f"resuming at step {self.first_step}" if self.first_step else "starting"
        if self.changed:
            self.progress.say(f"settings changed since this run started: {', '.join(self.changed)}")
        trained = self.engine.trained_parameters
        part = f" ({trained / 1e6:.2f}M of them trained)" if trained < self.parameters else ""
        self.progress.say(
            f"{start}: method {self.cfg.method}, {self.family.name} with {self.parameters / 1e6:.2f}M parameters"
            f"{part}, {len(self.records)} records ({bad} bad rows left out), {self.engine.world_size} ranks, "
            f"ZeRO stage {self.engine.stage}"
        )

    # --- what the loop asks -----------------------------------------------------------------------

    def makes_rollouts(self, step: int) -> bool:
        """Not in the SFT steps of a method, see `memorizes_only`."""
        train = self.cfg.train
        return not memorizes_only(self.cfg.method, step, train.max_steps, train.switch_fraction)

    def step_batch(self, step: int) -> StepBatch:
        """Records and rows of a step (0-based)."""
        cfg = self.cfg
        size = cfg.rollout.group_size if self.makes_rollouts(step) else 1
        return step_batch(
            step,
            len(self.records),
            cfg.rollout.prompts_per_step,
            size,
            self.engine.world_size,
            cfg.run.seed,
            shuffle=cfg.data.shuffle,
        )

    def lr_factor(self, step: int) -> float:
        """Learning rate of a step as a fraction of the peak."""
        return lr_factor(step, self.cfg.train.max_steps, self.cfg.optim)

    def measures_components(self, step: int) -> bool:
        """Whether the gradients of explored and memorized rows are measured apart in this step."""
        every = self.cfg.train.component_norms_every
        return every > 0 and step % every == 0

    def selector(self, step: int) -> ModeSelector:
        return self._selector if self.cfg.method == "dyme" else self._fixed

    def encode(self, record: int) -> Prompt | None:
        return self.prompt_cache.encode(self.records[record])

    def prefetch(self, step: int) -> None:
        """Starts to encode the prompts that this rank needs in a step; `prompt_cache.advance` takes them."""
        if step >= self.cfg.train.max_steps:
            return
        # made now: a micro-batch that needs an anchor would use the processor beside the book
        _ = self.family.anchors
        rows = self.step_batch(step)
        groups = dict.fromkeys(rows.group_of(row) for row in rows.rows(self.rank))
        records = [self.records[rows.records[group]] for group in groups]
        self.prompt_cache.prefetch(records)
        owned = [record for group, record in zip(groups, records) if rows.owner(group) == self.rank]
        self.supervisor.prefetch(records, [record for record in owned if self._likely(record, step, rows.epoch)])

    def _likely(self, record: Record, step: int, epoch: float) -> bool:
        """Whether a record of the next step will likely be memorized: it was at its last visit, or most others are that
        come for the first time too."""
        first = epoch <= 1.0 and self._memorized > 0.5
        return first or not self.makes_rollouts(step) or record.id in self.memorize_log.pending

    def must_stop(self) -> Stop | None:
        """The same answer on every rank; None to go on."""
        return self.schedule.must_stop(self.elapsed(), self.engine.all_reduce)

    def elapsed(self) -> float:
        """Seconds of training so far, over all starts of the run."""
        return self._elapsed_before + time.monotonic() - self.started

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        self.watchdog.beat(phase=phase)
        begin = time.monotonic()  # outside the span: where it waits for the device that counts
        with self.profile.span(phase, "phase", self.step) if self.profile else nullcontext():
            yield
        self._seconds[phase] += time.monotonic() - begin

    @contextmanager
    def background(self, track: str) -> Iterator[None]:
        """Around the work of a thread beside the step, see `profile.BESIDE`."""
        with self.profile.background(track, self.step) if self.profile else nullcontext():
            yield

    @contextmanager
    def stepping(self, step: int) -> Iterator[None]:
        """Around everything that belongs to a step."""
        self.step, rows = step, self.step_batch(step)
        mine = dict.fromkeys(rows.records[rows.group_of(row)] for row in rows.rows(self.rank))
        self.watchdog.beat(step=step + 1, records=tuple(self.records[i].id for i in mine))
        with self.profile.span("step", "step", step) if self.profile else nullcontext():
            yield

    def step_metrics(
        self,
        step: int,
        rows: StepBatch,
        columns: dict[str, Tensor],
        decision: ModeDecision,
        stats: GroupStats | None,
    ) -> dict[str, float]:
        """Signals of a step before its update."""
        self._memorized = decision.share(Mode.MEMORIZE)
        signals = {"epoch": rows.epoch, "lr": self.cfg.optim.lr * self.lr_factor(step), **mode_metrics(decision)}
        if stats is not None:
            signals |= rollout_metrics(columns, stats, rows.offsets)
            signals |= {f"reward/user/{r.title}_weight": r.weight.at(step) for r in self.cfg.reward.user}
        ids = [self.records[i].id for i in rows.records]
        if self.cfg.run.modes:
            self.metrics.log_modes(step + 1, mode_line(decision, rows.records, ids))
        return signals | self.memorize_log.signals(ids, stats, decision)

    def update_metrics(self, stats: UpdateStats, live: TrainSequences) -> dict[str, float]:
        """Signals of an update; counts skipped updates in a row."""
        self.schedule.skipped_in_a_row = 0 if stats.applied else self.schedule.skipped_in_a_row + 1
        if not stats.applied:
            self.progress.say("update skipped: a loss or gradient was not finite")
        memorized = sum(r.memorize for r in live.rows)
        out = {
            "loss": stats.loss,
            "grad_norm": stats.grad_norm,
            "skipped_update": float(not stats.applied),
            "effective_rows": float(len(live.rows)),
            "effective_tokens": float(stats.live_tokens),
            "lost_rows": float(stats.lost_rows),
            "policy/ratio_mean": stats.ratio,
            "policy/clipped_low": stats.clipped_low,
            "policy/clipped_high": stats.clipped_high,
            "policy/entropy": stats.entropy,
        }
        if self.spec.beta:
            out["policy/kl"] = stats.kl
        if self.cfg.optim.modulation:
            out |= {"optim/vision_factor": stats.modulation.vision, "optim/language_factor": stats.modulation.language}
        if memorized:
            out |= {"memorize/nll": stats.memorize_nll, "memorize/ref_len": stats.memorized_tokens / memorized}
        return out

    # --- writing ----------------------------------------------------------------------------------

    def log_step(self, step: int, signals: dict[str, float]) -> None:
        signals |= self.supervisor.signals(self.engine.all_reduce, self.engine.world_size)
        seconds = sum(self._seconds.values())
        worked = signals.get("rollout/tokens", 0.0) + signals.get("effective_tokens", 0.0)
        parts = {**self._seconds, **(self.profile.end_step() if self.profile else {})}
        signals |= {f"time/{phase}": s for phase, s in parts.items()}
        signals |= {f"time_share/{phase}": s / max(seconds, 1e-9) for phase, s in parts.items()}
        signals |= {
            "time_s": self.elapsed(),
            "tokens_per_s": worked / max(seconds, 1e-9),
            "bad_rows": float(len(self.prompt_cache.failed)),
        }
        self._seconds.clear()
        self.metrics.log(step, signals)
        self.progress.step(step, signals)
        if self.profile and step % EVERY == 0:
            self.profile.write()

    def log_eval(self, step: int, result: Evaluation) -> None:
        self.schedule.evaluated = step
        self.metrics.log_eval(step, {"time_s": self.elapsed(), **result.signals()})
        self.progress.say(
            f"step {step}: held-out accuracy {result.accuracy:.3f}, valid format {result.format_rate:.3f} "
            f"({result.n} records)"
        )
        if step and result.accuracy > self.best and not self.schedule.skipped_in_a_row:
            self.best = result.accuracy
            self.save(step)
            if self.rank == 0:
                store.mark_best(self.checkpoints, step, result.accuracy)

    def save(self, step: int) -> None:
        self.watchdog.beat(phase="checkpoint")
        state = store.TrainState(
            step=step,
            elapsed_s=self.elapsed(),
            world_size=self.engine.world_size,
            selector=self._selector.state_dict(),
            memorize_log=self.memorize_log.state_dict(),
            skipped_in_a_row=self.schedule.skipped_in_a_row,
            reward_errors=dict(self.failures.counts),
            supervision=self.supervisor.state_dict(self.engine.gather_json),
            evaluated=self.schedule.evaluated,
        )
        store.save(self.engine, self.checkpoints, state, self.cfg.run.keep_last)
        self.schedule.saved()

    def finish(self) -> None:
        """Export, summary, profile and report; the DONE marker last."""
        if self.cfg.run.export:
            recipe = Recipe(
                prompt=self.cfg.prompt,
                max_new_tokens=self.cfg.rollout.max_new_tokens,
                family=self.family.name,
                max_pixels=self.cfg.model.max_pixels,
            )
            store.export(self.engine, self.folder / "export", recipe)
        self.rollout_engine.close()
        self.metrics.close()
        self.supervisor.close()
        if self.rank == 0:
            write_summary(self)
            if self.profile:
                self.profile.write()
            if self.cfg.run.report:
                report_on(self.folder)
            (self.folder / DONE).write_text("", encoding="utf-8")
            self.progress.say(f"done in {self.elapsed():.0f} s of training: {self.folder}")
        self.engine.barrier()

    def _say_first(self, message: str) -> None:
        # while the run opens there is no progress line yet
        if self.rank == 0:
            print(f"[{self.name}] {message}", file=sys.stderr, flush=True)

    def _say(self, message: str) -> None:
        # any rank may meet a bad picture or lose its judge, so this one line does not wait for rank 0
        print(f"[{self.name}] rank {self.rank}: {message}", file=sys.stderr, flush=True)


def _open_model(cfg: RunConfig, records: RecordSet) -> tuple[Any, Any]:
    if cfg.model.path is not None:
        return load_family(expand(cfg.model.path), cfg.model.family, cfg.model.dtype)
    spec = cfg.model.from_scratch
    assert spec is not None
    texts = [*spec.tokenizer_texts, cfg.prompt.answer_flag] * FREQUENT
    for source in [records, *(load_records(s, cfg.data.max_bad_fraction) for s in spec.tokenizer_sources)]:
        for record in list(source)[:TOKENIZER_RECORDS]:
            texts += [
                prompt_text(record, cfg.prompt),
                " " + reply_text(record, cfg.prompt, record.hint),
                record.hint or "",
            ]
    return build_family(cfg.model.family, spec, texts, cfg.model.dtype)
