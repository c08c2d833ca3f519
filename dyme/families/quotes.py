"""Quotes: control tokens that a text spells out, encoded as the characters they are written with.

A chat template is rendered to text and then encoded, so a question that spells `<|im_end|>` would end its own turn.
Here the text from its first quote on is replaced before rendering by a token that nothing else can write, and that
token's id by the ids of the text afterwards. A text that quotes nothing takes the ordinary way and keeps its ids to the
bit.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor


def any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the texts, the longest first; None for no texts."""
    held = sorted(filter(None, texts), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, held))) if held else None


def split_ids(tokenizer: Any, text: str, tags: re.Pattern[str] | None = None) -> list[int]:
    """Ids of a text without special tokens, and without the `tags`, which are tokens that are not special: a tokenizer
    keeps those whole, so the text is cut behind their first character."""
    cuts = [0, *(found.start() + 1 for found in tags.finditer(text)), len(text)] if tags else [0, len(text)]
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    return [
        token
        for piece in pieces
        for token in tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ]


def following_ids(tokenizer: Any, before: str, text: str, tags: re.Pattern[str] | None = None) -> list[int]:
    """`split_ids` of a text behind the character `before`, because SentencePiece puts a blank before the start of a
    text."""
    head, whole = split_ids(tokenizer, before, tags), split_ids(tokenizer, before + text, tags)
    return whole[len(head) :] if whole[: len(head)] == head else split_ids(tokenizer, text, tags)


@dataclass(frozen=True)
class MarkedChat:
    """A chat in which texts with quotes end in a mark. ids: each mark, with the ids of what it stands for; empty where
    the chat quotes nothing."""

    messages: list[dict[str, Any]]
    ids: Mapping[int, list[int]] = field(default_factory=dict)


class Quotes:
    """Replaces quotes. Not for several threads at once; a copy of the processor is made for the first quote."""

    def __init__(self, processor: Any, controls: Iterable[str], encode: Callable[[str], list[int]]) -> None:
        """controls: texts of the control tokens; encode: ids of a text with quotes as plain characters."""
        controls = frozenset(controls)
        self._source, self._controls, self._encode = processor, any_of(controls), encode
        self._normalize = _normalizer(getattr(processor, "tokenizer", processor), controls)
        self._normalized = any_of(map(self._normalize, controls)) if self._normalize else None
        self._secret = secrets.token_hex(8)  # no data can hold it
        self._marks: list[tuple[str, int]] = []

    @cached_property
    def processor(self) -> Any:
        """The processor whose tokenizer knows the marks."""
        return copy.deepcopy(self._source)

    def mark(self, messages: list[dict[str, Any]]) -> MarkedChat:
        """The chat with its quotes replaced; the same object where it has none."""
        ids: dict[int, list[int]] = {}

        def marked(text: str) -> str:
            start = self._first(text)
            if start is None:
                return text
            end = len(text.rstrip())  # chat templates may trim
            mark, token = self._mark(len(ids))
            ids[token] = self._encode(text[start:end])
            return text[:start] + mark + text[end:]

        changed = [{**message, "content": _mapped(message["content"], marked)} for message in messages]
        return MarkedChat(changed, ids) if ids else MarkedChat(messages)

    def fill(self, input_ids: Tensor, marked: MarkedChat) -> Tensor:
        """The ids, int64 [P], with the texts back in place of their marks. Raises ValueError where a mark got lost."""
        held = input_ids.tolist()
        if sorted(token for token in held if token in marked.ids) != sorted(marked.ids):
            raise ValueError(
                "the chat template changes the text of a message, so the control tokens that it quotes cannot be told "
                "apart: take them out of the text"
            )
        filled = [token for each in held for token in marked.ids.get(each, (each,))]
        return torch.tensor(filled, dtype=input_ids.dtype)

    def _first(self, text: str) -> int | None:
        """Where the first quote begins, or the text, where a quote shows only after the tokenizer's normalizer."""
        if self._normalize and self._normalized and self._normalized.search(self._normalize(text)):
            return len(text) - len(text.lstrip())
        found = self._controls.search(text) if self._controls else None
        return found.start() if found else None

    def _mark(self, number: int) -> tuple[str, int]:
        if number == len(self._marks):
            tokenizer = getattr(self.processor, "tokenizer", self.processor)
            mark = f"<|quote-{number}-{self._secret}|>"
            tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False)], special_tokens=True)
            self._marks.append((mark, tokenizer.convert_tokens_to_ids(mark)))
        return self._marks[number]


def _normalizer(tokenizer: Any, controls: frozenset[str]) -> Callable[[str], str] | None:
    """What a tokenizer does to texts before it looks for control tokens in them; None where it looks at once."""
    own = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    added = tokenizer.added_tokens_decoder.values()
    late = any(token.normalized and token.content in controls for token in added)
    return own.normalize_str if own is not None and late else None


def _mapped(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, str):
        return change(content)
    return [{**part, "text": change(part["text"])} if part["type"] == "text" else part for part in content]
