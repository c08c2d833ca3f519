"""Source configurations from what a user names on the command line; what a path holds is guessed by its layout."""

from __future__ import annotations

import re
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from dyme.data.errors import DataError
from dyme.data.guess import FORMS, NamedSource, guess
from dyme.data.paths import expand
from dyme.data.sources import SourceConfig

_ADAPTER: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
_TAGS = [m.model_fields["source"].default for m in typing.get_args(typing.get_args(SourceConfig)[0])]
_SOURCE = re.compile(rf"({'|'.join(_TAGS)}):(.*)", re.DOTALL)
_COMMA = re.compile(r",(?![^\[]*\])")  # not inside [a, b]


def parse_spec(spec: str, fields: str = "") -> list[NamedSource]:
    """The sources that `spec` names, with `fields` as in question=problem,answer=label.

    Raises `DataError` with the reason and the mend when it names none, and when a source takes no fields.
    """
    mapped = {ours: str(theirs) for ours, theirs in (_pair(fields, p) for p in _COMMA.split(fields) if p)}
    written = _SOURCE.fullmatch(spec)
    if written:
        values: dict[str, Any] = {"source": written[1]}
        for key, value in (_pair(spec, pair) for pair in _COMMA.split(written[2]) if pair):
            whole, dot, part = key.partition(".")
            if dot:
                values.setdefault(whole, {})[part] = str(value)
            else:
                values[key] = value
        named = [NamedSource(spec, _validated(spec, values))]
    else:
        path = expand(spec)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            named = _of_run(path)
        elif path.exists():
            named = guess(path, plain=bool(mapped))
        else:
            raise DataError(f"{spec}: no such file or folder; give {FORMS}")
    return [replace(n, source=_with_fields(n, mapped)) for n in named] if mapped else named


def _with_fields(named: NamedSource, fields: dict[str, str]) -> SourceConfig:
    values = {"source": named.source.source, **named.source.model_dump(exclude_unset=True)}
    if "fields" not in type(named.source).model_fields:
        mend = "read its file by source files, as in files:path=..,fields.question=problem"
        raise DataError(f"{named.label}: source {named.source.source} takes no fields; {mend}")
    return _validated(named.label, {**values, "fields": {**values.get("fields", {}), **fields}})


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
