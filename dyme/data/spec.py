"""What a user names on the command line, as source configurations."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dyme.data.errors import DataError
from dyme.data.gsm8k import FLAG, Gsm8kSource
from dyme.data.imagefolder import METADATA, ImageFolderSource, splits_of
from dyme.data.jsonl import JsonlSource
from dyme.data.paths import expand
from dyme.data.sources import SourceConfig

FORMS = "a .jsonl file, an imagefolder, a run YAML, or source:key=value,key=value"
_ADAPTER: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
_SOURCE = re.compile(r"(jsonl|imagefolder|gsm8k|charts):(.*)", re.DOTALL)
_COMMA = re.compile(r",(?![^\[]*\])")  # not inside [a, b]


@dataclass(frozen=True)
class NamedSource:
    """`label` says what the source is and, where it was guessed, from what."""

    label: str
    source: SourceConfig


def parse_spec(spec: str) -> list[NamedSource]:
    """The sources that `spec` names. Raises `DataError` with the reason and the mend when it names none."""
    written = _SOURCE.fullmatch(spec)
    if written:
        pairs = [pair for pair in _COMMA.split(written[2]) if pair]
        return [NamedSource(spec, _validated(spec, {"source": written[1], **dict(_pair(spec, p) for p in pairs)}))]
    path = expand(spec)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _of_run(path)
    if path.is_dir():
        return _of_folder(path)
    if path.name == METADATA and path.is_file():
        return _of_folder(path.parent)
    if path.is_file():
        return [_of_file(path)]
    raise DataError(f"{spec}: no such file or folder; give {FORMS}")


def _pair(spec: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise DataError(f"{spec}: {text!r} is not key=value")
    # A path such as ${DIR}/a.jsonl or an id such as 007 is text; only lists and numbers mean something in YAML.
    plain = re.fullmatch(r"\s*(\[.*\]|[1-9]\d*|0|\d*\.\d+)\s*", value)
    return key.strip(), yaml.safe_load(value) if plain else value.strip()


def _validated(name: str, values: object) -> SourceConfig:
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'source'}: {e['msg']}" for e in error.errors())
        raise DataError(f"{name}: {reasons}") from error


def _of_run(path: Path) -> list[NamedSource]:
    run = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = run.get("data") if isinstance(run, dict) else None
    if not isinstance(data, dict) or not (data.get("train") or data.get("eval")):
        raise DataError(f"{path}: neither data.train nor data.eval; name a run configuration, or {FORMS}")
    return [
        NamedSource(f"{path}: data.{part}", _validated(f"{path}: data.{part}", data[part]))
        for part in ("train", "eval")
        if data.get(part)
    ]


def _of_folder(path: Path) -> list[NamedSource]:
    if (path / METADATA).is_file():
        return [NamedSource(f"imagefolder {path} (guessed: it holds {METADATA})", ImageFolderSource(path=str(path)))]
    found = splits_of(path)
    if not found:
        raise DataError(f"{path}: neither the folder nor a subfolder holds {METADATA}; give {FORMS}")
    return [
        NamedSource(
            f"imagefolder {path}, split {split} (guessed: it holds {split}/{METADATA})",
            ImageFolderSource(path=str(path), split=split),
        )
        for split in found
    ]


def _of_file(path: Path) -> NamedSource:
    if "gsm8k" in str(path).lower():
        return NamedSource(f"gsm8k {path} (guessed: by its name)", Gsm8kSource(path=str(path)))
    if _has_flag(path):
        return NamedSource(f"gsm8k {path} (guessed: the first answer has {FLAG!r})", Gsm8kSource(path=str(path)))
    return NamedSource(f"jsonl {path} (guessed: a file)", JsonlSource(path=str(path)))


def _has_flag(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    try:
        row = json.loads(first)
    except ValueError:
        return False  # the reader reports the broken line
    return isinstance(row, dict) and FLAG in str(row.get("answer"))
