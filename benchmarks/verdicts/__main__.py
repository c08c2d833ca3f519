"""Where our verifiers differ from the published metrics, on gold answers of real sets that were changed in set ways.

    python -m benchmarks.verdicts [--out FILE] [--per-set 400] [--docs docs/rewards.md]

Both sides get the same answers: each gold answer as it is, with markup, units and other layouts, near to it in value,
wrong, and as one of two. Prints a table, which --docs puts into a page, and writes counts and examples to FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.kernels.results import command
from benchmarks.verdicts.published import METRICS
from dyme.data import Gsm8kSource, ImageFolderSource, Record, read_records
from dyme.rewards.verifiers import get_verifier

SETS = ("easy_vqa", "nlvr", "vqa_rad", "puzzlevqa", "gsm8k", "gsm8k / 7")
USED = {"vqa": SETS[:3], "relaxed": SETS, "numeric": ("gsm8k",), "mathvista": SETS, "tabmwp": SETS}
"""Verifier -> the sets on which its metric means something."""
UNIT = "cm"
PEOPLE = 10
EXAMPLES = 4
SHOWN = 5
HEADER = ("verifier", "published metric", "answers", "same verdict", "only ours accepts", "only theirs accepts")
NAMES = {
    "vqa": "VQA accuracy",
    "relaxed": "relaxed accuracy",
    "numeric": "GSM8K",
    "mathvista": "MathVista",
    "tabmwp": "TabMWP",
}


@dataclass
class Count:
    """Verdicts on the answers to a verifier's sets; `ours`, `theirs`: what one side alone accepts, by change."""

    total: int = 0
    same: int = 0
    ours: Counter[str] = field(default_factory=Counter)
    theirs: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def golds_of(name: str, per_set: int) -> list[Record]:
    """Records of different answers and choices of a set, the same in every run."""
    base = name.partition(" ")[0]
    paths = (
        [f"${{DYME_DATA}}/{base}"]
        if base != "gsm8k"
        else [f"${{DYME_DATA}}/gsm8k/{s}.jsonl" for s in ("train", "test")]
    )
    source: Any = Gsm8kSource if base == "gsm8k" else ImageFolderSource
    splits: list[dict[str, str]] = [{}] if base == "gsm8k" else [{"split": "train"}, {"split": "test"}]
    records = [r for path in paths for split in splits for r in read_records(source(path=path, **split))]
    found = list({(r.answer, r.choices): r for r in records}.values())
    random.Random(0).shuffle(found)
    if base != name:  # decimals, which none of the sets has
        return [Record(r.id, r.question, (f"{float(r.answer) / 7:.2f}",)) for r in found[:per_set]]
    return found[:per_set]


def changed(gold: str, other: str, choices: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(kind of change, answer); `other` is the gold answer of another record."""
    yield from (("as it is", gold), ("case", gold.upper()), ("full stop", f"{gold}."), ("quotes", f'"{gold}"'))
    yield from (
        ("bold", f"**{gold}**"),
        ("article", f"the {gold}"),
        ("sentence", f"It is {gold}"),
    )
    yield from (("other", other), ("one of two", f"{gold} or {other}"), ("plural", f"{gold}s"), ("cut", gold[:-1]))
    if choices:
        letter = chr(65 + choices.index(gold))
        yield from (
            ("letter", letter),
            ("letter in brackets", f"({letter})"),
            ("letter and text", f"({letter}) {gold}"),
        )
        yield from (("lower letter", letter.lower()), ("two letters", "(A) or (B)"), ("nonsense", "zzzzzzzzzz"))
    try:
        value = float(gold)
    except ValueError:
        return
    yield from (("4 % more", repr(value * 1.04)), ("6 % more", repr(value * 1.06)), ("one more", f"{value + 1:g}"))
    yield from (("a little more", repr(value + 0.004)), ("half more", repr(value + 0.5)), ("minus", f"-{gold}"))
    yield from (("decimals", f"{value:.3f}"), ("commas", f"{value:,}".removesuffix(".0")), ("exponent", f"{value:e}"))
    yield from (("dollars", f"${gold}"), ("unit", f"{gold} {UNIT}"), ("per cent", f"{gold}%"), ("LaTeX", f"${gold}$"))


def count(verifier: str, per_set: int) -> Count:
    """The verdicts of a verifier and its published metric."""
    ours, theirs, found = get_verifier(verifier), METRICS[verifier], Count()
    for name in USED[verifier]:
        records = golds_of(name, per_set)
        for record, next_record in zip(records, [*records[1:], *records[:1]]):
            gold, other = record.answer, next_record.answer
            if verifier == "vqa":  # whose gold answers are in lower case
                gold, other = gold.lower(), other.lower()
            golds = (gold,) * 7 + (other,) * (PEOPLE - 7) if verifier == "vqa" else (gold,)
            judged = Record(record.id, f"{record.question} (Unit: {UNIT})", golds, choices=record.choices)
            for kind, answer in changed(gold, other, record.choices):
                mine = ours(answer, judged) > 0.5
                published = theirs(answer, golds, record.choices, UNIT) > 0.5
                note(found, kind, mine, published, f"{answer!r} for {gold!r}")
    return found


def note(found: Count, kind: str, mine: bool, published: bool, example: str) -> None:
    found.total += 1
    if mine == published:
        found.same += 1
        return
    (found.ours if mine else found.theirs)[kind] += 1
    shown = found.examples[f"{'ours' if mine else 'theirs'}: {kind}"]
    if len(shown) < EXAMPLES:
        shown.append(example)


def table(counts: dict[str, dict[str, Any]]) -> str:
    """The counts as the Markdown table of docs/rewards.md."""
    rows = [HEADER, ("---",) * len(HEADER)]
    for name, found in counts.items():
        sides = (_most(found[side]) for side in ("ours", "theirs"))
        rows.append(
            (f"`{name}`", NAMES[name], str(found["answers"]), f"{found['same'] / found['answers']:.1%}", *sides)
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_table(page: str, new: str) -> str:
    """`page` with its table of counts replaced."""
    head = new.partition("\n")[0]
    before, _, after = page.partition(head)
    rest = after.partition("\n\n")[2]
    return f"{before}{new}\n\n{rest}"


def _most(kinds: dict[str, int]) -> str:
    """The sum, and the commonest kinds of change."""
    shown = [f"{kind} {n}" for kind, n in list(kinds.items())[:SHOWN]]
    return f"{sum(kinds.values())}: {', '.join(shown)}{', ...' * (len(kinds) > SHOWN)}" if kinds else "0"


def as_dict(found: Count) -> dict[str, Any]:
    sides = {"ours": dict(found.ours.most_common()), "theirs": dict(found.theirs.most_common())}
    return {"answers": found.total, "same": found.same, **sides, "examples": dict(sorted(found.examples.items()))}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--per-set", type=int, default=400, help="different gold answers of a set, at most")
    parser.add_argument("--docs", type=Path, help="page whose table is replaced")
    options = parser.parse_args(arguments)
    counts = {name: as_dict(count(name, options.per_set)) for name in METRICS}
    if options.out:
        made_by = {"python": platform.python_version(), "dyme": version("dyme")}
        about = {"command": command(), "versions": made_by, "hardware": f"{os.cpu_count()} CPU cores"}
        options.out.write_text(json.dumps(about | {"verifiers": counts}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(table(counts))
    if options.docs:
        options.docs.write_text(with_table(options.docs.read_text("utf-8"), table(counts)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
