"""Task arithmetic: sums and differences of two or three numbers, as text. Stage 2 sees numbers up to 9."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from benchmarks.suite.task import Sizes, Split, Task, Tree, asks_for_facts, every_trace, jsonl, split_of
from dyme.data import Record

SMALL, LARGE = (1, 9), (10, 19)
STEPS = " step by step."
PATIENCE = 2000  # draws in a row that bring nothing new: there is no other problem
_EQUATION = re.compile(r"(\d+) ([+-]) (\d+) = (-?\d+)")


def rows(
    count: int, stream: str, split: str, numbers: tuple[int, int], trace: str, noise: float, again: bool = False
) -> list[Tree]:
    """`count` problems whose numbers lie in a range, or as many as there are, each once unless they may come `again`.
    A problem is in one of "train" and "test" only."""
    rng, trace_rng = random.Random(stream), random.Random(f"{stream}/trace")
    out: list[Tree] = []
    drawn = set[str]()
    misses = 0
    while len(out) < count and misses < PATIENCE:
        misses += 1
        first, *terms = [rng.randint(*numbers) for _ in range(rng.randint(2, 3))]
        steps = list(zip([rng.choice("+-") for _ in terms], terms))
        question = str(first) + "".join(f" {sign} {term}" for sign, term in steps)
        totals = list(accumulate((int(f"{sign}{term}") for sign, term in steps), initial=first))
        if min(totals) < 0 or _split(question) != split or (question in drawn and not again):
            continue
        drawn.add(question)
        misses = 0
        out.append(
            {
                "id": f"{split}-{len(out):06d}",
                "question": f"{question} = ?",
                "answer": str(totals[-1]),
                "facts": ", ".join(_equations(first, steps)),
                "hint": write_trace(first, steps, totals[-1], trace, noise, trace_rng),
                "kind": f"{len(totals)} numbers",
            }
        )
    return out


def write_trace(
    first: int, steps: Sequence[tuple[str, int]], answer: int, quality: str, noise: float, rng: random.Random
) -> str:
    """The trace of a problem; a low one takes a wrong step with probability `noise` and ends in the right answer."""
    lines = _equations(first, steps)
    if quality == "high":
        return "".join(f"step: {line}. " for line in lines) + f"so: {answer}."
    if quality == "medium":
        return f"{' and '.join(lines)} so {answer}"
    if rng.random() < noise:
        lines = _equations(first, steps, wrong=rng.randrange(len(steps)))
    link = f" {rng.choice(('then', 'maybe', 'and also'))} "
    return f"{rng.choice(('well', 'hmm', 'ok'))} {link.join(lines)} {rng.choice(('i guess', 'probably'))} {answer}"


def check(thinking: str, record: Record) -> tuple[int, int]:
    """Equations that hold, and all of them."""
    found = [match.groups() for match in _EQUATION.finditer(thinking)]
    held = [int(a) + int(b) == int(c) if sign == "+" else int(a) - int(b) == int(c) for a, sign, b, c in found]
    return sum(held), len(held)


def _equations(first: int, steps: Sequence[tuple[str, int]], wrong: int | None = None) -> list[str]:
    out, total = [], first
    for i, (sign, term) in enumerate(steps):
        before = total
        total = (total + term if sign == "+" else total - term) + (1 if i == wrong else 0)
        out.append(f"{before} {sign} {term} = {total}")
    return out


def _split(question: str) -> str:
    return "test" if hashlib.sha256(question.encode()).digest()[0] % 5 == 0 else "train"


def _base(folder: Path, steps: int, prompts: int) -> Tree:
    count = steps * prompts

    def mixed() -> list[Tree]:
        """Half of them small numbers: among all few problems have none but those. A part is asked for its steps, as
        other bases are for what a picture shows."""
        parts = [
            rows(count // 2, "base", "train", numbers, "high", 0.0, True) for numbers in (SMALL, (SMALL[0], LARGE[1]))
        ]
        rng, out = random.Random("base/steps"), []
        for i, row in enumerate(row for pair in zip(*parts) for row in pair):
            steps_asked = {"question": row["question"].replace(" = ?", STEPS), "answer": row["facts"]}
            told = steps_asked if asks_for_facts(i, count, rng) else {}
            out.append({**row, **told, "id": f"base-{i:06d}"})
        return out

    return jsonl(folder / f"arithmetic-base-steps-{count}.jsonl", mixed)


def _train(folder: Path, count: int, seed: int, trace: str, noise: float) -> Tree:
    path = folder / f"arithmetic-train-{seed}-{trace}-{noise}-{count}.jsonl"
    return jsonl(path, lambda: rows(count, f"train-{seed}", "train", SMALL, trace, noise))


def _held_out(folder: Path, sizes: Sizes) -> Mapping[str, Split]:
    def split(name: str, count: int, part: str, numbers: tuple[int, int]) -> Split:
        return split_of(folder, "arithmetic", name, count, lambda: rows(count, name, part, numbers, "high", 0.0))

    return {
        "validation": split("validation", sizes.validation, "train", SMALL),
        "test": split("test", sizes.test, "test", SMALL),
        "ood larger numbers": split("larger", sizes.ood, "test", LARGE),
    }


ARITHMETIC = Task(
    "arithmetic", _base, _train, _held_out, every_trace(_train), family="causal_lm", max_new_tokens=56, check=check
)
