"""The value in a judge's reply: JSON that fits the schema, bare, fenced or amid chatter, or one plain verdict word.

`parse_answer` never raises. An ambiguous reply is no answer, since a wrong verdict is worse than none.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

MAX_TEXT = 50_000
"""Longer replies are cut before they are read."""
MAX_OBJECTS = 20
"""Opening braces that are tried."""

_THOUGHTS_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_THOUGHTS_BEGIN = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_SENTENCE = re.compile(r"[^.!?;\n]+[.!?;\n]?")
_CLAUSE = re.compile(r"[:,()\u2013\u2014]")
_DASH = re.compile(r"\s-+\s")
_MARKS = " \t\r\n*_`#>\"'“”‘’.!,;:()[]{}"
_LABEL = r"rating|score|verdict|answer|grade|level|judge?ment|assessment|result"
_SAID = (
    r"(?:(?:(?:so|thus|therefore|overall|final(?:ly)?|my|the|its?|this|that|trace|a)\s+)*"
    r"(?:(?:{label})\s*)?(?:(?:is|=|would be|->)\s*)?"
    r"|(?:so |thus |therefore |overall )?(?:i|we)(?:\s+would|['’]d|\s+will)?\s+"
    r"(?:rate|score|grade|judge|pick|choose|give|say|answer)\s+"
    r"(?:(?:it|this|that|the|trace|thinking|a|rating|as|of)\s+)*)"
)


def parse_answer(text: object, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The object in `text` that fits `schema`.

    The whole reply as JSON comes first, then fenced and embedded objects, which must agree with each other. A reply
    without any object may give its verdict in words where the schema asks for one enumerated string.
    """
    if not isinstance(text, str):
        return None
    text = _THOUGHTS_END.split(text[:MAX_TEXT])[-1]
    text = _THOUGHTS_BEGIN.split(text)[0].lstrip("\ufeff").strip()
    whole = _fit_object(_load(text), schema)
    if whole is not None:
        return whole
    objects = list(_objects(text))
    if not objects:
        return _verdict_object(text, schema)
    found = [value for each in objects if (value := _fit_object(each, schema)) is not None]
    return found[0] if found and all(value == found[0] for value in found) else None


def verdict(text: str, choices: Sequence[str], label: str = "") -> str | None:
    """The one choice that a reply in words gives: "High", "high.", "**Rating:** High", "I would rate it high".

    A clause counts only if it says the choice and nothing else, in a sentence that names no other choice. So "highly
    unlikely to be low", "not high", "low to medium" and "is it high?" are no verdicts, nor are two different ones.
    `label`: another word for the verdict (the property's name).
    """
    names = {choice.casefold(): choice for choice in choices}
    labels = "|".join(filter(None, (_LABEL, re.escape(label.casefold()))))
    ways = "|".join(re.escape(name) for name in names)
    said = re.compile(rf"{_SAID.format(label=labels)}(?P<choice>{ways})", re.IGNORECASE)
    named = re.compile(rf"(?<!\w)(?:{ways})(?!\w)", re.IGNORECASE)
    given = set()
    for sentence in _SENTENCE.findall(_DASH.sub(":", re.sub(r"[*_`\"“”]", "", text[:MAX_TEXT]))):
        if sentence.endswith("?") or len({name.casefold() for name in named.findall(sentence)}) != 1:
            continue
        for clause in _CLAUSE.split(sentence):
            match = said.fullmatch(" ".join(clause.strip(_MARKS).split()))
            if match:
                given.add(names.get(match["choice"].casefold()))
    return given.pop() if len(given) == 1 else None


def _verdict_object(text: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """The verdict in words as an object, if the schema asks for one enumerated string and nothing else."""
    properties = schema.get("properties", {})
    wanted = list(schema.get("required", ())) or list(properties)
    choices = properties.get(wanted[0], {}).get("enum", ()) if len(wanted) == 1 else ()
    words = [choice for choice in choices if isinstance(choice, str) and choice]
    given = verdict(text, words, str(wanted[0])) if words else None
    return None if given is None else {wanted[0]: given}


def _fit_object(value: Any, schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """`value`, or the one object that it wraps ({"answer": {...}}), as the schema wants it."""
    inner = list(value.values()) if isinstance(value, dict) and len(value) == 1 else []
    for each in (value, *inner):
        with suppress(ValueError):
            made = _fit(each, schema) if isinstance(each, dict) else None
            if isinstance(made, dict):
                return made
    return None


def _fit(value: Any, schema: Mapping[str, Any]) -> Any:
    """`value` as the schema wants it. Raises `ValueError` for a misfit.

    Checks type (required), properties, required, additionalProperties, items, enum, minimum, maximum, minItems and
    maxItems. Accepts an enumerated string in another case or with marks around it, a number written as a string, and
    properties that the schema does not know (dropped).
    """
    kind = schema.get("type")
    if isinstance(kind, list | tuple):
        for each in kind:
            with suppress(ValueError):
                return _fit(value, {**schema, "type": each})
    elif "enum" in schema:
        return _fit_enum(value, schema["enum"])
    elif kind == "object" and isinstance(value, dict):
        return _fit_properties(value, schema)
    elif kind == "array" and isinstance(value, list | tuple):
        if schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
            return [_fit(item, schema.get("items", {})) for item in value]
    elif kind == "string" and isinstance(value, str):
        return writable(value)
    elif kind in ("number", "integer"):
        return _fit_number(value, schema, whole=kind == "integer")
    elif (kind == "boolean" and isinstance(value, bool)) or (kind == "null" and value is None):
        return value
    raise ValueError


def writable(text: str) -> str:
    """`text` without lone surrogates, which JSON can spell but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _fit_properties(value: dict[Any, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    known, other = schema.get("properties", {}), schema.get("additionalProperties")
    out = {name: _fit(value[name], part) for name, part in known.items() if name in value}
    if isinstance(other, Mapping):
        names = [name for name in value if isinstance(name, str) and name not in known]
        out |= {writable(name): _fit(value[name], other) for name in names}
    if not all(name in out for name in schema.get("required", ())) or (value and not out):
        raise ValueError
    return out


def _fit_enum(value: Any, choices: Sequence[Any]) -> Any:
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    bare = value.strip(_MARKS).casefold() if isinstance(value, str) else None
    for choice in choices:
        if isinstance(choice, str) and choice.casefold() == bare:
            return choice
    raise ValueError


def _fit_number(value: Any, schema: Mapping[str, Any], whole: bool) -> int | float:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,15}(\.\d{1,15})?", value.strip(), re.ASCII):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e300:  # nan, too
        raise ValueError
    if whole and value != int(value):
        raise ValueError
    if not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
        raise ValueError
    return int(value) if whole else value


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The objects in `text`, outermost ones only, from left to right."""
    at = text.find("{")
    for _ in range(MAX_OBJECTS):
        if at < 0:
            return
        end = _end(text, at)
        value = _load(text[at:end]) if end else None
        if isinstance(value, dict):
            yield value
            at = text.find("{", end)
        else:
            at = text.find("{", at + 1)


def _end(text: str, start: int) -> int:
    """Behind the brace that closes the one at `start`, 0 where none does; braces in double quotes are text."""
    depth, quoted, skip = 0, False, False
    for i in range(start, len(text)):
        c = text[i]
        if skip:
            skip = False
        elif quoted:
            skip, quoted = c == "\\", c != '"'
        elif c == '"':
            quoted = True
        elif c in "{}":
            depth += 1 if c == "{" else -1
            if not depth:
                return i + 1
    return 0


def _load(text: str) -> Any:
    """JSON, also with trailing commas, line breaks in strings or in single quotes; None where it is neither."""
    if not text.startswith("{"):
        return None
    for reading in (text, _TRAILING_COMMA.sub(r"\1", text)):
        try:
            return json.loads(reading, strict=False)
        except (ValueError, RecursionError):  # an edge: text of a model
            continue
    if "\\" in text:  # odd escapes make Python warn
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
