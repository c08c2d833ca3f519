"""Writes docs/configuration.md from the docstrings of dyme/config.py: `python docs/make_configuration.py`."""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dyme.config import RunConfig
from dyme.data import SourceConfig

PAGE = Path(__file__).resolve().parent / "configuration.md"

INTRO = """\
# Configuration

A run is one YAML file. Every key stands in the tables below; a key that does not stops the run, with the nearest valid
one. This page is written by `python docs/make_configuration.py` from the docstrings in `dyme/config.py`. Do not edit it
by hand.

    deepspeed launchers/train.py --config configs/quickstart.yaml optim.lr=1e-4 method=grpo
    python launchers/train.py --config configs/quickstart.yaml --print_config

- `key.sub=value` replaces a setting of the YAML. The value is read as YAML: `data.eval.count=64`,
  `model.freeze=[vision]`, `data.eval=null`.
- `--deepspeed_config FILE` is the same as `deepspeed=FILE`.
- `--print_config` prints the resolved configuration and stops. The same text lies in the run folder as config.yaml.
- The YAML holds plain values: a key given twice, a tag, a key that is no text, a NUL byte and more than 100,000 values
  (aliases counted in full) are refused. Dates are text.
- Besides the limits in the tables, whole numbers are at most 4294967295 in size, others 0 or from 1e-30 to 1e9;
  infinite numbers and NaN are refused, and so is `true` for a number.
- A run folder that is not set becomes `runs/<name of the YAML>`.
- In the paths of data sources and of `reward.user.function` `~` and environment variables are filled in, in
  `model.path` only `~`. Relative paths start at the working folder.

Nothing is loaded before the configuration is whole. Besides single values these combinations are refused:

- `model.path` and `model.from_scratch` together, or neither;
- `model.freeze` of a part that `model.lora` adds adapters to;
- `prompt.style: direct` with another method than `sft`, or with `memorize.on_missing_trace: skip`;
- sizes of `model.from_scratch` that do not divide each other (heads, patches, pixel shuffle);
- a template without its placeholder, or a blank answer flag;
- a preset together with `objective.surrogate` or `objective.normalization`;
- `run.eval_every` without `data.eval`;
- `selector.path` without `selector.name: replay`, and replay without it;
- rewards that are all weighted 0, and two entries of `reward.user` with one name;
- a k of `evaluate.pass_at` above `evaluate.samples`.
"""

SOURCES = """\
## Sources

`data.train`, `data.eval` and the entries of `model.from_scratch.tokenizer_sources` are sources. The key `source` says
which one. What they read is described in [data.md](data.md).
"""


def render() -> str:
    """The whole page."""
    sections = [INTRO, "## Top level\n", _table(RunConfig, "")]
    for name, model in _sections(RunConfig, ""):
        sections += [f"## {name}\n", f"{_line(model.__doc__)}\n", _table(model, f"{name}.")]
    sections.append(SOURCES)
    for model in _models_in(SourceConfig):
        tag = typing.get_args(model.model_fields["source"].annotation)[0]
        sections += [f"### source: {tag}\n", f"{_line(model.__doc__)}\n", _table(model, "", skip=("source",))]
        for name, part in _sections(model, ""):
            sections += [f"### {name}\n", f"{_line(part.__doc__)}\n", _table(part, "")]
    return "\n".join(sections)


def keys() -> set[str]:
    """Every dotted key that a YAML or an override may name, sections included."""
    found = set(RunConfig.model_fields)
    for name, model in _sections(RunConfig, ""):
        found |= {f"{name}.{field}" for field in model.model_fields}
    for name in list(found):
        if name in ("data.train", "data.eval"):
            found |= {f"{name}.{field}" for model in _models_in(SourceConfig) for field in model.model_fields}
    return found


def _sections(model: type[BaseModel], prefix: str) -> list[tuple[str, type[BaseModel]]]:
    """Dotted name and model of every section, parents before children; sources have a part of their own."""
    out = []
    for name, field in model.model_fields.items():
        if _is_source(field.annotation):
            continue
        for sub in _models_in(field.annotation):
            out += [(f"{prefix}{name}", sub), *_sections(sub, f"{prefix}{name}.")]
    return out


def _table(model: type[BaseModel], prefix: str, skip: tuple[str, ...] = ()) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in skip:
            cells = (f"`{prefix}{name}`", _type(field), _default(field), _meaning(field, f"{prefix}{name}"))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _is_source(annotation: Any) -> bool:
    models = set(_models_in(annotation))
    return len(models) > 1 and models <= set(_models_in(SourceConfig))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple):
        return [model for arg in typing.get_args(annotation) for model in _models_in(arg)]
    return []


def _type(field: FieldInfo) -> str:
    return _name(field.annotation, field.metadata)


def _name(annotation: Any, metadata: list[Any]) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_source(annotation):
        return "list of sources" if origin is tuple else "a source"
    if origin is tuple and _models_in(args[0]):
        return "list of sections"
    if origin is typing.Annotated:
        inner = [m for extra in args[1:] for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return _name(args[0], [*inner, *metadata])
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in args)
    if origin in (typing.Union, types.UnionType):
        return _name(next(a for a in args if a is not type(None)), metadata)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"list of {_name(args[0], [])}"
        return f"{len(args)} values: {_name(args[0], [])}"
    if origin is dict:
        return f"mapping from {_name(args[0], [])} to {_name(args[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    plain = {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]
    return plain + _limits(metadata)


def _limits(metadata: list[Any]) -> str:
    """Bounds as words: " > 0", " 0 to 1"."""
    bounds = {s: getattr(m, s) for m in metadata for s in ("gt", "ge", "lt", "le") if getattr(m, s, None) is not None}
    if "ge" in bounds and "le" in bounds:
        return f" {bounds['ge']:g} to {bounds['le']:g}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return "".join(f"{' and' if i else ''} {signs[s]} {v:g}" for i, (s, v) in enumerate(bounds.items()))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, BaseModel):
        return ""
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple | dict) or (isinstance(value, str) and "\n" in value):
        return f"`{json.dumps(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(field: FieldInfo, key: str) -> str:
    text = _line(field.description)
    if not _is_source(field.annotation) and _models_in(field.annotation):
        link = f"See [{key}](#{key.replace('.', '')})."
        return f"{text} {link}".strip()
    return text


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
