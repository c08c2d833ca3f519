"""Stages: the parts of a step before the update. Each takes the run and the step's rows; what leaves a rank is
gathered here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dyme.batching.objective import TrainSequence, TrainSequences, kl_share, token_weights, train_sequences
from dyme.batching.plan import make_plan
from dyme.engine.update import TrainBatch
from dyme.metrics.step_metrics import COLUMNS, any_failed, column_names, group_entropy, table_columns
from dyme.prompts import has_demonstration, reply_text
from dyme.rewards.length import add_length_reward
from dyme.rollout.noise import row_key
from dyme.rollout.types import Rollout, RolloutRequest
from dyme.run import Run
from dyme.sampler import StepBatch
from dyme.scoring import Scoring
from dyme.selectors.base import GroupStats, Mode, ModeDecision, group_stats, memorize_all, with_extra


@dataclass(frozen=True)
class PromptTable:
    """Of every group of the step, on all ranks: whether its prompt could be encoded (bool [G]), its expanded length and
    its modalities."""

    readable: Tensor
    lengths: list[int]
    modalities: list[frozenset[str]]


def prompts(run: Run, rows: StepBatch, first: int = 0) -> PromptTable:
    """Encodes the prompts this rank owns, from group `first` on, and gathers what a plan has to know of them."""
    owners = [[group for group in rows.owned(rank) if group >= first] for rank in range(run.engine.world_size)]
    owned = owners[run.engine.rank]
    names = sorted(run.family.modalities)
    local = torch.zeros(len(owned), 1 + len(names), dtype=torch.float64)
    for i, group in enumerate(owned):
        prompt = run.encode(rows.records[group])
        if prompt is not None:
            local[i] = torch.tensor([len(prompt), *(name in prompt.modalities for name in names)])
    table = run.engine.gather_rows(local, [len(groups) for groups in owners])
    modalities = [frozenset(n for n, held in zip(names, row[1:]) if held) for row in table.tolist()]
    return PromptTable(table[:, 0] > 0, [int(n) for n in table[:, 0]], modalities)


def rollout(run: Run, rows: StepBatch, step: int, scoring: Scoring) -> dict[int, Rollout]:
    """Completions of this rank's rows, without those whose prompt could not be encoded. `scoring` gets them as they
    finish."""
    requests = {}
    for row in rows.rows(run.engine.rank):
        record = rows.records[rows.group_of(row)]
        prompt = run.encode(record)
        if prompt is not None:
            key = row_key(run.cfg.run.seed, step, run.records[record].id, row % rows.group_size)
            requests[row] = RolloutRequest(prompt, key)
    asked = list(requests)
    scoring.expect(asked)
    run.rollout_engine.update_weights()
    rollouts = run.rollout_engine.generate(
        list(requests.values()), run.sampling, lambda i, rollout: scoring.finished(asked[i], rollout)
    )
    return dict(zip(asked, rollouts, strict=True))


def score(run: Run, rows: StepBatch, scoring: Scoring) -> Tensor:
    """The columns of `signals.column_names` for this rank's rows; rows without a completion are unscored."""
    titles = run.user_rewards.titles
    table = torch.zeros(len(rows.rows(run.engine.rank)), len(column_names(titles)), dtype=torch.float64)
    table[:, len(COLUMNS) : len(COLUMNS) + len(titles)] = torch.nan
    scored, scores, user = scoring.result()
    first = rows.starts[run.engine.rank]
    for i, row in enumerate(scored):
        rollout = scoring.rollouts[row]
        parts = [
            float(a[i])
            for a in (scores.format, scores.thinking, scores.accuracy, scores.reward, scores.correct, scores.scored)
        ]
        entropy = -sum(rollout.logprobs) / len(rollout.logprobs) if rollout.logprobs else torch.nan
        parts += [rollout.truncated, len(rollout.tokens), not rollout.truncated, entropy]
        own = [*user.values[i].tolist(), *user.failed[i].tolist()]
        table[row - first] = torch.tensor([*parts, *own], dtype=torch.float64)
    return table


def gather(run: Run, rows: StepBatch, table: Tensor) -> dict[str, Tensor]:
    """The scores of all ranks as named columns, [R] each, rows in the step's order. Errors are gathered where the
    columns, which are the same on all ranks, have any."""
    columns = table_columns(run.engine.gather_rows(table, rows.counts), run.user_rewards.titles)
    if any_failed(columns):
        run.failures.share(run.engine.gather_json, run.progress.say)
    reward = run.cfg.reward
    if not (reward.length.start or reward.length.end):
        return columns
    return add_length_reward(columns, reward.length.at(rows.step), rows.offsets, require_format=reward.require_format)


def select(
    run: Run, rows: StepBatch, columns: dict[str, Tensor], table: PromptTable, step: int
) -> tuple[ModeDecision, GroupStats | None]:
    """The mode of every group, from gathered numbers alone. Without rollouts every reference is memorized."""
    cfg = run.cfg
    references = [
        has_demonstration(run.records[i], cfg.memorize.on_missing_trace, cfg.prompt.style) for i in rows.records
    ]
    reference = torch.tensor(references) & table.readable
    if not columns:
        return memorize_all(reference), None
    scored = (columns["scored"] > 0.5) & table.readable.repeat_interleave(rows.group_size)
    offsets = torch.tensor(rows.offsets)
    stats = group_stats(
        columns["reward"], columns["correct"], columns["format"], scored, reference, offsets, cfg.objective.scale
    )
    stats = replace(stats, records=rows.records, step=step, entropy=group_entropy(columns, rows.offsets))
    return run.selector(step).select(stats, step / cfg.train.max_steps), stats


def join_extra(
    run: Run, rows: StepBatch, table: PromptTable, decision: ModeDecision
) -> tuple[StepBatch, PromptTable, ModeDecision]:
    """The step with the records that the selector names besides its groups: groups without rollouts, which memorize.
    One more gather, in steps that have any."""
    count = len(decision.extra_records)
    if not count:
        return rows, table, decision
    own = rows.num_groups
    rows = replace(rows, records=rows.records + decision.extra_records, extra=count)
    more = prompts(run, rows, own)
    table = PromptTable(
        torch.cat([table.readable, more.readable]), table.lengths + more.lengths, table.modalities + more.modalities
    )
    return rows, table, with_extra(decision, more.readable)


def live(
    run: Run, rows: StepBatch, columns: dict[str, Tensor], decision: ModeDecision, stats: GroupStats | None
) -> TrainSequences:
    """The rows that train under the decision."""
    keep_zero = run.spec.entropy_coef != 0 or run.spec.beta != 0
    if stats is None:
        nothing = torch.zeros(rows.num_rows, dtype=torch.float64)
        return train_sequences(decision, nothing, nothing > 0, rows.offsets, keep_zero=keep_zero)
    trains = columns["scored"] > 0.5
    if run.cfg.rollout.truncated == "mask":
        trains &= columns["truncated"] < 0.5
    return train_sequences(decision, stats.advantages, trains, rows.offsets, keep_zero=keep_zero)


def refine(run: Run, rows: StepBatch, live: TrainSequences) -> dict[int, str | None]:
    """The reference traces of the groups that memorize and whose record this rank holds."""
    groups = [row.group for row in live.rows if row.memorize and rows.owner(row.group) == run.engine.rank]
    refined = run.supervisor.refine([run.records[rows.records[group]] for group in groups])
    return {group: each.trace for group, each in zip(groups, refined, strict=True)}


def exchange(
    run: Run, rows: StepBatch, rollouts: dict[int, Rollout], references: dict[int, str | None], live: TrainSequences
) -> dict[TrainSequence, list[int]]:
    """Token ids of the live rows, from the ranks that hold them to all ranks."""
    engine = run.engine
    starts = rows.starts

    def holder(row: TrainSequence) -> int:
        return (
            rows.owner(row.group)
            if row.memorize
            else next(r for r in range(engine.world_size) if row.row < starts[r + 1])
        )

    def tokens(row: TrainSequence) -> list[int] | tuple[int, ...]:
        if not row.memorize:
            return rollouts[row.row].tokens
        record = run.records[rows.records[row.group]]
        return run.family.encode_reply(reply_text(record, run.cfg.prompt, references[row.group]))

    mine = [list(tokens(row)) for row in live.rows if holder(row) == engine.rank]
    gathered = [iter(part) for part in engine.gather_tokens(mine)]
    return {row: next(gathered[holder(row)]) for row in live.rows}


def learn(run: Run, rows: StepBatch, columns: dict[str, Tensor], decision: ModeDecision, scoring: Scoring) -> None:
    """Templates from the best right trace that this rank holds of each group which does not memorize."""
    best: dict[int, int] = {}
    for row, trace in scoring.thinking.items():
        group = rows.group_of(row)
        right = columns["scored"][row] > 0.5 and columns["correct"][row] > 0.5 and trace.strip()
        better = group not in best or columns["thinking"][row] > columns["thinking"][best[group]]
        if right and better and decision.mode[group] != Mode.MEMORIZE:
            best[group] = row
    traces = (
        (scoring.thinking[row], run.records[rows.records[group]], float(columns["thinking"][row]))
        for group, row in sorted(best.items())
    )
    run.supervisor.learn(traces, rows.step)


def plan(
    run: Run,
    rows: StepBatch,
    columns: dict[str, Tensor],
    decision: ModeDecision,
    live: TrainSequences,
    tokens: dict[TrainSequence, list[int]],
    table: PromptTable,
) -> TrainBatch:
    """Who trains which live rows when, and with which weight."""
    cfg = run.cfg
    lengths = {row: len(tokens[row]) if row in tokens else int(columns["length"][row.row]) for row in live.counted}
    weights = token_weights(
        live,
        lengths,
        run.normalization,
        groups=rows.num_groups - rows.extra,  # those were counted, dead, in the steps that they come from
        rows=rows.num_rows,
        max_new_tokens=cfg.rollout.max_new_tokens,
        memorize_weight=cfg.objective.memorize_weight,
    )
    placed = make_plan(
        [row.group for row in live.rows],
        [len(tokens[row]) for row in live.rows],
        table.lengths,
        table.modalities,
        run.engine.world_size,
        cfg.train.token_budget,
        first_modules=run.engine.trainable_modalities,
        share_prompt=run.family.packs_trees,
        joined=run.engine.joined,
    )
    return TrainBatch(
        placed,
        live.rows,
        weights,
        [tokens[row] for row in live.rows],
        lambda group: run.encode(rows.records[group]),
        decision.token_shaping,
        kl_share=kl_share(cfg, rows.step),
    )
