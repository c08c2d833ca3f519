"""Task easy_vqa: real pictures of one coloured shape. Stage 2 sees neither teal nor triangles.

The data set has no traces and no facts. Colour and shape of a picture follow from its questions taken together, and
traces are written from them in the manner of the generated charts.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

from benchmarks.suite.task import CAPTION, Sizes, Split, Task, Tree, asks_for_facts, every_trace, jsonl, split_of
from dyme.data import Record
from dyme.data.paths import expand

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
UNSEEN_COLOUR, UNSEEN_SHAPE = "teal", "triangle"
_THERE = re.compile(r"(\w+) is (not )?there")


@dataclass(frozen=True)
class Picture:
    """A picture with what is known of it and its rows as the data set has them."""

    file: str
    colour: str
    shape: str
    rows: tuple[Mapping[str, str], ...]

    @property
    def facts(self) -> str:
        return f"color {self.colour}, shape {self.shape}"


def read_facts(rows: Iterable[Mapping[str, str]]) -> tuple[str, str] | None:
    """Colour and shape that the questions of one picture give away together; None where one is not told."""
    colours, shapes = set[str](), set[str]()
    for row in rows:
        words = set(re.findall(r"\w+", row["question"]))
        if row["kind"] != "yes_no":
            seen = words | {row["answer"]}
        elif (row["answer"] == "yes") != bool(words & {"not", "no"}):
            seen = words
        else:
            continue
        colours |= seen & set(COLOURS)
        shapes |= seen & set(SHAPES)
    return (colours.pop(), shapes.pop()) if len(colours) == len(shapes) == 1 else None


def write_trace(picture: Picture, row: Mapping[str, str], quality: str, noise: float, rng: random.Random) -> str:
    """The trace of a question, which ends in the right answer; a low one sees a wrong colour or shape with probability
    `noise`."""
    step, answer = _step(picture, row), row["answer"]
    if quality == "high":
        return f"see: {picture.facts}. step: {step}. so: {answer}."
    if quality == "medium":
        return f"{picture.facts.replace(', ', ' and ')} and {step} so {answer}"
    seen = [picture.colour, picture.shape]
    if rng.random() < noise:
        k = rng.randrange(2)
        seen[k] = rng.choice([other for other in (COLOURS, SHAPES)[k] if other != seen[k]])
    rng.shuffle(seen)
    opener, link = rng.choice(("well", "hmm", "ok")), rng.choice(("then", "maybe", "and also"))
    return f"{opener} i see {seen[0]} {link} {seen[1]} {rng.choice(('i guess', 'probably', 'looks like'))} {answer}"


def check(thinking: str, record: Record) -> tuple[int, int]:
    """Colours and shapes that a trace says it sees, or says are there or not, against the facts."""
    facts = set((record.facts or "").replace(",", "").split())
    claims = [(word in facts) != bool(no) for word, no in _THERE.findall(thinking) if word in COLOURS + SHAPES]
    named = set(re.findall(r"\w+", _THERE.sub(" ", thinking))) & set(COLOURS + SHAPES)
    return len(named & facts) + sum(claims), len(named) + len(claims)


def _step(picture: Picture, row: Mapping[str, str]) -> str:
    if row["kind"] == "yes_no":
        asked = next(w for w in re.findall(r"\w+", row["question"]) if w in COLOURS + SHAPES)
        return f"{asked} is there" if asked in (picture.colour, picture.shape) else f"{asked} is not there"
    return f"the {row['kind']} is {row['answer']}"


@lru_cache(maxsize=2)
def _pictures(split: str) -> tuple[Picture, ...]:
    """The pictures of a split whose colour and shape are told. Raises `DataError` without DYME_DATA."""
    folder = expand("${DYME_DATA}/easy_vqa") / split
    by_file = defaultdict[str, list[dict[str, str]]](list)
    with (folder / "metadata.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            by_file[row["file_name"]].append(row)
    found = {name: (rows, told) for name, rows in by_file.items() if (told := read_facts(rows))}
    return tuple(Picture(str(folder / name), *told, tuple(rows)) for name, (rows, told) in found.items())


def _row(picture: Picture, row: Mapping[str, str]) -> Tree:
    return {key: row[key] for key in ("id", "question", "answer", "kind")} | {"image": picture.file}


def _draw(pictures: Sequence[Picture], count: int, rng: random.Random) -> list[tuple[Picture, Mapping[str, str]]]:
    """Different questions, the kinds in equal numbers as far as they go."""
    by_kind = defaultdict[str, list[tuple[Picture, Mapping[str, str]]]](list)
    for picture in pictures:
        for row in picture.rows:
            by_kind[row["kind"]].append((picture, row))
    for some in by_kind.values():
        rng.shuffle(some)
    turns = zip_longest(*(by_kind[kind] for kind in sorted(by_kind)))
    return [drawn for turn in turns for drawn in turn if drawn is not None][:count]


def _rows(stream: str, pictures: Sequence[Picture], count: int, trace: str = "high", noise: float = 0.0) -> list[Tree]:
    rng = random.Random(stream)
    return [
        {**_row(p, row), "facts": p.facts, "hint": write_trace(p, row, trace, noise, rng)}
        for p, row in _draw(pictures, count, rng)
    ]


def _narrow(pictures: Sequence[Picture]) -> list[Picture]:
    return [p for p in pictures if p.colour != UNSEEN_COLOUR and p.shape != UNSEEN_SHAPE]


def _training() -> tuple[list[Picture], list[Picture]]:
    """Pictures of stage 2's training, and those of its validation, which no run trains on."""
    narrow = _narrow(_pictures("train"))
    return narrow[len(narrow) // 10 :], narrow[: len(narrow) // 10]


def _base(folder: Path, steps: int, prompts: int) -> Tree:
    count = steps * prompts

    def rows() -> list[Tree]:
        rng = random.Random("base")
        held = {p.file for p in _training()[1]}
        pictures = [p for p in _pictures("train") if p.file not in held]
        asked: list[tuple[Picture, Mapping[str, str]]] = []
        while len(asked) < count:
            asked += _draw(pictures, 3 * len(pictures), rng)
        out = []
        for i, (picture, row) in enumerate(asked[:count]):
            caption = {"question": CAPTION, "answer": picture.facts, "kind": "caption"}
            told = caption if asks_for_facts(i, count, rng) else {}
            out.append({**_row(picture, row), **told, "id": f"base-{i:06d}"})
        return out

    return jsonl(folder / f"easy_vqa-base-{count}.jsonl", rows)


def _train(folder: Path, count: int, seed: int, trace: str, noise: float) -> Tree:
    path = folder / f"easy_vqa-train-{seed}-{trace}-{noise}-{count}.jsonl"
    return jsonl(path, lambda: _rows(f"train-{seed}", _training()[0], count, trace, noise))


def _held_out(folder: Path, sizes: Sizes) -> Mapping[str, Split]:
    def split(name: str, count: int, pictures: Callable[[], Sequence[Picture]]) -> Split:
        return split_of(folder, "easy_vqa", name, count, lambda: _rows(name, pictures(), count))

    def unseen(kind: str) -> list[Picture]:
        both = [(p.colour == UNSEEN_COLOUR, p.shape == UNSEEN_SHAPE, p) for p in _pictures("test")]
        return [p for colour, shape, p in both if (colour, shape) == (kind == "colour", kind == "shape")]

    return {
        "validation": split("validation", sizes.validation, lambda: _training()[1]),
        "test": split("test", sizes.test, lambda: _narrow(_pictures("test"))),
        "ood unseen colour": split("ood colour", sizes.ood, lambda: unseen("colour")),
        "ood unseen shape": split("ood shape", sizes.ood, lambda: unseen("shape")),
    }


EASY_VQA = Task(
    "easy_vqa",
    _base,
    _train,
    _held_out,
    every_trace(_train),
    picture={"image_size": 64, "patch_size": 8, "scale_factor": 2},
    max_new_tokens=40,
    check=check,
)
