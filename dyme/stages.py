"""Stages: the parts of a step before the update. Each takes the run and the step's rows; what leaves a rank is
gathered here."""

from __future__ import annotations

import torch

from dyme.cursor import StepRows
from dyme.objective import LiveRow
from dyme.prompts import has_reference, reply_text
from dyme.rewards.compose import score as score_completions
from dyme.rollout import Rollout, RolloutRow, generate, row_key
from dyme.run import Run
from dyme.selection import GroupStats, ModeDecision, group_stats, memorize_all
from dyme.signals import COLUMNS


def prompts(run: Run, rows: StepRows) -> tuple[torch.Tensor, list[int], list[frozenset[str]]]:
    """Encodes this rank's prompts; gathers of every group whether it is readable, its expanded length and its
    modalities."""
    owned = rows.owned(run.engine.rank)
    names = sorted(run.family.modalities)
    local = torch.zeros(len(owned), 1 + len(names), dtype=torch.float64)
    for i, group in enumerate(owned):
        prompt = run.encode(rows.records[group])
        if prompt is not None:
            local[i] = torch.tensor([len(prompt), *(name in prompt.modalities for name in names)])
    counts = [len(rows.owned(rank)) for rank in range(run.engine.world_size)]
    table = run.engine.gather_rows(local, counts)
    modalities = [frozenset(n for n, held in zip(names, row[1:]) if held) for row in table.tolist()]
    return table[:, 0] > 0, [int(n) for n in table[:, 0]], modalities


def rollout(run: Run, rows: StepRows, step: int) -> dict[int, Rollout]:
    """Completions of this rank's rows, without those whose prompt could not be encoded."""
    requests = {}
    for row in rows.rows(run.engine.rank):
        record = rows.records[rows.group_of(row)]
        prompt = run.encode(record)
        if prompt is not None:
            key = row_key(run.cfg.run.seed, step, run.records[record].id, row % rows.group_size)
            requests[row] = RolloutRow(prompt, key)
    return dict(
        zip(requests, generate(run.family, run.engine.refresh(), list(requests.values()), run.sampling), strict=True)
    )


def score(run: Run, rows: StepRows, rollouts: dict[int, Rollout]) -> torch.Tensor:
    """The columns of `signals.COLUMNS` for this rank's rows; rows without a completion are unscored."""
    table = torch.zeros(len(rows.rows(run.engine.rank)), len(COLUMNS), dtype=torch.float64)
    scores = score_completions(
        [run.family.decode(r.tokens) for r in rollouts.values()],
        [run.records[rows.records[rows.group_of(row)]] for row in rollouts],
        truncated=[r.truncated for r in rollouts.values()],
        config=run.cfg.reward,
        flag=run.cfg.prompt.answer_flag,
    )
    run.count_errors(scores.errors)
    first = rows.starts[run.engine.rank]
    for i, (row, rollout) in enumerate(rollouts.items()):
        parts = [
            float(a[i])
            for a in (scores.format, scores.thinking, scores.accuracy, scores.reward, scores.correct, scores.scored)
        ]
        table[row - first] = torch.tensor([*parts, rollout.truncated, len(rollout.tokens), not rollout.truncated])
    return table


def select(
    run: Run, rows: StepRows, columns: dict[str, torch.Tensor], readable: torch.Tensor, step: int
) -> tuple[ModeDecision, GroupStats | None]:
    """The mode of every group, from gathered numbers alone."""
    memorize = run.cfg.memorize.on_missing_trace
    reference = (
        torch.tensor([has_reference(run.records[i], memorize, run.cfg.prompt.style) for i in rows.records]) & readable
    )
    if not columns:
        return memorize_all(reference), None
    scored = (columns["scored"] > 0.5) & readable.repeat_interleave(rows.group_size)
    stats = group_stats(
        columns["reward"],
        columns["correct"],
        columns["format"],
        scored,
        reference,
        torch.tensor(rows.offsets),
        run.cfg.objective.scale,
    )
    return run.selector(step).select(stats, step / run.cfg.train.max_steps), stats


def exchange(
    run: Run, rows: StepRows, rollouts: dict[int, Rollout], live: tuple[LiveRow, ...]
) -> dict[LiveRow, list[int]]:
    """Token ids of the live rows, from the ranks that hold them to all ranks."""
    engine = run.engine
    starts = rows.starts

    def holder(row: LiveRow) -> int:
        return (
            rows.owner(row.group)
            if row.memorize
            else next(r for r in range(engine.world_size) if row.row < starts[r + 1])
        )

    mine = [list(_tokens(run, rows, rollouts, row)) for row in live if holder(row) == engine.rank]
    gathered = [iter(part) for part in engine.gather_tokens(mine)]
    return {row: next(gathered[holder(row)]) for row in live}


def _tokens(run: Run, rows: StepRows, rollouts: dict[int, Rollout], row: LiveRow) -> list[int] | tuple[int, ...]:
    if not row.memorize:
        return rollouts[row.row].tokens
    record = run.records[rows.records[row.group]]
    return run.family.encode_reply(reply_text(record, run.cfg.prompt, run.refine(record)))
