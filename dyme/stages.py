"""Stages: the parts of a step before the update. Each takes what it needs of the run and the step's batch; what leaves
a rank is gathered here.

`records` are always those of the run, into which `StepBatch.records` has indices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dyme.batching.objective import TrainSequence, TrainSequences, kl_share, resolve, token_weights, train_sequences
from dyme.batching.plan import make_plan
from dyme.config import RunConfig
from dyme.data import Record
from dyme.engine.train_engine import TrainEngine
from dyme.engine.update import TrainBatch
from dyme.metrics.columns import RolloutColumns, gather_columns, place_rows, rollout_columns
from dyme.metrics.step_metrics import group_entropy
from dyme.position import Position
from dyme.prompts import PromptCache, has_demonstration, reply_text
from dyme.rewards.length import add_length_reward
from dyme.rollout.engine import RolloutEngine
from dyme.rollout.noise import row_key
from dyme.rollout.types import Rollout, RolloutRequest, sampling_of
from dyme.sampler import StepBatch, batch_at, makes_rollouts
from dyme.scoring import Scorer, Scoring
from dyme.selectors.base import (
    GroupStats,
    Mode,
    ModeDecision,
    ModeSelector,
    agree,
    group_stats,
    memorize_all,
    with_extra,
)
from dyme.settings.prompt import PromptConfig
from dyme.supervision.supervisor import Supervisor


@dataclass(frozen=True)
class PromptTable:
    """Of every group of the step, on all ranks: whether its prompt could be encoded (bool [G]), its expanded length and
    its modalities."""

    readable: Tensor
    lengths: list[int]
    modalities: list[frozenset[str]]


def prefetch(
    cfg: RunConfig,
    engine: TrainEngine,
    cache: PromptCache,
    supervisor: Supervisor,
    position: Position,
    records: Sequence[Record],
    step: int,
) -> None:
    """Starts to encode the prompts that this rank needs in `step`, which `PromptCache.advance` takes, and the facts and
    demonstrations that its judge is to give. Nothing after the last step."""
    if step >= cfg.train.max_steps:
        return
    # made now: a micro-batch that needs an anchor would use the processor beside the cache
    _ = engine.family.anchors
    batch = batch_at(cfg, step, len(records), engine.world_size)
    groups = batch.groups_of(engine.rank)
    needed = [records[batch.records[group]] for group in groups]
    cache.prefetch(needed)
    owned = [record for group, record in zip(groups, needed) if batch.owner(group) == engine.rank]
    explores = makes_rollouts(cfg, step)
    likely = [record for record in owned if not explores or position.likely_memorized(record, batch.epoch)]
    supervisor.prefetch(needed, likely)


def prompts(
    engine: TrainEngine, cache: PromptCache, records: Sequence[Record], batch: StepBatch, first: int = 0
) -> PromptTable:
    """Encodes the prompts this rank owns, from group `first` on, and gathers what a plan has to know of them."""
    owners = [[group for group in batch.owned(rank) if group >= first] for rank in range(engine.world_size)]
    owned = owners[engine.rank]
    names = sorted(engine.family.modalities)
    local = torch.zeros(len(owned), 1 + len(names), dtype=torch.float64)
    for i, group in enumerate(owned):
        prompt = cache.encode(records[batch.records[group]])
        if prompt is not None:
            local[i] = torch.tensor([len(prompt), *(name in prompt.modalities for name in names)])
    table = engine.gather_rows(local, [len(groups) for groups in owners]).cpu()
    modalities = [frozenset(n for n, held in zip(names, row[1:]) if held) for row in table.tolist()]
    return PromptTable(table[:, 0] > 0, [int(n) for n in table[:, 0]], modalities)


def rollout(
    cfg: RunConfig,
    engine: RolloutEngine,
    cache: PromptCache,
    records: Sequence[Record],
    batch: StepBatch,
    rank: int,
    scoring: Scoring,
) -> dict[int, Rollout]:
    """Completions of this rank's rows, without those whose prompt could not be encoded. `scoring` gets them as they
    finish."""
    requests = {}
    for row in batch.rows(rank):
        record = records[batch.records[batch.group_of(row)]]
        prompt = cache.encode(record)
        if prompt is not None:
            key = row_key(cfg.run.seed, batch.step, record.id, row % batch.group_size)
            requests[row] = RolloutRequest(prompt, key)
    asked = list(requests)
    scoring.expect(asked)
    engine.update_weights()
    rollouts = engine.generate(
        list(requests.values()),
        sampling_of(cfg.rollout),
        lambda i, rollout: scoring.finished(asked[i], rollout),
    )
    return dict(zip(asked, rollouts, strict=True))


def score(batch: StepBatch, rank: int, scoring: Scoring) -> dict[str, Tensor]:
    """The `rollout_columns` of this rank's rows, float64 [n] each; rows without a completion are unscored."""
    finished, scores, user = scoring.result()
    rollouts = [scoring.rollouts[row] for row in finished]
    columns = rollout_columns(rollouts, scores, user, scoring.scorer.user_rewards.titles)
    mine = batch.rows(rank)
    return place_rows(columns, [row - mine.start for row in finished], len(mine))


def gather(
    engine: TrainEngine,
    scorer: Scorer,
    records: Sequence[Record],
    batch: StepBatch,
    local: Mapping[str, Tensor],
    say: Callable[[str], None],
) -> RolloutColumns:
    """The columns of all ranks on the engine's device, rows in the step's order, with the kinds of their records.
    Errors are gathered, and said, where the columns, which are the same on all ranks, have any."""
    kinds = tuple(records[batch.records[batch.group_of(row)]].kind for row in range(batch.num_rows))
    columns = RolloutColumns(gather_columns(engine.gather_rows, local, batch.counts), kinds)
    if columns.any_failed:
        scorer.failures.share(engine.gather_json, say)
    reward = scorer.cfg.reward
    if not (reward.length.start or reward.length.end):
        return columns
    weight = reward.length.at(batch.step)
    values = add_length_reward(columns.values, weight, batch.offsets, require_format=reward.require_format)
    return RolloutColumns(values, kinds)


def select(
    cfg: RunConfig,
    engine: TrainEngine,
    selector: ModeSelector,
    records: Sequence[Record],
    batch: StepBatch,
    columns: RolloutColumns,
    table: PromptTable,
) -> tuple[ModeDecision, GroupStats | None]:
    """The mode of every group, from gathered numbers alone, by rank 0's statistics on all ranks. Without rollouts every
    demonstration is memorized."""
    given = [has_demonstration(records[i], cfg.memorize.on_missing_trace, cfg.prompt.style) for i in batch.records]
    demonstrated = torch.tensor(given) & table.readable
    if not columns:
        return memorize_all(demonstrated), None
    readable = table.readable.repeat_interleave(batch.group_size).to(columns["scored"].device)
    scored = (columns["scored"] > 0.5) & readable
    offsets = torch.tensor(batch.offsets)
    stats = group_stats(
        columns["reward"], columns["correct"], columns["format"], scored, demonstrated, offsets, cfg.objective.scale
    )
    entropy = group_entropy(columns.on_host(), batch.offsets)
    stats = agree(replace(stats, records=batch.records, step=batch.step, entropy=entropy), engine.broadcast)
    return selector.select(stats, batch.step / cfg.train.max_steps), stats


def join_extra(
    engine: TrainEngine,
    cache: PromptCache,
    records: Sequence[Record],
    batch: StepBatch,
    table: PromptTable,
    decision: ModeDecision,
) -> tuple[StepBatch, PromptTable, ModeDecision]:
    """The step with the records that the selector names besides its groups: groups without rollouts, which memorize.
    One more gather, in steps that have any."""
    count = len(decision.extra_records)
    if not count:
        return batch, table, decision
    own = batch.num_groups
    batch = replace(batch, records=batch.records + decision.extra_records, extra=count)
    more = prompts(engine, cache, records, batch, own)
    table = PromptTable(
        torch.cat([table.readable, more.readable]), table.lengths + more.lengths, table.modalities + more.modalities
    )
    return batch, table, with_extra(decision, more.readable)


def sequences(
    cfg: RunConfig,
    batch: StepBatch,
    columns: RolloutColumns,
    decision: ModeDecision,
    stats: GroupStats | None,
) -> TrainSequences:
    """The completions and demonstrations that train under the decision."""
    spec, _ = resolve(cfg)
    keep_zero = spec.entropy_coef != 0 or spec.beta != 0
    if stats is None:
        nothing = torch.zeros(batch.num_rows, dtype=torch.float64)
        return train_sequences(decision, nothing, nothing > 0, batch.offsets, keep_zero=keep_zero)
    trains = columns["scored"] > 0.5
    if cfg.rollout.truncated == "mask":
        trains &= columns["truncated"] < 0.5
    return train_sequences(decision, stats.advantages, trains, batch.offsets, keep_zero=keep_zero)


def refine(
    supervisor: Supervisor, records: Sequence[Record], batch: StepBatch, rank: int, sequences: TrainSequences
) -> dict[int, str | None]:
    """The demonstrations, as traces, of the groups that memorize and whose record this rank holds."""
    groups = [each.group for each in sequences.trained if each.memorize and batch.owner(each.group) == rank]
    refined = supervisor.refine([records[batch.records[group]] for group in groups])
    return {group: each.trace for group, each in zip(groups, refined, strict=True)}


def exchange(
    prompt: PromptConfig,
    engine: TrainEngine,
    records: Sequence[Record],
    batch: StepBatch,
    rollouts: Mapping[int, Rollout],
    demonstrations: Mapping[int, str | None],
    sequences: TrainSequences,
    say: Callable[[str], None] = lambda line: None,
) -> dict[TrainSequence, list[int]]:
    """Token ids of the sequences that train, from the ranks that hold them to all ranks. A demonstration that cannot be
    encoded is said on its rank and missing in the result on all."""

    def holder(each: TrainSequence) -> int:
        if each.memorize:
            return batch.owner(each.group)
        return next(r for r in range(engine.world_size) if each.completion < batch.starts[r + 1])

    def tokens(each: TrainSequence) -> Sequence[int]:
        if not each.memorize:
            return rollouts[each.completion].tokens
        record = records[batch.records[each.group]]
        try:
            return engine.family.encode_reply(reply_text(record, prompt, demonstrations[each.group]))
        except Exception as error:  # an edge: whatever a tokenizer trips over, it costs this demonstration only
            say(f"demonstration of record {record.id} left out: {type(error).__name__}: {error}")
            return []

    mine = [list(tokens(each)) for each in sequences.trained if holder(each) == engine.rank]
    gathered = [iter(part) for part in engine.gather_tokens(mine)]
    tokens_of = {each: next(gathered[holder(each)]) for each in sequences.trained}
    return {each: ids for each, ids in tokens_of.items() if ids or not each.memorize}


def plan(
    cfg: RunConfig,
    engine: TrainEngine,
    cache: PromptCache,
    records: Sequence[Record],
    batch: StepBatch,
    columns: RolloutColumns,
    decision: ModeDecision,
    sequences: TrainSequences,
    tokens: Mapping[TrainSequence, list[int]],
    table: PromptTable,
) -> TrainBatch:
    """Who trains which sequences when, and with which weight."""
    _, normalization = resolve(cfg)
    lengths = {
        each: len(tokens[each]) if each in tokens else int(columns["length"][each.completion])
        for each in sequences.counted
    }
    weights = token_weights(
        sequences,
        lengths,
        normalization,
        groups=batch.num_groups - batch.extra,  # those were counted, dead, in the steps that they come from
        rows=batch.num_rows,
        max_new_tokens=cfg.rollout.max_new_tokens,
        memorize_weight=cfg.objective.memorize_weight,
    )
    placed = make_plan(
        [each.group for each in sequences.trained],
        [len(tokens[each]) for each in sequences.trained],
        table.lengths,
        table.modalities,
        engine.world_size,
        cfg.train.token_budget,
        first_modules=engine.trainable_modalities,
        share_prompt=engine.family.packs_trees,
        joined=engine.joined,
    )
    return TrainBatch(
        placed,
        sequences.trained,
        weights,
        [tokens[each] for each in sequences.trained],
        lambda group: cache.encode(records[batch.records[group]]),
        decision.token_shaping,
        kl_share=kl_share(cfg, batch.step),
    )


def learn(
    supervisor: Supervisor,
    records: Sequence[Record],
    batch: StepBatch,
    columns: RolloutColumns,
    decision: ModeDecision,
    thinking: Mapping[int, str],
) -> None:
    """Templates from the best right trace that this rank holds of each group which does not memorize. `thinking`: of
    this rank's rows."""
    best: dict[int, int] = {}
    for row, trace in thinking.items():
        group = batch.group_of(row)
        right = columns["scored"][row] > 0.5 and columns["correct"][row] > 0.5 and trace.strip()
        better = group not in best or columns["thinking"][row] > columns["thinking"][best[group]]
        if right and better and decision.mode[group] != Mode.MEMORIZE:
            best[group] = row
    traces = (
        (thinking[row], records[batch.records[group]], float(columns["thinking"][row]))
        for group, row in sorted(best.items())
    )
    supervisor.learn(traces, batch.step)
