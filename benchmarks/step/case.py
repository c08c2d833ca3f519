"""What a step benchmark runs: its sizes, its regimes, its records and its scripted reward. Everybody gets the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REGIMES = {"all wrong": 0.0, "30 % mixed": 0.3, "all mixed": 1.0}
"""Share of the groups in which some rows are right and some wrong; in all others every row is wrong."""
WARM_UP = 1
RIGHT = 3.0  # format, thinking and accuracy, each with weight 1


@dataclass(frozen=True)
class Case:
    """model: a name in benchmarks.checkpoints. pictures: width and height, in turn. tokens: of a prompt with
    its picture, 0 for whatever a short question takes. new_tokens: of every reply, and about those of a reference.
    shares: of mixed groups, one block of records each. budget: padded tokens of our micro-batches; micro_rows: rows of
    TRL's. repeats: timed steps of each share. checkpointing: of activations, for everybody."""

    model: str
    dtype: str
    pictures: tuple[tuple[int, int], ...]
    tokens: int
    prompts: int = 10
    group_size: int = 8
    new_tokens: int = 256
    shares: tuple[float, ...] = tuple(REGIMES.values())
    budget: int = 8192
    micro_rows: int = 8
    repeats: int = 3
    checkpointing: bool = False

    @property
    def steps(self) -> int:
        """Step s (from 0) trains block s modulo the number of shares; the first `WARM_UP` of each are not timed."""
        return len(self.shares) * (WARM_UP + self.repeats)

    def share(self, step: int) -> float:
        return self.shares[step % len(self.shares)]


def mixed_groups(case: Case, share: float) -> int:
    return round(share * case.prompts)


def write_records(case: Case, folder: Path) -> Path:
    """One block of records for each share, with the same questions and pictures: records.jsonl, its first
    `mixed_groups` of a block marked mixed. The id of a record says what the script does with it."""
    from benchmarks.rollout.workload import checkpoint, picture, question
    from dyme.families import open_family

    family = open_family(checkpoint(case.model, folder / "checkpoints"))
    place = folder / f"records-{digest(case.__dict__)}"
    place.mkdir(parents=True, exist_ok=True)
    items = []
    for n in range(case.prompts):
        image = picture(case.pictures[n % len(case.pictures)], n)
        image.save(place / f"{n}.png")
        items.append((question(family, n, image, case.tokens), _trace(family, case.new_tokens)))
    path = place / "records.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for block, share in enumerate(case.shares):
            for n, (text, trace) in enumerate(items):
                name = f"{'mixed' if n < mixed_groups(case, share) else 'wrong'}-{block}-{n}"
                row = {"id": name, "question": text, "answer": "4", "hint": trace, "image": f"{n}.png"}
                file.write(json.dumps(row) + "\n")
    return path


def _trace(family: Any, tokens: int) -> str:
    """A trace that makes a reference of about as many tokens as a reply."""
    empty = len(family.encode_reply("x\nAnswer: 4"))
    per_word = (len(family.encode_reply("x" + " bar" * 20 + "\nAnswer: 4")) - empty) / 20
    return "x" + " bar" * max(0, int((tokens - empty) / per_word))


def scripted(ids: Sequence[str]) -> list[float]:
    """The reward of every row from its record's id: in a mixed group every second row is right, from the first on."""
    seen: Counter[str] = Counter()
    rewards = []
    for name in ids:
        right = name.startswith("mixed") and seen[name] % 2 == 0
        rewards.append(RIGHT if right else 0.0)
        seen[name] += 1
    return rewards


@dataclass
class Counts:
    """What one step ran. rows, tokens: through forward and backward, prompts included, without padding; padded_tokens:
    with it. train_sequences: rows with a gradient. prompts: token ids of each prompt; reply_tokens: of all rollouts."""

    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    train_sequences: int = 0
    reply_tokens: int = 0
    prompts: tuple[tuple[int, ...], ...] = ()

    def as_dict(self, rollouts: int) -> dict[str, Any]:
        """live_fraction: of the step's rollouts' number."""
        named = {name: value for name, value in self.__dict__.items() if name != "prompts"}
        data = {"data": digest(self.prompts), "prompt_tokens": [len(ids) for ids in self.prompts]}
        return {**named, **data, "live_fraction": self.train_sequences / rollouts}


def digest(value: Any) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=6).hexdigest()
