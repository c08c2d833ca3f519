"""The loop. One step, in the words of docs/architecture.md: rollout, score, gather, select, refine, exchange, plan,
update."""

from __future__ import annotations

import torch

from dyme import evaluate as evaluation
from dyme import stages
from dyme.cursor import step_rows
from dyme.engine import lr_factor
from dyme.objective import live_rows, token_weights
from dyme.plan import make_plan
from dyme.run import Run, Stop
from dyme.signals import mode_signals, rollout_signals, table_columns
from dyme.update import component_norms, run_update


def train(run: Run) -> None:
    """Trains from `run.first_step` to the end of the run; everything it writes lies in the run folder."""
    cfg = run.cfg
    with run.progress:
        if run.first_step == 0:
            _evaluate(run, 0)
        for step in range(run.first_step, cfg.train.max_steps):
            signals = train_step(run, step)
            run.log_step(step + 1, signals)
            stop = run.must_stop(step + 1)
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
    cfg, engine = run.cfg, run.engine
    explores = run.makes_rollouts(step)
    rows = step_rows(
        step,
        len(run.records),
        cfg.rollout.prompts_per_step,
        cfg.rollout.group_size if explores else 1,
        engine.world_size,
        cfg.run.seed,
        shuffle=cfg.data.shuffle,
    )
    with run.clock("rollout"):
        readable, lengths, modalities = stages.prompts(run, rows)
        rollouts = stages.rollout(run, rows, step) if explores else {}
    with run.clock("score"):
        table = stages.score(run, rows, rollouts) if explores else None
    with run.clock("gather"):
        columns = table_columns(engine.gather_rows(table, rows.counts)) if table is not None else {}
        decision, stats = stages.select(run, rows, columns, readable, step)
    with run.clock("plan"):
        trains = torch.ones(rows.num_rows, dtype=torch.bool)
        if explores:
            trains = columns["scored"] > 0.5
            if cfg.rollout.truncated == "mask":
                trains &= columns["truncated"] < 0.5
        advantages = stats.advantages if stats else torch.zeros(rows.num_rows, dtype=torch.float64)
        live = live_rows(decision, advantages, trains, rows.offsets, keep_zero=cfg.objective.entropy_coef != 0)
        tokens = stages.exchange(run, rows, rollouts, live.rows)
        row_lengths = {r: len(tokens[r]) if r in tokens else int(columns["length"][r.row]) for r in live.counted}
        weights = token_weights(
            live,
            row_lengths,
            run.normalization,
            groups=rows.num_groups,
            rows=rows.num_rows,
            max_new_tokens=cfg.rollout.max_new_tokens,
            memorize_weight=cfg.objective.memorize_weight,
        )
        plan = make_plan(
            [r.group for r in live.rows],
            [len(tokens[r]) for r in live.rows],
            lengths,
            modalities,
            engine.world_size,
            cfg.train.token_budget,
            first_modules=engine.trainable_modalities,
            share_prompt=run.family.packs_trees,
        )
    signals = {
        "epoch": rows.epoch,
        "lr": cfg.optim.lr * lr_factor(step, cfg.train.max_steps, cfg.optim),
        **mode_signals(decision),
    }
    if stats is not None:
        signals |= rollout_signals(columns, stats, rows.offsets)
    signals |= run.memorize_log.signals([run.records[i].id for i in rows.records], stats, decision)
    with run.clock("update"):
        if live.rows:  # a step in which nothing lives has no backward and no optimizer step
            work = (
                plan,
                live.rows,
                weights,
                [tokens[r] for r in live.rows],
                lambda group: run.encode(rows.records[group]),
            )
            if cfg.train.component_norms_every and step % cfg.train.component_norms_every == 0:
                signals |= {f"grad/{k}": v for k, v in run.component_signals(component_norms(engine, *work)).items()}
            signals |= run.update_signals(
                run_update(engine, *work, lr_factor(step, cfg.train.max_steps, cfg.optim)), live
            )
    with run.clock("refresh"):
        if explores:
            engine.refresh()
    run.book.clear()
    return signals


def _evaluate(run: Run, step: int) -> None:
    if run.eval_records is not None:
        run.log_eval(step, evaluation.evaluate(run.cfg, run.engine, run.eval_records, run.book, step, run.metrics))
