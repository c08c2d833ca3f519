"""Noisy verdicts: a share of them is turned round, the same ones whenever a cell is run again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from dyme.rollout.types import Rollout
from dyme.scoring import Scoring


def flipped(seed: int, step: int, record: str, row: int, rate: float) -> bool:
    """Whether the verdict on a row of a step is turned round: true for a share `rate` of all keys, by a hash."""
    digest = hashlib.blake2b(f"{seed}/{step}/{record}/{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < rate * 2**64


def noisy(rate: float) -> type[Scoring]:
    """A `Scoring` whose accuracy a is 1 - a in a share `rate` of the rows. Format and thinking stay as they are."""

    class NoisyScoring(Scoring):
        def _score(self, rows: tuple[int, ...], rollouts: Sequence[Rollout]) -> Any:
            part, seed = super()._score(rows, rollouts), self.scorer.cfg.run.seed
            for i, row in enumerate(part.rows):
                if flipped(seed, self.batch.step, self._record(row).id, row, rate):
                    part.checked.parts[i, 2] = 1.0 - part.checked.parts[i, 2]
            return part

    return NoisyScoring
