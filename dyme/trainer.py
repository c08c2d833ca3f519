"""The loop. One step, in the words of docs/architecture.md: rollout, score, gather, select, refine, exchange, plan,
update."""

from __future__ import annotations

from dyme import stages
from dyme.engine.bad_steps import write_bad_step
from dyme.engine.train_engine import lr_factor
from dyme.engine.update import component_norms, run_update, with_reference_logprobs
from dyme.evaluation import held_out
from dyme.metrics.columns import RolloutColumns
from dyme.metrics.step_metrics import kind_metrics, step_metrics
from dyme.run import Run
from dyme.sampler import makes_rollouts
from dyme.schedule import Stop
from dyme.scoring import Scoring
from dyme.selectors.base import Mode, mode_line


def train(run: Run) -> None:
    """Trains from `run.position.first_step` to the end of the run, or until it is asked to leave; everything it writes
    lies in the run folder, and the marker DONE says that the end was reached. Raises `StoppedError` where the run
    cannot succeed."""
    cfg, folder, schedule, step = run.cfg, run.folder, run.schedule, run.position.first_step
    run.clock.watchdog.start()
    with folder.progress:
        stop = _evaluate(run, step) if schedule.lacks_evaluation(step) else None
        while stop is None and step < cfg.train.max_steps:
            with run.stepping(step):
                metrics = train_step(run, step)
            step += 1
            folder.log_step(step, metrics, len(run.prompt_cache.failed))
            stop = schedule.must_stop(run.clock.elapsed(), run.engine.all_reduce)
            if stop is Stop.BROKEN:
                raise RuntimeError(
                    f"{cfg.run.max_skipped_updates} updates in a row had a non-finite loss or gradient: lower "
                    f"optim.lr; {folder.path / 'bad_steps'} has the batches, the newest checkpoint is from before"
                )
            health = run.position.health
            if why := (
                health.hopeless(cfg.reward, run.scorer.failures)
                or health.bad_rows(cfg.data.max_bad_fraction, cfg.rollout.prompts_per_step)
            ):
                folder.give_up(step, why)
            last = stop is Stop.TIME or (stop is None and step == cfg.train.max_steps)
            if last or (stop is None and schedule.must_evaluate(step)):
                stop = _evaluate(run, step) or stop
            if stop is not Stop.PREEMPTED and (schedule.must_save(step) or last):
                folder.save(step, last=last)
    if stop is Stop.PREEMPTED:
        folder.leave(step)
    else:
        folder.finish(run.records, run.eval_records, run.prompt_cache.failed, run.position.health.idle())
    run.rollout_engine.close()
    run.clock.watchdog.stop()


def train_step(run: Run, step: int) -> dict[str, float]:
    """One optimizer step; returns its metrics."""
    cfg, engine, cache, records, clock = run.cfg, run.engine, run.prompt_cache, run.records, run.clock
    explores = makes_rollouts(cfg, step)
    batch = run.step_batch(step)
    with clock.phase("rollout"):
        cache.advance()
        prompts = stages.prompts(engine, cache, records, batch)
        readable = prompts.readable
        scoring = Scoring(run.scorer, records, batch)
        rollouts = (
            stages.rollout(cfg, run.rollout_engine, cache, records, batch, engine.rank, scoring) if explores else {}
        )
    with clock.phase("score"):
        scores = stages.score(batch, engine.rank, scoring)
    with clock.phase("gather"):
        say = run.folder.progress.say
        columns = stages.gather(engine, run.scorer, records, batch, scores, say) if explores else RolloutColumns()
    with clock.phase("refine"):
        decision, stats = stages.select(cfg, engine, run.selector, records, batch, columns, prompts)
        columns = columns.on_host()
        if columns:
            run.position.health.scored(columns.values, cfg.reward, step)
        batch, prompts, decision = stages.join_extra(engine, cache, records, batch, prompts, decision)
        sequences = stages.sequences(cfg, batch, columns, decision, stats)
        demonstrations = stages.refine(run.supervisor, records, batch, engine.rank, sequences)
    with clock.phase("plan"):
        tokens = stages.exchange(cfg.prompt, engine, records, batch, rollouts, demonstrations, sequences, say)
        sequences = sequences.without(set(sequences.trained) - set(tokens))
        train_batch = stages.plan(cfg, engine, cache, records, batch, columns, decision, sequences, tokens, prompts)
    ids = [records[i].id for i in batch.records]
    factor = lr_factor(step, cfg.train.max_steps, cfg.optim)
    metrics = step_metrics(cfg, batch, columns, decision, stats, lr=cfg.optim.lr * factor)
    metrics |= kind_metrics(run.kinds, [records[i].kind for i in batch.records], decision, columns)
    metrics |= run.position.memorize_log.metrics(ids, stats, decision)
    run.position.memorized = decision.share(Mode.MEMORIZE)
    if cfg.run.modes:
        run.folder.logger.log_modes(step + 1, mode_line(decision, batch.records, ids))
    # pictures, prompts, facts and demonstrations, while this step's update runs
    stages.prefetch(cfg, engine, cache, run.supervisor, run.position, records, step + 1)
    applied = False
    with clock.phase("update"):
        if sequences.trained:  # a step in which nothing lives has no backward and no optimizer step
            run.rollout_engine.sleep()
            train_batch = with_reference_logprobs(engine, train_batch)
            if run.schedule.measures_components(step):
                metrics |= component_norms(engine, train_batch).metrics()
            updated = run_update(engine, train_batch, factor, cfg.train.epochs_per_rollout)
            applied = updated.applied
            run.schedule.updated(applied=applied)
            metrics |= updated.metrics(
                sequences.trained, kl=engine.has_reference_policy, modulation=bool(cfg.optim.modulation)
            )
            if not applied:
                say("update skipped: a loss or gradient was not finite")
                if engine.rank == 0:
                    write_bad_step(run.folder.path, step + 1, updated.bad_ranks, ids, train_batch)
    run.position.health.ended(readable, columns.values, bool(sequences.trained), applied)
    with clock.phase("refresh"):
        if explores:
            run.rollout_engine.update_weights()
    if run.supervisor.learns and explores:
        stages.learn(run.supervisor, records, batch, columns, decision, scoring.thinking)
    run.supervisor.update(step, engine.gather_json)
    cache.clear()
    return metrics


def _evaluate(run: Run, step: int) -> Stop | None:
    """Says that the run must leave where a rank was asked to meanwhile; then nothing is logged of this evaluation."""
    if run.eval_records is None:
        return None

    def goes_on() -> bool:
        run.clock.watchdog.beat(phase="evaluate")
        return not run.schedule.preemption.asked

    engines, logger = (run.engine, run.rollout_engine), run.folder.logger
    result = held_out.evaluate(run.cfg, *engines, run.eval_records, run.prompt_cache, step, logger, goes_on)
    if result is None:
        return Stop.PREEMPTED
    run.folder.log_eval(step, result)
    return None
