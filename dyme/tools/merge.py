"""`python -m dyme.tools.merge A B [--weight W] --out DIR`: merges two exported models, (1 - W) A + W B, or an
adapter B into its model A.

Merging the ends of an SFT and of a GRPO run is one of the strategies of "The Synergy Dilemma"; both must come from the
same base. Averages are taken in float32 (float64 weights: float64) and rounded once to the dtype of the files.
Tokenizer, processor, chat template, dyme.json and the division into files are those of A; generation_config.json is
written anew, as an export of A's dyme.json has it. Adapters of A and B are left out: they are no part of the average.
An adapter B is a folder as peft writes it: `dyme/tools/adapter.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dyme.checkpoint.recipe import FILE
from dyme.families.base import ModelError
from dyme.families.files import INDEX, read_json, read_weights
from dyme.tools.adapter import is_adapter, merge_adapter
from dyme.tools.folder import GENERATION, check_new, new_folder, write_generation

UNIMPORTANT = ("_name_or_path", "transformers_version")
"""Keys of config.json about the origin of a model, which may differ."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "merges.txt")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line where the two cannot be merged."""
    options = _parser().parse_args(arguments)
    try:
        if is_adapter(options.b):
            notes = merge_adapter(options.a, options.b, options.out)
        else:
            notes = merge(options.a, options.b, options.weight, options.out)
    except (ModelError, OSError) as error:  # OSError: a folder without permission, a full disk
        print(f"merge: {error}", file=sys.stderr)
        return 2
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(options.out)
    return 0


def merge(a: Path, b: Path, weight: float, out: Path) -> list[str]:
    """Writes the folder `out`, completely or not at all, and returns notes for the user. `weight`: of b, in [0, 1].
    Raises `ModelError` for folders that do not fit each other, before anything is written."""
    check_new(out)
    places = [_Places(folder) for folder in (a, b)]
    _check(places[0], places[1])
    rewritten = (GENERATION,) if (a / FILE).exists() else ()
    kept = [name for name in _others(a) if name not in rewritten and _differs(a / name, b / name)]
    notes = [f"{name} differs, that of {a} is kept" for name in kept]
    with new_folder(out) as partial:
        for name in _others(a):
            shutil.copyfile(a / name, partial / name)
        for name in places[0].files:
            save_file(dict(_merged(places[0], places[1], name, weight)), partial / name, {"format": "pt"})
        notes += write_generation(partial)
    return notes


class _Places:
    """A folder: its weight files, shapes and dtypes, and in which file a tensor lies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder / 'config.json'} does not exist: give the export folder of a run")
        self.config = read_json(folder / "config.json")
        weights = read_weights(folder)
        self.shapes, self.files = dict(weights.shapes), sorted(weights.files)
        self.file_of, self.dtypes = dict[str, str](), dict[str, str]()
        for name in self.files:
            with safe_open(folder / name, "pt") as file:
                for tensor in list(file.keys()):
                    self.file_of[tensor] = name
                    self.dtypes[tensor] = file.get_slice(tensor).get_dtype()


def _check(a: _Places, b: _Places) -> None:
    """Raises `ModelError` for the first difference that prevents averaging two folders."""
    mend = "merge two runs from the same base"
    if key := next(_differing(a.config, b.config), None):
        raise ModelError(f"config.json of {a.folder} and {b.folder} differ in '{key}': {mend}")
    for name in VOCABULARIES:
        if _differs(a.folder / name, b.folder / name):
            raise ModelError(f"{name} of {a.folder} and {b.folder} differ, so token ids mean other things: {mend}")
    if alone := sorted(a.shapes.keys() ^ b.shapes.keys()):
        holder = a.folder if alone[0] in a.shapes else b.folder
        raise ModelError(f"only {holder} holds the tensor {alone[0]} ({len(alone)} tensors are in one of them): {mend}")
    for name, shape in a.shapes.items():
        if shape != b.shapes[name]:
            raise ModelError(f"{name} is {shape} in {a.folder} and {b.shapes[name]} in {b.folder}: {mend}")
        if a.dtypes[name] != b.dtypes[name]:
            raise ModelError(
                f"{name} is {a.dtypes[name]} in {a.folder} and {b.dtypes[name]} in {b.folder}: export both with the "
                "same model.dtype"
            )


def _merged(a: _Places, b: _Places, name: str, weight: float) -> Iterator[tuple[str, Tensor]]:
    """The tensors of A's file `name`, averaged with B's."""
    with ExitStack() as stack:
        ours = stack.enter_context(safe_open(a.folder / name, "pt"))
        tensors = list(ours.keys())
        theirs = {f: stack.enter_context(safe_open(b.folder / f, "pt")) for f in {b.file_of[t] for t in tensors}}
        for tensor in tensors:
            other = theirs[b.file_of[tensor]].get_tensor(tensor)
            yield tensor, _average(tensor, ours.get_tensor(tensor), other, weight)


def _average(name: str, a: Tensor, b: Tensor, weight: float) -> Tensor:
    if not a.is_floating_point():
        if not torch.equal(a, b):
            raise ModelError(f"{name} holds whole numbers that differ, which have no average: merge other runs")
        return a
    wide = torch.promote_types(a.dtype, torch.float32)
    return ((1.0 - weight) * a.to(wide) + weight * b.to(wide)).to(a.dtype)


def _others(folder: Path) -> list[str]:
    """Files other than weights, with the index of divided weights."""
    single = (folder / "model.safetensors").is_file()
    return sorted(
        file.name
        for file in folder.iterdir()
        if file.is_file() and file.suffix not in WEIGHTS and not (single and file.name == INDEX)
    )


def _differs(a: Path, b: Path) -> bool:
    """Whether two files differ; False for config.json and the index, which are compared elsewhere or taken from A."""
    if a.name in ("config.json", INDEX) or not (a.exists() or b.exists()):
        return False
    if not (a.exists() and b.exists()):
        return True
    if a.suffix != ".json":
        return a.read_bytes() != b.read_bytes()
    return next(_differing(read_json(a), read_json(b)), None) is not None


def _differing(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys in which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if key not in UNIMPORTANT:
                missing = key not in a or key not in b
                yield from [f"{prefix}{key}"] if missing else _differing(a[key], b[key], f"{prefix}{key}.")
    elif json.dumps(a) != json.dumps(b):
        yield prefix.rstrip(".")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dyme.tools.merge",
        description="Averages the weights of two exported models of one base, or merges an adapter into its model.",
    )
    parser.add_argument("a", type=Path, metavar="A", help="export or checkpoint folder; gives tokenizer and processor")
    parser.add_argument("b", type=Path, metavar="B", help="export folder, or a folder of a peft adapter")
    parser.add_argument("--weight", type=_fraction, default=0.5, help="weight of B, 0 to 1 (default 0.5)")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    return parser


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
