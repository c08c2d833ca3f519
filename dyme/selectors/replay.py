"""Replay: the modes that another run wrote into its modes.jsonl (`run.modes`), by step and record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dyme.data.paths import expand
from dyme.selectors.base import GroupStats, Mode, ModeDecision, Reason, SelectorKind, decide
from dyme.settings.errors import ConfigError
from dyme.text.json_lines import read_jsonl


class Replay:
    """The recorded decisions for the same records in the same steps, whatever this run's rewards are: what the rule of
    another run is worth apart from the model that it was applied to. Two rules hold all the same (`decide`): two scored
    rows to train, a reference to memorize. Nothing of it is published; there is nothing to leave open."""

    def __init__(self, path: Path) -> None:
        """Raises `ConfigError` for a file that does not hold modes."""
        if not path.is_file():
            raise ConfigError(f"selector.path: {path} does not exist: record a run with run.modes=true")
        try:
            self.path, self.steps = path, {line["step"]: line for line in read_jsonl(path) if line["mode"]}
        except (KeyError, ValueError) as error:
            raise ConfigError(f"selector.path: {path} is not the modes.jsonl of a run ({error})") from error

    def select(self, stats: GroupStats, progress: float) -> ModeDecision:
        line = self.steps.get(stats.step + 1)
        if line is None:
            raise ConfigError(f"selector.path: {self.path} has no step {stats.step + 1}: record as many steps")
        own = len(line["record"]) - line["extra"]
        place = {record: i for i, record in enumerate(line["record"][:own])}
        if other := next((record for record in stats.records if record not in place), None):
            raise ConfigError(
                f"selector.path: step {stats.step + 1} of {self.path} has no record number {other}: the same data, "
                "run.seed and rollout.prompts_per_step are needed"
            )
        order = [place[record] for record in stats.records]
        weights = {
            key: torch.tensor([line[key][i] for i in order], dtype=torch.float64) for key in ("rl_weight", "sft_weight")
        }
        decision = decide(
            torch.tensor([int(Mode[line["mode"][i]]) for i in order]),
            torch.full((len(stats),), int(Reason.RULE)),
            stats,
            token_shaping=line["token_shaping"],
            **weights,
        )
        return replace(decision, extra_records=tuple(line["record"][own:]))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What another selector kept is in the recorded modes."""


SELECTORS = {"replay": SelectorKind(lambda c: Replay(expand(c.path or "")))}
