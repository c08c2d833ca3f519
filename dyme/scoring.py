"""Scoring: the completions of a step are scored group by group as they come out of the rollout, in a thread beside it.

What a thread of ours costs the loop that starts the decoding, it saves after it; reward functions and judges that wait
for others cost it nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from dyme.config import RunConfig
from dyme.data import Record
from dyme.families import Family
from dyme.prompts import prompt_text
from dyme.rewards.calls import Failures, Per, Started, UserRewards
from dyme.rewards.compose import Checked, Scores, UserScores, check, compose
from dyme.rewards.user import pictures, reward_columns
from dyme.rollout.types import Rollout
from dyme.sampler import StepBatch
from dyme.selectors import needs_of
from dyme.supervision.checker import CheckRow, PendingCheck
from dyme.supervision.supervisor import Fate, Supervisor


@dataclass(frozen=True)
class Scorer:
    """What scores the completions of a run, the same in every step. `background("scoring")` is entered around the work
    of the thread; failures of verifiers and rewards are noted in `failures`."""

    cfg: RunConfig
    family: Family
    user_rewards: UserRewards
    supervisor: Supervisor
    failures: Failures
    background: Callable[[str], AbstractContextManager[None]]
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "scoring"))


@dataclass(frozen=True)
class _Part:
    """What is known of the rows of a group: their texts, format and accuracy, and what is under way."""

    rows: tuple[int, ...]
    texts: tuple[str, ...]
    checked: Checked
    thinking: PendingCheck
    calls: Started | None
    """None where the functions are not known to be harmless: they are called when nothing is decoded any more."""


class Scoring:
    """The scores of this rank's rows in a step. A group, or what this rank holds of it, is scored when its last row
    `finished`."""

    def __init__(self, scorer: Scorer, records: Sequence[Record], batch: StepBatch) -> None:
        """`records`: those of the run, into which the batch has indices."""
        self.scorer, self.records, self.batch = scorer, records, batch
        self.rollouts: dict[int, Rollout] = {}
        self.thinking: dict[int, str] = {}
        """What each row thought; known with the result."""
        self._waiting: dict[int, list[int]] = {}
        self._left: Counter[int] = Counter()
        self._parts: list[Future[_Part]] = []
        scorer.user_rewards.begin()

    def expect(self, rows: Iterable[int]) -> None:
        """Names the rows that will have a completion, before the first one has."""
        waiting = defaultdict[int, list[int]](list)
        for row in rows:
            waiting[self.batch.group_of(row)].append(row)
        self._waiting = dict(waiting)
        self._left = Counter({group: len(members) for group, members in waiting.items()})

    def finished(self, row: int, rollout: Rollout) -> None:
        """Called from the rollout; returns at once."""
        self.rollouts[row] = rollout
        group = self.batch.group_of(row)
        self._left[group] -= 1
        if not self._left[group]:
            members = tuple(self._waiting.pop(group))
            given = [self.rollouts[member] for member in members]
            self._parts.append(self.scorer.thread.submit(self._score, members, given))

    def _score(self, rows: tuple[int, ...], rollouts: Sequence[Rollout]) -> _Part:
        scorer, cfg = self.scorer, self.scorer.cfg
        with scorer.background("scoring"):
            texts = tuple(scorer.family.decode(rollout.tokens) for rollout in rollouts)
            calls = self._call("group", rows, texts) if scorer.user_rewards.harmless else None
            record = self._record(rows[0])
            checked = check(
                texts,
                [record] * len(rows),
                truncated=[rollout.truncated for rollout in rollouts],
                config=cfg.reward,
                flag=cfg.prompt.answer_flag,
            )
            valid = checked.parts[:, 0] > 0.5
            traces = [CheckRow(record, trace, ok) for trace, ok in zip(checked.thinking, valid.tolist(), strict=True)]
            return _Part(rows, texts, checked, scorer.supervisor.check(traces, self._fate(checked)), calls)

    def _fate(self, checked: Checked) -> Fate:
        """Whether the accuracy of rows of a group says already that none of them will train. It says nothing of a group
        that spans ranks, nor where answers are right in part: these may differ and so explore."""
        cfg = self.scorer.cfg
        s = checked.parts[:, 0] * checked.parts[:, 2]
        needs = needs_of(cfg.method, cfg.selector)
        if len(s) < self.batch.group_size:
            return "open"
        if (s == 1.0).all() and not needs.trains_solved:
            return "right"
        return "wrong" if (s == 0.0).all() and not needs.trains_unsolved else "open"

    def _call(self, per: Per, rows: Sequence[int], texts: Sequence[str]) -> Started:
        """Starts the user's reward functions. No collective inside, so a slow one delays the others at the next gather
        only."""
        cfg = self.scorer.cfg
        records = [self._record(row) for row in rows]
        columns = reward_columns(
            [prompt_text(record, cfg.prompt) for record in records],
            texts,
            records,
            completion_ids=[self.rollouts[row].tokens for row in rows],
            truncated=[self.rollouts[row].truncated for row in rows],
            flag=cfg.prompt.answer_flag,
            step=self.batch.step,
            max_steps=cfg.train.max_steps,
        )
        return self.scorer.user_rewards.start(columns, lambda: pictures(records), len(texts), per)

    def result(self) -> tuple[list[int], Scores, UserScores]:
        """Rows with a completion in ascending order, and their scores, float64 [R] each. Waits for what is under way
        and notes the failures of verifiers and rewards."""
        scorer = self.scorer
        parts = [part.result() for part in self._parts]
        rows = sorted(self.rollouts)
        order = np.argsort(np.array([row for part in parts for row in part.rows], dtype=np.int64))
        texts = {row: text for part in parts for row, text in zip(part.rows, part.texts, strict=True)}
        weights = [reward.weight.at(self.batch.step) for reward in scorer.cfg.reward.user]
        whole = self._call("step", rows, [texts[row] for row in rows]).outcome(weights)
        calls = [part.calls or self._call("group", part.rows, part.texts) for part in parts]
        groups = [call.outcome(weights) for call in calls]
        scorer.user_rewards.end()
        for part, outcome in zip(parts, groups, strict=True):
            told = {f"verifier: {kind}": example for kind, example in part.checked.examples.items()}
            scorer.failures.note({f"verifier: {kind}": count for kind, count in part.checked.errors.items()}, told)
            scorer.failures.note(outcome.errors, outcome.examples)
        scorer.failures.note(whole.errors, whole.examples)
        user = whole.scores
        of_groups = [reward.per == "group" for reward in scorer.user_rewards.rewards]
        if parts and any(of_groups):
            for name in ("values", "failed"):
                column = np.concatenate([getattr(outcome.scores, name) for outcome in groups])[order]
                getattr(user, name)[:, of_groups] = column[:, of_groups]
        for part, thinking in zip(parts, scorer.supervisor.verdicts([part.thinking for part in parts]), strict=True):
            part.checked.parts[:, 1] = [each.score or 0.0 for each in thinking]
        checked = np.concatenate([np.zeros((0, 3)), *(part.checked.parts for part in parts)])[order]
        traces = [trace for part in parts for trace in part.checked.thinking]
        self.thinking = {rows[i]: traces[at] for i, at in enumerate(order)}
        return rows, compose(Checked(checked, (), {}), scorer.cfg.reward, user), user

    def _record(self, row: int) -> Record:
        return self.records[self.batch.records[self.batch.group_of(row)]]
