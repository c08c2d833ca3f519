"""The folder of an evaluation: its settings, the finished items, and the files written at the end.

evaluation.yaml            what was evaluated and how; another evaluation needs another folder
items-<rank>.partial.jsonl lines of the items that a rank has done, while it runs
items.jsonl                every item in the order of the data
summary.json               written last: with it the evaluation is finished
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dyme.config import RunConfig, changed_keys
from dyme.data import Record
from dyme.evaluation.files import ITEMS, SETTINGS, SUMMARY
from dyme.text.json_lines import plain, read_jsonl

_PARTIAL = "items-*.partial.jsonl"
_WEIGHTS = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")
_SPEED_ONLY = {"batch_size", "prompts_per_step", "group_size", "truncated"}


class EvaluationError(ValueError):
    """An evaluation that cannot start or finish; the message is one line with the folder and the mend."""


@dataclass(frozen=True)
class DoneItem:
    """A finished item: its `line` of items.jsonl, and the `seconds` it took on its rank."""

    index: int
    line: dict[str, Any]
    seconds: float


def settings_text(cfg: RunConfig, model: Path, records: Sequence[Record]) -> str:
    """Everything the items depend on, as YAML: settings, the content of the model's files, and the records."""
    tree = cfg.model_dump(mode="json", exclude_none=True)
    content = hashlib.blake2b(digest_size=16)
    for r in records:
        content.update(repr((r.id, r.question, r.answers, r.choices, r.facts, r.kind)).encode())
    settings = {
        "model": {
            "path": str(model),
            "content": fingerprint(model),
            **{key: tree["model"][key] for key in ("family", "dtype")},
        },
        "data": {
            "eval": tree["data"]["eval"],
            "max_bad_fraction": cfg.data.max_bad_fraction,
            "records": len(records),
            "content": content.hexdigest(),
        },
        "prompt": tree["prompt"],
        "rollout": {key: value for key, value in tree["rollout"].items() if key not in _SPEED_ONLY},
        "reward": tree["reward"],
        "evaluate": tree["evaluate"],
        "run": {"seed": cfg.run.seed},
    }
    return yaml.safe_dump(settings, sort_keys=False)


def fingerprint(model: Path) -> str:
    """A hash of the content of a checkpoint folder's weights, configuration and tokenizer."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _WEIGHTS for path in model.glob(pattern)}):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def check_owner(folder: Path, settings: str) -> None:
    """Raises `EvaluationError` where the folder belongs to another evaluation or to something else."""
    if not folder.exists() or all(path.name.startswith(".partial-") for path in folder.iterdir()):
        return
    before = folder / SETTINGS
    if not before.is_file():
        raise EvaluationError(f"{folder} holds files of something else (no {SETTINGS}): choose another --out")
    changed = changed_keys(before.read_text(encoding="utf-8"), settings)
    if changed:
        raise EvaluationError(
            f"{folder} holds an evaluation with other settings ({', '.join(changed)}): choose another --out"
        )


def claim(folder: Path, settings: str) -> None:
    """Writes the settings, which marks the folder as this evaluation's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS, settings)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished evaluation; None before it is finished."""
    path = folder / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def done_items(folder: Path, records: Sequence[Record]) -> dict[int, DoneItem]:
    """Items finished by earlier starts with any number of ranks, by index. A line cut off by a kill is dropped."""
    rows = (row for path in sorted(folder.glob(_PARTIAL)) for row in read_jsonl(path))
    items = (DoneItem(row["index"], row["item"], row["seconds"]) for row in rows)
    return {item.index: item for item in items if records[item.index].id == item.line["id"]}


def gather_partial(folder: Path, done: Mapping[int, DoneItem]) -> None:
    """Writes all finished items into one partial file that ends with a whole line, for ranks to append to."""
    write_whole(folder / "items-0.partial.jsonl", "".join(map(_partial_line, done.values())))
    for path in folder.glob(_PARTIAL):
        if path.name != "items-0.partial.jsonl":
            path.unlink()


def append_items(folder: Path, rank: int, items: Iterable[DoneItem]) -> None:
    """Adds finished items to the partial file of a rank."""
    with (folder / f"items-{rank}.partial.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(map(_partial_line, items)))


def write_items(folder: Path, done: Mapping[int, DoneItem], total: int) -> list[dict[str, Any]]:
    """Writes items.jsonl and returns its lines. Raises `EvaluationError` where items are missing."""
    missing = total - len(done)
    if missing:
        raise EvaluationError(f"{folder} lacks {missing} of {total} items: all nodes must share it; start again")
    lines = [done[i].line for i in range(total)]
    write_whole(folder / ITEMS, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    return lines


def finish(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes the summary, which makes the evaluation finished, and removes the partial files."""
    write_whole(folder / SUMMARY, json.dumps(plain(summary), indent=1, allow_nan=False) + "\n")
    for path in folder.glob(_PARTIAL):
        path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Writes a file atomically."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _partial_line(item: DoneItem) -> str:
    row = {"index": item.index, "seconds": round(item.seconds, 4), "item": item.line}
    return json.dumps(row, allow_nan=False) + "\n"
