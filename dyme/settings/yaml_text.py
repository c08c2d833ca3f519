"""YAML as settings are written in it: plain values under keys that are text, each key once, of bounded size."""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARS = 1 << 20
MAX_NODES = 100_000
"""Values of a text, those of an alias counted at each place where it stands."""
MAX_DEPTH = 50
MAX_DIGITS = 100


class YamlError(ValueError):
    """A text that is not such YAML; the message is one line with place or key."""


class _Loader(yaml.SafeLoader):
    """Without dates, which are text here."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


def read_yaml(text: str, key: str = "") -> Any:
    """Dicts with text keys, lists, texts, numbers, truth values and None. Raises `YamlError` for anything else: a key
    given twice, a tag, an alias that holds itself, too many values (nested aliases count in full), a NUL byte.
    `key`: that of the value, for messages."""
    if len(text) > MAX_CHARS:
        raise YamlError(f"more than {MAX_CHARS:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, key, 0, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError) as error:
        told = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise YamlError(f"not valid YAML: {told}") from None


def _check(node: yaml.Node, key: str, depth: int, sizes: dict[int, int | None]) -> int:
    """The number of values in a node. `sizes`: of those that were checked, None while they are."""
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise YamlError(f"'{key}': an alias that holds itself")
        return known
    if depth > MAX_DEPTH:
        raise YamlError(f"'{key[:80]}': nested more than {MAX_DEPTH} levels deep")
    if node.tag not in _PLAIN:
        raise YamlError(f"'{key}': the tag {node.tag!r} is not taken; write a plain value")
    sizes[id(node)], size = None, 1
    if isinstance(node, yaml.ScalarNode):
        _check_text(node.value, key)
        if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise YamlError(f"'{key}': a number of {len(node.value)} digits")
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            merged = name.tag.endswith(":merge")
            if not isinstance(name, yaml.ScalarNode) or not (merged or name.tag.endswith(":str")):
                shown = name.value if isinstance(name, yaml.ScalarNode) else f"a {name.id}"
                raise YamlError(f"'{key}': the key {shown!r:.60} is no text; keys are names")
            _check_text(name.value, key)
            full = f"{key}.{name.value}".lstrip(".")
            if name.value in seen:
                raise YamlError(f"'{full}' is given twice (line {name.start_mark.line + 1}); keep one of them")
            seen.add(name.value)
            size += _check(value, full, depth + 1, sizes)
    else:
        size += sum(_check(each, f"{key}.{i}".lstrip("."), depth + 1, sizes) for i, each in enumerate(node.value))
    if size > MAX_NODES:
        raise YamlError(f"'{key}': more than {MAX_NODES:,} values, aliases counted in full")
    sizes[id(node)] = size
    return size


def _check_text(text: str, key: str) -> None:
    if "\0" in text:
        raise YamlError(f"'{key}': {text!r:.60} a setting holds no NUL byte; take it out")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise YamlError(f"'{key}': {text!r:.60} holds half a character (a lone surrogate); take it out")
