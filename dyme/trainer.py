"""The loop. One step, in the words of docs/architecture.md: rollout, score, gather, select, refine, exchange, plan,
update."""

from __future__ import annotations

from dyme import stages
from dyme.evaluation import held_out
from dyme.run import Run, Stop
from dyme.scoring import Scoring
from dyme.update import component_norms, run_update, with_reference


def train(run: Run) -> None:
    """Trains from `run.first_step` to the end of the run; everything it writes lies in the run folder."""
    cfg = run.cfg
    with run.progress:
        if run.first_step == 0:
            _evaluate(run, 0)
        for step in range(run.first_step, cfg.train.max_steps):
            with run.stepping(step):
                signals = train_step(run, step)
            run.log_step(step + 1, signals)
            stop = run.must_stop()
            last = stop is not None or step + 1 == cfg.train.max_steps
            if last or (cfg.run.eval_every and (step + 1) % cfg.run.eval_every == 0):
                _evaluate(run, step + 1)
            if last or (cfg.run.save_every and (step + 1) % cfg.run.save_every == 0):
                run.save(step + 1)
            if stop is Stop.BROKEN:
                raise RuntimeError(
                    f"{cfg.run.max_skipped_updates} updates in a row had a non-finite loss or gradient: lower optim.lr"
                )
            if last:
                break
    run.finish()


def train_step(run: Run, step: int) -> dict[str, float]:
    """One optimizer step; returns its signals."""
    explores = run.makes_rollouts(step)
    rows = run.step_rows(step)
    with run.clock("rollout"):
        run.book.turn()
        prompts = stages.prompts(run, rows)
        scoring = Scoring(run, rows)
        rollouts = stages.rollout(run, rows, step, scoring) if explores else {}
    with run.clock("score"):
        scores = stages.score(run, rows, scoring)
    with run.clock("gather"):
        columns = stages.gather(run, rows, scores) if explores else {}
    with run.clock("plan"):
        decision, groups = stages.select(run, rows, columns, prompts, step)
        live = stages.live(run, rows, columns, decision, groups)
        tokens = stages.exchange(run, rows, rollouts, live)
        work = stages.plan(run, rows, columns, decision, live, tokens, prompts)
    signals = run.step_signals(step, rows, columns, decision, groups)
    run.prefetch(step + 1)  # pictures and prompts, while this step's update runs
    with run.clock("update"):
        if live.rows:  # a step in which nothing lives has no backward and no optimizer step
            work = with_reference(run.engine, work)
            if run.measures_components(step):
                signals |= component_norms(run.engine, work).signals()
            stats = run_update(run.engine, work, run.lr_factor(step), run.cfg.train.epochs_per_rollout)
            signals |= run.update_signals(stats, live)
    with run.clock("refresh"):
        if explores:
            run.engine.begin_refresh()
    run.book.clear()
    return signals


def _evaluate(run: Run, step: int) -> None:
    if run.eval_records is not None:
        run.log_eval(step, held_out.evaluate(run.cfg, run.engine, run.eval_records, run.book, step, run.metrics))
