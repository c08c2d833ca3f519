"""A pydantic error as one line that names the user's own keys."""

from __future__ import annotations

import difflib
import re
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

_LONG = re.compile(r"\S{200,}")


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line with the key, the reason and the mend."""


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One line for the first mistake (an unknown key before all others, since it often causes them)."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first, rest = errors[0], len(errors) - 1
    context = first.get("ctx", {})
    of_field = (context["field"],) if "field" in context else ()  # a validator of the whole section names one
    key, holder, union = _locate((*first["loc"], *of_field), root)
    line = _LONG.sub(lambda word: f"{word[0][:60]}...", " ".join(_reason(first, key, holder, union, root).split()))
    return line + (f" (and {rest} more)" if rest else "")


def _reason(
    error: Any, key: str, holder: type[BaseModel] | None, union: list[type[BaseModel]], root: type[BaseModel]
) -> str:
    value = error.get("ctx", {}).get("value", error["input"])
    kind, given = error["type"], f"got {repr(value)[:60]}"
    if kind == "extra_forbidden" and holder:
        parent = key.rpartition(".")[0]
        fields = sorted(holder.model_fields)
        siblings = [f"{parent}.{name}".lstrip(".") for name in fields]
        others = [k for k in valid_keys(root) if k != key]
        near = difflib.get_close_matches(key, siblings, n=1) or difflib.get_close_matches(key, others, n=1, cutoff=0.5)
        return f"unknown key '{key}'{_nearest(near)}; allowed here: {', '.join(fields)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = sorted(filter(None, map(_tag, union)))
        if kind == "union_tag_not_found":
            return f"'{key}.source' is required; allowed: {', '.join(tags)}"
        tag = str(error["ctx"]["tag"])
        source = difflib.get_close_matches(tag, tags, n=1)
        return f"'{key}.source': unknown source '{tag}'{_nearest(source)}; allowed: {', '.join(tags)}"
    if kind == "missing":
        return f"'{key}' is required"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"'{key}': write settings below it (key: value), {given}"
    if kind == "tuple_type":
        return f"'{key}': write a list ([a, b]), {given}"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # of a validator of our own, which names what it is about
        return message
    return f"'{key}': {message}, {given}"


def _nearest(matches: list[str]) -> str:
    return f"; nearest: '{matches[0]}'" if matches else ""


def _locate(
    loc: tuple[int | str, ...], root: type[BaseModel]
) -> tuple[str, type[BaseModel] | None, list[type[BaseModel]]]:
    """Pydantic's path of an error as a dotted key, the model that holds the key, and the models that may stand there.

    Pydantic puts the tag of a union (`source`) into the path, after the key that holds the union.
    """
    key: list[str] = []
    holder: type[BaseModel] | None = None
    here = [root]
    for part in loc:
        tagged = [model for model in here if _tag(model) == part]
        if tagged and len(here) > 1:
            here = tagged
        elif part != "[key]":  # of a dictionary
            key.append(str(part))
            if isinstance(part, str):
                holder = here[0] if len(here) == 1 else None
                field = holder.model_fields.get(part) if holder else None
                here = _models_in(field.annotation) if field else []
    return ".".join(key), holder, here


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("source")
    return typing.get_args(field.annotation)[0] if field else None


def valid_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration model, parents included; unions contribute the keys of all their members."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for sub in _models_in(field.annotation):
            keys += valid_keys(sub, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated, tuple):
        return [m for arg in typing.get_args(annotation) for m in _models_in(arg)]
    return []
