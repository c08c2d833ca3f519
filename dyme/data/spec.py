"""Source configurations from what a user names on the command line."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dyme.data.errors import DataError
from dyme.data.guess import FORMS, NamedSource, guess_file, guess_folder
from dyme.data.imagefolder import METADATA
from dyme.data.paths import expand
from dyme.data.sources import SourceConfig

__all__ = ["FORMS", "NamedSource", "parse_spec", "snippet"]
_ADAPTER: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
_TAGS = [m.model_fields["source"].default for m in typing.get_args(typing.get_args(SourceConfig)[0])]
_SOURCE = re.compile(rf"({'|'.join(_TAGS)}):(.*)", re.DOTALL)
_COMMA = re.compile(r",(?![^\[]*\])")  # not inside [a, b]


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
        return guess_folder(path)
    if path.name == METADATA and path.is_file():
        return guess_folder(path.parent)
    if path.is_file():
        return guess_file(path)
    raise DataError(f"{spec}: no such file or folder; give {FORMS}")


def snippet(named: list[NamedSource]) -> str:
    """The `data` section of a run configuration with these sources, as YAML."""
    chosen = {n.part: n.source for n in named if n.part} or _chosen([n.source for n in named])
    data = {part: {"source": s.source, **s.model_dump(mode="json", exclude_unset=True)} for part, s in chosen.items()}
    return yaml.safe_dump({"data": data}, default_flow_style=None, sort_keys=False, width=1000, allow_unicode=True)


def _chosen(sources: list[SourceConfig]) -> dict[str, SourceConfig]:
    """Trains on the split that is called train, or else on the first source."""
    train = next((source for source in sources if _split(source) == "train"), sources[0])
    others = [source for source in sources if source is not train]
    # A run is evaluated many times, so validation data goes before test data.
    others.sort(key=lambda source: not _split(source).startswith("val"))
    return {"train": train} | ({"eval": others[0]} if others else {})


def _split(source: SourceConfig) -> str:
    return str(getattr(source, "split", None) or "")


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
        NamedSource(f"{path}: data.{part}", _validated(f"{path}: data.{part}", data[part]), part)
        for part in ("train", "eval")
        if data.get(part)
    ]
