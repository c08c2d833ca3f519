"""Supervisor: judge, prompts, facts, refiner and template pool of a rank.

Nothing here waits longer than the judge's deadline, and no failure of a judge ends a run: without an answer in time the
score is lexical and the demonstration stays unrefined. Only `update`, `metrics` and `state_dict` are collective.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from dyme.data.record import Record
from dyme.settings.judge import JudgeConfig
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.checker import CheckRow, PendingCheck, Thinking
from dyme.supervision.facts import Facts, FactStore
from dyme.supervision.futures import Deadline, wait_for
from dyme.supervision.judge.client import open_judge
from dyme.supervision.judge.types import Answer, JudgeCounts
from dyme.supervision.judge_prompts import load_prompts
from dyme.supervision.refiner import Refined, Refiner
from dyme.supervision.templates import (
    Candidate,
    TemplatePool,
    candidate,
    read_verdicts,
    start_candidates,
    start_compare,
    write_pool,
)

JUDGE_COUNTS = ("asked", "sent", "cached", "deduplicated", "retries", "tokens_in", "tokens_out", "money")
Fate = Literal["open", "right", "wrong"]
"""Whether the rollouts of a group are known not to train, because all are right or all are wrong."""
COUNTS = (
    "facts/degraded",
    *(f"check/{name}" for name in ("judge", "both", "degraded", "skipped")),
    *(f"refine/{name}" for name in ("hint", "rules", "judge", "degraded")),
    *(f"judge/{name}" for name in JUDGE_COUNTS),
    "judge/failed",
    "wait_s",
)
"""Counts of every step: groups that lack the judge's facts, rows by the source of their thinking score, demonstrations
by their source, calls of the judge, and seconds that the step waited for it."""


class Supervisor:
    """See the module. `check` may be called from one thread beside that of the other methods."""

    def __init__(
        self,
        cfg: SupervisionConfig,
        judge: JudgeConfig,
        folder: Path,
        *,
        rank: int,
        flag: str,
        say: Callable[[str], None],
    ) -> None:
        """Raises `ConfigError` for prompts that cannot be used and for a key that is not in the environment."""
        self.cfg, self.rank, self.folder = cfg, rank, folder
        self._say, self._said = say, set[str]()
        self.deadline_s = judge.timeout_s
        prompts = load_prompts(cfg.prompts)
        self.judge = open_judge(judge, folder, say) if cfg.asks_judge else None
        self.facts = FactStore(cfg, prompts, self.judge)
        self.refiner = Refiner(self.facts, flag)
        self.pool = TemplatePool(cfg.templates.size)
        self._found: list[Candidate] = []  # by this rank, since the last update of the pool
        self._drafts: list[Future[Candidate | None]] = []
        self._compared: list[Candidate] = []  # those of all ranks, for the next pool
        self._verdicts: dict[tuple[str, str], Future[Answer]] = {}  # on them, on rank 0 only
        self._counted: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        """Of the whole run and all ranks, by the names of `COUNTS`."""
        self._before = JudgeCounts()

    @property
    def learns(self) -> bool:
        """Whether templates are learned."""
        return self.cfg.refiner != "none" and self.pool.size > 0

    def check(self, rows: Sequence[CheckRow], fate: Fate) -> PendingCheck:
        """Starts to score the thinking of rows of one group. If the group will memorize, its demonstration is started
        too, while other groups are still decoded."""
        if fate == "wrong":
            self.refiner.prefetch([rows[0].record], self.pool)
        return PendingCheck(rows, self.facts, decided=fate != "open")

    def verdicts(self, checks: Sequence[PendingCheck]) -> list[list[Thinking]]:
        """The scores of all `checks`, together within the judge's deadline."""
        limit, begin = Deadline(self.deadline_s), time.monotonic()
        out = [check.result(limit.left()) for check in checks]
        self._counted["wait_s"] += time.monotonic() - begin  # type: ignore[assignment]
        self._counted.update(f"check/{each.source}" for rows in out for each in rows)
        self._counted["facts/degraded"] += sum(check.lacks_facts for check in checks)
        return out

    def refine(self, records: Sequence[Record]) -> list[Refined]:
        """The demonstrations of `records`, together within the judge's deadline."""
        limit, begin = Deadline(self.deadline_s), time.monotonic()
        pending = [self.refiner.start(record, self.pool) for record in records]
        out = [each.result(limit.left()) for each in pending]
        self._counted["wait_s"] += time.monotonic() - begin  # type: ignore[assignment]
        self._counted.update(f"refine/{refined.source}" for refined in out)
        for record, refined in zip(records, out, strict=True):
            if refined.source == "degraded" and refined.why not in self._said:
                self._said.add(refined.why)
                self._say(f"no refined trace for record {record.id} ({refined.why}): it stays as it is (said once)")
        return out

    def prefetch(self, records: Sequence[Record], likely: Sequence[Record]) -> None:
        """Starts the work of the next step: facts of its `records`, and demonstrations of the `likely` ones."""
        if self.judge:
            self.facts.prefetch(records)
            self.refiner.prefetch(likely, self.pool)

    def learn(self, traces: Iterable[tuple[str, Record, float]], step: int) -> None:
        """Collects templates from the best right traces of groups: (trace, record, thinking score)."""
        if not self.learns:
            return
        others = []
        for trace, record, score in traces:
            facts = wait_for(self.facts.future(record), 0.0, Facts("", "none"))
            found = candidate(trace, record, facts, step, self.cfg.max_trace_chars)
            if found:
                self._found.append(found)
            else:
                others.append((trace, record, facts, score))
        if self.cfg.refiner == "judge" and step % self.cfg.templates.every == 0:  # once an update
            self._drafts += start_candidates(others, self.facts, step)

    def update(self, step: int, gather: Callable[[Any], list[Any]]) -> None:
        """Share templates; a collective through `TrainEngine.gather_json`.

        Every `templates.every` steps rank 0 decides on the candidates of the previous update, whose verdicts have
        arrived by then. All ranks take its pool and share their new candidates."""
        if not self.learns or (step + 1) % self.cfg.templates.every:
            return
        pool = self.pool.propose(self._compared, read_verdicts(self._verdicts)) if self.rank == 0 else self.pool
        changed = pool is not self.pool
        mine = [asdict(each) for each in self._take()]
        self._drafts = []  # the others had all the time between two updates
        parts = gather({"found": mine, "pool": pool.state_dict() if changed else {}})
        self.pool = self.pool.load_state_dict(parts[0]["pool"])
        self._start_compare([Candidate(**each) for part in parts for each in part["found"]])
        if changed:
            write_pool(self.folder, self.pool)

    def _take(self) -> list[Candidate]:
        """The candidates found, and the drafts that have arrived."""
        arrived = [wait_for(draft, 0.0, None) for draft in self._drafts if draft.done()]
        found = [*self._found, *(each for each in arrived if each)]
        self._found, self._drafts = [], [draft for draft in self._drafts if not draft.done()]
        return found

    def _start_compare(self, candidates: list[Candidate]) -> None:
        self._compared = candidates
        self._verdicts = start_compare(self.pool, candidates, self.facts) if self.rank == 0 else {}

    def state_dict(self, gather: Callable[[Any], list[Any]]) -> dict[str, Any]:
        """Collective. The totals, the pool and all candidates not yet in it, the same on all ranks."""
        if not self.learns:
            return {"totals": dict(self.totals)}
        self._found = self._take()
        parts = gather([asdict(each) for each in self._found])
        return {
            "totals": dict(self.totals),
            "pool": self.pool.state_dict(),
            "found": [each for part in parts for each in part],
            "compared": [asdict(each) for each in self._compared],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.totals.update(state.get("totals", {}))
        if not self.learns or "pool" not in state:
            return
        self.pool = self.pool.load_state_dict(state["pool"])
        if self.rank == 0:  # the file may be ahead of the checkpoint
            write_pool(self.folder, self.pool)
        self._found = [Candidate(**each) for each in state["found"]] if self.rank == 0 else []
        self._start_compare([Candidate(**each) for each in state["compared"]])

    def metrics(self, reduce: Callable[[Sequence[float]], list[float]], ranks: int) -> dict[str, float]:
        """Collective. The counts since the last call, over all ranks, and the version of the pool; {} for the lexical
        checker alone."""
        if not self.cfg.on:
            return {}
        if self.judge:
            now, before = self.judge.counts(), self._before
            for name in JUDGE_COUNTS:
                self._counted[f"judge/{name}"] += getattr(now, name) - getattr(before, name)
            self._counted["judge/failed"] += sum(now.failed.values()) - sum(before.failed.values())
            self._before = now
        step = dict(zip(COUNTS, reduce([float(self._counted[name]) for name in COUNTS]), strict=True))
        step["wait_s"] /= ranks
        self._counted.clear()
        self.totals.update(step)
        waited = {"time/judge": step.pop("wait_s"), "supervision/templates": float(self.pool.version)}
        return {f"supervision/{name}": value for name, value in step.items()} | waited

    def close(self) -> None:
        self.facts.close()
        if self.judge:
            self.judge.close()
