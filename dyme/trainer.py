"""The loop. One step, in the words of docs/architecture.md: rollout, score, gather, select, refine, exchange, plan,
update."""

from __future__ import annotations

import json

from dyme import stages
from dyme.engine.bad_steps import write_bad_step
from dyme.engine.update import component_norms, run_update, with_reference_logprobs
from dyme.evaluation import held_out
from dyme.fault_tolerance.preemption import MARKER
from dyme.run import Run
from dyme.schedule import Stop
from dyme.scoring import Scoring


def train(run: Run) -> None:
    """Trains from `run.first_step` to the end of the run, or until it is asked to leave; everything it writes lies in
    the run folder, and the marker DONE says that the end was reached."""
    cfg, step = run.cfg, run.first_step
    run.watchdog.start()
    with run.progress:
        stop = _evaluate(run, step) if run.schedule.lacks_evaluation(step) else None
        while stop is None and step < cfg.train.max_steps:
            with run.stepping(step):
                signals = train_step(run, step)
            step += 1
            run.log_step(step, signals)
            stop = run.must_stop()
            if stop is Stop.BROKEN:
                raise RuntimeError(
                    f"{cfg.run.max_skipped_updates} updates in a row had a non-finite loss or gradient: lower "
                    f"optim.lr; {run.folder / 'bad_steps'} has the batches, the newest checkpoint is from before"
                )
            last = stop is Stop.TIME or (stop is None and step == cfg.train.max_steps)
            if last or (stop is None and run.schedule.must_evaluate(step)):
                stop = _evaluate(run, step) or stop
            if stop is not Stop.PREEMPTED and (run.schedule.must_save(step) or last):
                run.save(step)
    if stop is Stop.PREEMPTED:
        _leave(run, step)
    else:
        run.finish()
    run.watchdog.stop()


def train_step(run: Run, step: int) -> dict[str, float]:
    """One optimizer step; returns its signals."""
    explores = run.makes_rollouts(step)
    rows = run.step_batch(step)
    with run.clock("rollout"):
        run.prompt_cache.advance()
        prompts = stages.prompts(run, rows)
        scoring = Scoring(run, rows)
        rollouts = stages.rollout(run, rows, step, scoring) if explores else {}
    with run.clock("score"):
        scores = stages.score(run, rows, scoring)
    with run.clock("gather"):
        columns = stages.gather(run, rows, scores) if explores else {}
    with run.clock("refine"):
        decision, groups = stages.select(run, rows, columns, prompts, step)
        rows, prompts, decision = stages.join_extra(run, rows, prompts, decision)
        live = stages.live(run, rows, columns, decision, groups)
        references = stages.refine(run, rows, live)
    with run.clock("plan"):
        tokens = stages.exchange(run, rows, rollouts, references, live)
        work = stages.plan(run, rows, columns, decision, live, tokens, prompts)
    signals = run.step_metrics(step, rows, columns, decision, groups)
    run.prefetch(step + 1)  # pictures, prompts, facts and references, while this step's update runs
    with run.clock("update"):
        if live.rows:  # a step in which nothing lives has no backward and no optimizer step
            run.rollout_engine.sleep()
            work = with_reference_logprobs(run.engine, work)
            if run.measures_components(step):
                signals |= component_norms(run.engine, work).signals()
            stats = run_update(run.engine, work, run.lr_factor(step), run.cfg.train.epochs_per_rollout)
            signals |= run.update_metrics(stats, live)
            if not stats.applied and run.rank == 0:
                ids = [run.records[record].id for record in rows.records]
                write_bad_step(run.folder, step + 1, stats.bad_ranks, ids, work)
    with run.clock("refresh"):
        if explores:
            run.rollout_engine.update_weights()
    if run.supervisor.learns and explores:
        stages.learn(run, rows, columns, decision, scoring)
    run.supervisor.update(step, run.engine.gather_json)
    run.prompt_cache.clear()
    return signals


def _evaluate(run: Run, step: int) -> Stop | None:
    """Says that the run must leave where a rank was asked to meanwhile; then nothing is logged of this evaluation."""
    if run.eval_records is None:
        return None

    def goes_on() -> bool:
        run.watchdog.beat(phase="evaluate")
        return not run.schedule.preemption.asked

    result = held_out.evaluate(
        run.cfg, run.engine, run.rollout_engine, run.eval_records, run.prompt_cache, step, run.metrics, goes_on
    )
    if result is None:
        return Stop.PREEMPTED
    run.log_eval(step, result)
    return None


def _leave(run: Run, step: int) -> None:
    """The way out before the end, for whoever asked: what is needed to go on, and the marker PREEMPTED."""
    if step and not run.schedule.skipped_in_a_row:
        run.save(step)
    run.rollout_engine.close()
    run.metrics.close()
    run.supervisor.close()
    if run.rank == 0:
        asked = run.schedule.preemption.asked or "a signal to another rank"
        (run.folder / MARKER).write_text(json.dumps({"step": step, "asked_by": asked}), encoding="utf-8")
        run.progress.say(f"left at step {step} for {asked}: start again to go on")
    run.engine.barrier()
