"""Quotes: control tokens that a text spells out, encoded as the characters they are written with.

A chat template is rendered to text and then encoded, so a question that spells `<|im_end|>` would end its own turn.
Here each such quote is replaced before rendering by a token that nothing else can write, and that token's id by the ids
of the quoted characters afterwards. A text that quotes nothing takes the ordinary way and keeps its ids to the bit.
"""

from __future__ import annotations

import copy
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class MarkedChat:
    """A chat whose quotes are replaced. ids: of each replacement, with the ids of what it stands for; count: how many
    there are. `ids` is empty where the chat quotes nothing."""

    messages: list[dict[str, Any]]
    ids: Mapping[int, list[int]] = field(default_factory=dict)
    count: int = 0


class Quotes:
    """Replaces quotes. Not for several threads at once; a copy of the processor is made for the first quote."""

    def __init__(self, processor: Any, controls: Iterable[str], encode: Callable[[str], list[int]]) -> None:
        """controls: texts of the control tokens; encode: ids of such a text as plain characters."""
        self._source, self._controls, self._encode = processor, any_of(controls), encode
        self._processor: Any = None
        self._secret = secrets.token_hex(8)  # no data can hold it
        self._known: dict[str, tuple[str, int, list[int]]] = {}

    @property
    def processor(self) -> Any:
        """The processor whose tokenizer knows the replacements."""
        if self._processor is None:
            self._processor = copy.deepcopy(self._source)
        return self._processor

    def mark(self, messages: list[dict[str, Any]]) -> MarkedChat:
        """The chat with every quote replaced; the same object where it has none."""
        if self._controls is None or not any(map(self._controls.search, _texts(messages))):
            return MarkedChat(messages)
        used: dict[int, list[int]] = {}
        count = 0

        def replace(found: re.Match[str]) -> str:
            nonlocal count
            count += 1
            mark, token, ids = self._mark_of(found[0])
            used[token] = ids
            return mark

        return MarkedChat([_mapped(message, replace, self._controls) for message in messages], used, count)

    def fill(self, input_ids: Tensor, marked: MarkedChat) -> Tensor:
        """The ids, int64 [P], with the quotes back in place of their replacements. Raises ValueError where one of
        them got lost."""
        held = input_ids.tolist()
        if sum(token in marked.ids for token in held) != marked.count:
            raise ValueError(
                "the chat template changes the text of a message, so the control tokens that it quotes cannot be told "
                f"apart: take them out ({', '.join(self._known)})"
            )
        filled = [token for each in held for token in marked.ids.get(each, (each,))]
        return torch.tensor(filled, dtype=input_ids.dtype)

    def _mark_of(self, control: str) -> tuple[str, int, list[int]]:
        if control not in self._known:
            tokenizer = getattr(self.processor, "tokenizer", self.processor)
            mark = f"<|quote-{len(self._known)}-{self._secret}|>"
            tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False)], special_tokens=True)
            self._known[control] = mark, tokenizer.convert_tokens_to_ids(mark), self._encode(control)
        return self._known[control]


def _texts(messages: list[dict[str, Any]]) -> Iterable[str]:
    for message in messages:
        if isinstance(message["content"], str):
            yield message["content"]
        else:
            yield from (part["text"] for part in message["content"] if part["type"] == "text")


def _mapped(
    message: dict[str, Any], replace: Callable[[re.Match[str]], str], controls: re.Pattern[str]
) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": controls.sub(replace, content)}
    parts = [
        {**part, "text": controls.sub(replace, part["text"])} if part["type"] == "text" else part for part in content
    ]
    return {**message, "content": parts}
